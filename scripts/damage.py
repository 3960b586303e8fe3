"""Damage one file of a results tree or a release at a time, and ask every command that reads it.

    python scripts/damage.py ROOT --number 500 --seed 0

ROOT holds two experiments with records of the embedded model under --limit 4, their written reports
and a release; where it is absent it is made. It is copied and left alone. Counted are exceptions
that are no :class:`~fdllm.errors.FdllmError`, commands that do not end, and lies: a changed file
whose cell is ``done`` all the same and which ``fdllm report --check`` does not name. All three
should be 0.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import lzma
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import fdllm
from faults import damage
from fdllm.cli.main import main as run_command
from fdllm.errors import FdllmError

LIMIT_S, MEMORY = 30, 8 << 30
HERE = Path(__file__).resolve().parents[1]
FORMATS = ("lm-eval", "every-eval-ever", "hub-eval-results", "inspect")
FINDINGS = """\
model = "tiny"
page = "README.md"
[tolerance]
layer_calls = 0.01
[[finding]]
text = "It makes 0.5 of the calls."
experiment = "00_baseline"
task = "tiny_arithmetic"
figures = [{ expected = "0.5", config = "k2_last", field = "layer_calls" }]
"""


def make_root(root: Path) -> None:
    """A checkout with everything that may be damaged: half a minute.

    Raises:
        RuntimeError: a command failed; it says what that printed.
    """
    for name in ("experiments/00_baseline", "experiments/03_trim", "experiments/_template"):
        shutil.copytree(HERE / name, root / name)
    for name in ("requirements.lock", "CITATION.cff", "LICENSE"):
        shutil.copy(HERE / name, root)
    shutil.copy(HERE / "experiments/claims.toml", root / "experiments")
    (root / "experiments/findings.toml").write_text(FINDINGS, encoding="utf-8")
    (root / "experiments/README.md").write_text("It makes 0.5 of the calls.\n", encoding="utf-8")
    os.environ["FDLLM_ROOT"] = str(root)
    tiny = ["--model", "tiny", "--limit", "4"]
    both = ["--task", "tiny_arithmetic", "--task", "tiny_choice", "--config", "k1_first"]
    both += [word for name in ("k1_last", "k2_last", "k3_last") for word in ("--config", name)]
    _made("sweep", *tiny, *both)
    for cell in (root / "results").glob("*/*/k3_last"):  # unfinished: a journal, and no record
        for path in cell.iterdir():
            if path.name != "journal.jsonl":
                path.unlink()
        shutil.rmtree(root / "artifacts" / cell.relative_to(root / "results"))
    _made("sweep", *tiny, "--experiment", "03_trim", "--task", "tiny_arithmetic")
    _made("profile", *tiny, "--task", "tiny_arithmetic")
    for name in ("00_baseline", "03_trim"):
        _made("report", "--replace", *tiny, "--experiment", name)
    _made("export", *tiny, "--out", str(root / "release"))
    for place, name in (
        (root, "00_baseline"),
        (root, "03_trim"),
        (root / "release", "00_baseline"),
    ):
        os.environ["FDLLM_ROOT"] = str(place)
        _made("report", "--check", "--model", "tiny", "--experiment", name)


def _made(*words: str) -> None:
    made = ask(partial(run_command, words), limit_s=600, memory=-1)
    if made.code:
        raise RuntimeError(f"fdllm {' '.join(words)}: {made.text}")


# --- what the commands say ------------------------------------------------------------------------


@dataclass
class Heard:
    """What became of one command."""

    code: int | None  # None where it did not end
    text: str  # what it printed

    @property
    def unexpected(self) -> bool:
        """Whether it ended by an exception that is none of ours."""
        return self.code not in (None, 0, 1, 2)


def ask(work: Callable[[], object], *, limit_s: float = LIMIT_S, memory: int = MEMORY) -> Heard:
    """Do something in a process of its own, for a limited time and memory."""
    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            os._exit(_end(work))
        until = time.monotonic() + limit_s
        code: int | None = None
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.005)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        out.seek(0)
        return Heard(code, out.read().decode("utf-8", "replace"))


def _end(work: Callable[[], object]) -> int:
    code = 0
    try:
        found = work()
        code = found if isinstance(found, int) else 0
    except FdllmError:
        code = 1
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - this is what is looked for
        traceback.print_exc()
        code = 70
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def commands(root: Path, experiment: str, form: str) -> dict[str, Callable[[], object]]:
    """Everything that reads an experiment's records, of the forms of other tools one."""
    own = ["--experiment", experiment, "--debug"]
    tiny = [*own, "--model", "tiny"]
    chosen = ["--strategy", experiment, "--task", "tiny_arithmetic", "--model", "tiny"]
    other = ["--out", str(root / "other")]
    pair = ["compare", "k1_first", "k1_last", "--limit", "4", *own]
    lines = {
        "check": ["report", "--check", "--json", *tiny],
        "check in words": ["report", "--check", *tiny],
        "status": ["status", "--limit", "4", "--json", *tiny],
        "status in words": ["status", "--limit", "4", *tiny],
        "compare": [*pair, "--flips", "5"],
        "compare as JSON": [*pair, "--json"],
        "calibrate": ["calibrate", *chosen, "--limit", "4", "--debug"],
        "export": ["export", "--limit", "4", "--out", str(root / "out"), *tiny],
        f"export as {form}": ["export", "--format", form, "--limit", "4", *other, *tiny],
        "report": ["report", *tiny],
        "report of all": ["report", "--all", "--debug", "--model", "tiny"],
        "reproduce": ["reproduce", "--from-records", "--appendix", "acm", "--debug"],
        "reproduce as JSON": ["reproduce", "--from-records", "--exact", "--json", "--debug"],
    }
    asked: dict[str, Callable[[], object]] = {
        name: partial(run_command, words) for name, words in lines.items()
    }
    asked["results()"] = lambda: fdllm.results(experiment, root=root, limit=4)
    asked["samples()"] = lambda: fdllm.samples(experiment, root=root, limit=4)
    return asked


@dataclass
class Found:
    """What a round found."""

    counts: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str, text: str = "") -> None:
        """Count something, and keep what was said."""
        self.counts[kind] += 1
        self.said.append(f"{kind}: {what}\n{text}")


def content(path: Path) -> object:
    """What a file says, so that two spellings of one thing are one."""
    if path.is_symlink() or not path.is_file():
        return None if not os.path.lexists(path) else os.lstat(path).st_mode
    data = path.read_bytes()
    try:
        data = lzma.decompress(data) if path.suffix == ".xz" else data
        text = data.decode()
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines()]
        return json.loads(text) if path.suffix in (".json", ".xz") else text.splitlines()
    except (ValueError, RecursionError, lzma.LZMAError, MemoryError):
        return data


def states(heard: Heard) -> dict[str, str]:
    """The state of each cell, by its folder."""
    try:
        cells = json.loads(heard.text)["cells"]
    except (ValueError, KeyError):
        return {}
    return {cell["folder"]: cell["state"] for cell in cells}


def one_round(original: Path, work: Path, seed: int, found: Found) -> None:
    """Damage one thing in a copy of a root and ask everybody."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(original, work, symlinks=True)
    path, what = damage(work, random.Random(seed))
    part, root = path.relative_to(work), work
    if part.parts[0] == "release":
        root, part = work / "release", part.relative_to("release")
    names = [name for name in part.parts if re.fullmatch(r"\d\d_\w+", name)]
    experiment = names[0] if names else "00_baseline"
    told = f"seed {seed}: {path.relative_to(work)} {what}"
    print(told, file=sys.stderr, flush=True)
    os.environ["FDLLM_ROOT"] = str(root)
    os.chdir(root if root.is_dir() else work)
    heard = {}
    for name, command in commands(root, experiment, FORMATS[seed % len(FORMATS)]).items():
        heard[name] = said = ask(command)
        found.counts["commands"] += 1
        if said.code is None:
            found.add("hangs", f"{told}; {name}")
        elif said.unexpected:
            found.add("unexpected", f"{told}; {name}", said.text[-1500:])
    before = content(original / path.relative_to(work))
    shown = states(heard["status"])
    state = next((s for folder, s in shown.items() if path.is_relative_to(folder)), None)
    is_record = (
        part.parts[0] in ("results", "artifacts") and (original / path.relative_to(work)).is_file()
    )  # where a folder is gone, what git keeps stands for it, and says so
    if is_record and before != content(path) and state in (None, "done"):
        found.counts["changed and done"] += 1
        if heard["check"].code == 0:
            found.add("lies", told, heard["check"].text[-600:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Damage, ask, count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, help="a checkout with records, made where it is absent")
    parser.add_argument("--number", type=int, default=500, help="things to damage (500)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (0)")
    asked = parser.parse_args(arguments)
    found = Found()
    if not asked.root.exists():
        make_root(asked.root.resolve())
    os.environ["FDLLM_ROOT"] = str(asked.root.resolve())
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        for name, command in commands(asked.root, "00_baseline", FORMATS[0]).items():
            if not name.startswith(("export", "report")):  # they would write what is loaded here
                command()
    gc.freeze()  # the children change no page of it
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve() / "root"
        for seed in range(asked.seed, asked.seed + asked.number):
            one_round(asked.root.resolve(), work, seed, found)
            while found.said:
                print(found.said.pop(0), flush=True)
        os.chdir("/")
    kinds = ("unexpected", "hangs", "lies", "changed and done", "commands")
    print(f"{asked.number} damaged:", ", ".join(f"{found.counts[k]} {k}" for k in kinds))
    return int(any(found.counts[kind] for kind in kinds[:3]))


if __name__ == "__main__":
    sys.exit(main())
