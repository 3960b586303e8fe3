"""What the documents name is there: files, headings, commands, flags, cited sections."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import fdllm
from fdllm.cli.main import build_parser
from fdllm.cli.main import commands as all_commands
from fdllm.cluster.cluster_config import ClusterConfig, Resources
from fdllm.core.config import StrategyConfig
from fdllm.core.guided_plans import GatePlan, ProbePlan, ScorePlan
from fdllm.core.reuse import LayerPlan, LayerRun, Observation
from fdllm.core.schedule import Step
from fdllm.experiment import create_experiment, load_experiment
from fdllm.plan import State
from fdllm.presets.reader import load_preset
from helpers import ROOT
from stubs import make_root

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")],
)
LINKED = [*PAGES, *sorted((ROOT / "experiments").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`]+`", re.MULTILINE | re.DOTALL)
# `fdllm sweep --task X`, `nox -s sweep -- --task X`, `apptainer exec fdllm.sif eval --task X`.
COMMAND = re.compile(
    r"(?:\bfdllm|fdllm\.sif) +(?P<own>[a-z]+)(?P<rest>[^\n|]*)"
    r"|nox -s (?P<session>[a-z]+) -- (?P<passed>[^\n]*)"
    r"|sbatch/(?:run|local|baseline)\.sh(?P<script>[^\n]*)"
)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ELSEWHERE = {"--app", "--bind", "--build-arg", "--nv", "--extra-index-url"}  # pip's, apptainer's
CITED = re.compile(r"docs/(?P<page>\w[\w-]*\.md),?\s+sections? (?P<number>\d+(?:\.\d+)?)")


def flags_by_command() -> dict[str, set[str]]:
    actions = build_parser(all_commands())._actions  # noqa: SLF001 - no other way in
    [commands] = [action.choices for action in actions if isinstance(action.choices, dict)]
    return {
        name: {flag for action in command._actions for flag in action.option_strings}  # noqa: SLF001
        for name, command in commands.items()
    }


FLAGS = flags_by_command()
ALL_FLAGS = set[str]().union(*FLAGS.values())


def code_of(page: Path) -> list[str]:
    """Code of a page: fenced blocks line by line, and spans, comments cut."""
    found = []
    for match in CODE.finditer(page.read_text(encoding="utf-8")):
        text = match[0]
        lines = text.splitlines()[1:-1] if text.startswith("```") else [" ".join(text.split())]
        found += [re.split(r" #|^#", line.strip("`"))[0] for line in lines]
    return found


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, place = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        assert file.is_relative_to(ROOT), f"{page.name} links out of the checkout: {target}"
        if place:
            assert place in map(anchor, headings(file)), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_flag_exists(name: str) -> None:
    for line in code_of(ROOT / name):
        named = set(FLAG.findall(line))
        for match in COMMAND.finditer(line):
            command = match["own"] or match["session"] or "sweep"
            given = set(
                FLAG.findall(match["rest"] or match["passed"] or match["script"] or ""),
            )
            named -= given
            if match["session"] and command not in FLAGS:  # pytest's, ruff's or apptainer's
                continue
            assert command in FLAGS, f"{name}: {line}"
            assert given <= FLAGS[command] | {"--help"}, f"{name}: {line}"
        if line.startswith("--"):
            assert named <= ALL_FLAGS | ELSEWHERE, f"{name}: {line}"


def test_every_command_is_explained() -> None:
    said = "\n".join(line for page in PAGES for line in code_of(page))
    missing = [name for name in FLAGS if name != "job" and f"fdllm {name}" not in said]
    assert not missing


def test_every_page_can_be_found_from_the_readme() -> None:
    linked = {
        Path(target).name for target in LINK.findall(PAGES[NAMES.index("README.md")].read_text())
    }
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= linked


def test_every_cited_section_exists() -> None:
    found = 0
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *PAGES]:
        for match in CITED.finditer(file.read_text(encoding="utf-8")):
            found += 1
            start = f"{match['number']}" + ("" if "." in match["number"] else ".")
            known = headings(ROOT / "docs" / match["page"])
            assert any(h.startswith(f"{start} ") for h in known), f"{file.name}: {match[0]}"
    assert found


# --- examples run, and tables are whole -----------------------------------------------------------


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def rows(page: str) -> set[str]:
    """First cells of a page's tables."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))


def test_the_readme_s_python_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FDLLM_ROOT", str(ROOT))
    code, _ = blocks("README.md", "python")  # records are read in tests/test_frames.py
    exec(code, {})  # noqa: S102 - the page's own
    assert "#### 239" in capsys.readouterr().out


def test_the_example_of_extending_is_an_experiment(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    folder = create_experiment("half_known", root)
    code, unmask = blocks("docs/extending.md", "python")
    grid, settings, _ = blocks("docs/extending.md", "toml")
    (folder / "generation_functions.py").write_text(
        f"{code}\nfrom collections.abc import Sequence\n{unmask}"
    )
    (folder / "experiment.toml").write_text(settings)
    study = load_experiment(folder.name, root)
    (folder / "experiment.toml").write_text(grid)
    names = [cell.name for cell in load_experiment(folder.name, root).cells]
    assert len(names) == 6
    assert {"k1_middle_threshold0.9", "k2_middle_most_masked0.25_threshold0.9"} <= set(names)
    model = fdllm.load_model("tiny")
    question = [{"role": "user", "content": "69+165+77"}]
    prompt: Any = model.tokenizer.apply_chat_template(question, add_generation_prompt=True)
    reused = {}
    for cell in study.cells:
        config = StrategyConfig(
            k=cell.k, subset=cell.subset, n_layers=model.n_layers, params=study.params(cell)
        )
        [out] = fdllm.generate(model, [prompt], study.decoding(cell, 96), study.strategy(config))
        reused[cell.name] = out.counts.reused
    assert reused["k1_middle"] == 0
    assert reused["half_middle_refresh"] > reused["half_middle"]
    assert study.unmask is not None
    assert study.unmask([0.5, 0.9, 0.7], 0.6) == [1]


@pytest.mark.parametrize(
    "text", [blocks("docs/protocol.md", "toml")[0], blocks("docs/extending.md", "toml")[2]]
)
def test_the_presets_of_the_pages_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert load_preset(str(path)).decoding


@pytest.mark.parametrize(
    ("kind", "in_the_call"),
    [
        (Step, set()),
        (Observation, set()),
        (LayerRun, {"start", "stop"}),
        (LayerPlan, {"n_layers", "reuse", "store", "partial"}),
        (ProbePlan, {"layer", "threshold", "calm", "otherwise"}),
        (GatePlan, {"n_layers", "threshold", "first", "most"}),
        (ScorePlan, {"n_layers", "stops", "shares", "confidence", "always", "weight"}),
    ],
)
def test_every_field_a_strategy_meets_is_explained(kind: Any, in_the_call: set[str]) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    [call] = (
        [
            line
            for line in code_of(ROOT / "docs/extending.md")
            if line.startswith(f"{kind.__name__}(")
        ]
        if in_the_call
        else [""]
    )
    assert all(re.search(rf"\b{name}\b", call) for name in in_the_call)
    assert names - in_the_call <= rows("docs/extending.md")


def test_every_key_of_a_config_and_of_fdllm_toml_is_explained() -> None:
    assert {*StrategyConfig.model_fields, "bounds"} <= rows("docs/extending.md")
    said = " ".join(code_of(ROOT / "docs/cluster.md"))
    for name in {*ClusterConfig.model_fields, *Resources.model_fields} - {"tasks"}:
        assert re.search(rf"\b{name}\b", said), name


def test_every_state_is_explained() -> None:
    assert set(State) <= rows("docs/records.md")
