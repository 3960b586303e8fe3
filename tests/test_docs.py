"""What the documents name is there: files, headings, commands, flags, cited sections."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fdllm.cli.parser import build_parser
from helpers import ROOT

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
    actions = build_parser()._actions  # noqa: SLF001 - argparse offers no other way to look inside
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
