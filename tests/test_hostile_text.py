"""What a model answers, a file is called and a library says, through every command that prints."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from command import Command, work_in
from fdllm.cli import main
from fdllm.errors import FdllmError
from fdllm.profiling import take_profile
from fdllm.release.formats import WRITERS
from fdllm.runs import Run
from fdllm.trace.words import visible
from profiles import made_up_profile
from stubs import METRIC, StubMachine, make_root

HOSTILE = "\x1b[31m\x9b2J\x1b]0;t\x07\u202e\u2066\u200b\u2028\ufeff\r\x08\x7f[red]|`<b>&lt;[a](b:c)"
MODEL = HOSTILE.replace("/", "")
ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def model(root: Path) -> str:
    return str(root / MODEL)


def acting(text: str) -> set[str]:
    return {one for one in text if unicodedata.category(one) in ACTING and one not in "\n\t"}


class Flipping(StubMachine):
    """k decides which documents are right; what it answers is hostile."""

    def __init__(self) -> None:
        super().__init__(answer=lambda run, doc: f"{HOSTILE} {doc} {run.cell.k}")

    def _sample(self, run: Run, i: int, entry: dict[str, Any]) -> dict[str, Any]:
        metrics = {METRIC[run.task]: float((i + run.cell.k) % 2)}
        return super()._sample(run, i, entry) | {"metrics": metrics}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of which some are right, of a model of that name, under a title like it."""
    root = make_root(tmp_path_factory.mktemp("hostile") / "root")
    (root / "model").rename(root / MODEL)
    settings = root / "experiments/00_baseline/experiment.toml"
    lines = settings.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("title"))
    lines[at] = f"title = {json.dumps(HOSTILE)}".replace("\x7f", "\\u007f")
    settings.write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        work_in(root, patch, lambda *_: Flipping())
        assert main(["sweep", "--task", "tiny_arithmetic", "--model", model(root)]) == 0
    return root


@pytest.fixture
def command(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    root = swept
    found = Command(root, capsys)
    found.machine = Flipping()
    work_in(root, monkeypatch, found.load)
    monkeypatch.chdir(tmp_path)
    return found


def run(command: Command, *words: str) -> str:
    command.raw(*words)
    said = command.out + command.err
    assert said
    assert not acting(said), words
    assert "unexpected" not in said
    return said


COMMANDS = (
    "sweep", "sweep --dry-run", "status", "status --json", "report", "report --stdout",
    "report --check", "report --check --json", "compare k1_first k2_middle --flips 5",
    "compare k1_first k2_middle --json", "calibrate --strategy 00_baseline",
    "calibrate --strategy 00_baseline --json", "timing", "timing --json", "export --out release",
    "eval --config k1_first --force", "prompts", "report --all", "calibrate --strategy x",
    *(f"export --format {name} --out other" for name in WRITERS),
    *(pytest.param(one, marks=pytest.mark.slow) for one in ("doctor", "doctor --json", "prefetch")),
)  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_lets_it_act(words: str, command: Command) -> None:
    said = run(command, *words.split(), "--task", "tiny_arithmetic", "--model", model(command.root))
    if "--flips" in words:  # folded in their columns
        assert all(one in said for one in (r"\u001b[31m", r"\u202e", "[red]|`<b>"))


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--task", HOSTILE),
        ("eval", "--config", HOSTILE),
        ("report", "--preset", HOSTILE),
        ("new", HOSTILE),
        ("status", HOSTILE),
        (HOSTILE,),
        ("trace", "--doc", HOSTILE),
        ("sweep", "--model", HOSTILE),
        ("compare", HOSTILE, "k1_first"),
        ("grade", "--answers", HOSTILE),
        ("export", "--out", HOSTILE, "--experiment", HOSTILE),
        ("status", "--limit", HOSTILE),
        ("status", "--experiment", HOSTILE, "--debug"),
    ],
    ids=lambda words: " ".join(one for one in words if one != HOSTILE),
)
def test_no_mistake_lets_it_act(words: tuple[str, ...], command: Command) -> None:
    said = run(command, *words)
    assert said.count("\n") <= 2 or "--debug" in words


@pytest.mark.parametrize("error", [FdllmError, RuntimeError])
def test_no_error_lets_it_act(error: type[Exception], command: Command) -> None:
    asked = ("--task", "tiny_choice", "--model", model(command.root))

    def fail(_: int) -> None:
        raise error(HOSTILE)

    command.machine.before = fail
    run(command, "eval", *asked, "--config", "k3_last", "--force")
    run(command, "status", *asked)
    (log,) = command.root.glob("logs/00_baseline/tiny_choice@*/k3_last/*.log")
    assert "red" in log.read_text(encoding="utf-8")
    assert not acting(log.read_text(encoding="utf-8"))
    log.unlink()


FINDINGS = """
model = {model}
page = {words}
tolerance = {{}}
[[finding]]
text = {words}
experiment = "00_baseline"
task = "tiny_arithmetic"
figures = [{{ expected = {figure}, config = "k1_first", field = {field} }}]
"""


def quoted(text: str) -> str:
    """As TOML has it."""
    return json.dumps(text).replace("\x7f", "\\u007f")


@pytest.mark.parametrize("page", [True, False])
@pytest.mark.parametrize("field", ["layer_calls", HOSTILE])
@pytest.mark.parametrize(
    "flags", ["", "--json", "--appendix acm", "--appendix usenix", f"--experiment {HOSTILE}"]
)
def test_no_finding_lets_it_act(flags: str, field: str, page: bool, command: Command) -> None:
    words, place = f"{MODEL} 0.5{HOSTILE}".replace("/", ""), command.root / "experiments"
    told = {"model": model(command.root), "words": words, "figure": f"0.5{MODEL[:9]}"}
    text = FINDINGS.format(**{name: quoted(one) for name, one in told.items()}, field=quoted(field))
    (place / "findings.toml").write_text(text)
    if page:
        (place / words).write_text(f"{HOSTILE} 7\n\n{HOSTILE} 0.25\n")
    try:
        run(command, "reproduce", "--from-records", *filter(None, flags.split(" ", 1)))
    finally:
        (place / "findings.toml").unlink()
        (place / words).unlink(missing_ok=True)


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_no_profile_lets_it_act(
    flags: tuple[str, ...], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = made_up_profile(task=HOSTILE, model=HOSTILE, decoding=HOSTILE, metric=HOSTILE)
    monkeypatch.setattr(take_profile, "take_profile", lambda *_, **__: hostile)
    asked = ("--task", "tiny_arithmetic", "--model", model(command.root), "--limit", "3")
    run(command, "profile", *asked, *flags)
    (page,) = command.root.glob("results/profile/*/*.html")
    (tables,) = command.root.glob("artifacts/profile/*/*.md")
    text = page.read_text(encoding="utf-8") + tables.read_text(encoding="utf-8")
    assert not acting(text)
    assert "<b>&lt;[a]" not in text


def test_no_page_holds_it_raw(command: Command) -> None:
    asked = ("--task", "tiny_arithmetic", "--model", model(command.root))
    run(command, "report", *asked)
    run(command, "export", "--out", "release", *asked)
    for folder in (command.root, Path("release")):
        text = (folder / "experiments/00_baseline/results.md").read_text(encoding="utf-8")
        page = (folder / "results/00_baseline/report.html").read_text(encoding="utf-8")
        assert not acting(text + page)
        assert r"[red]\|\`\<b>\&lt;[a\](b:c)" in text
        assert "<b>&lt;[a]" not in page
    assert not acting(Path("release/README.md").read_text(encoding="utf-8"))


def test_a_token_is_seen_in_a_trace() -> None:
    assert visible("a\x1b[2J\n\u202e") == r"a\u001b[2J↵\u202e"
