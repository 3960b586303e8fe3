"""``results.md``: written from the records of a selection, and compared with them later."""

from __future__ import annotations

import difflib
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fdllm.cli import show
from fdllm.errors import FdllmError
from fdllm.plan import SETTLED, Planner
from fdllm.report.recheck import Difference, Recheck
from fdllm.report.results_md import render_results

if TYPE_CHECKING:  # scipy and statsmodels come in where a report is made
    from fdllm.report.publish import Report

_HEADER = re.compile(r"^Written by `fdllm report(?P<selection> [^`]+)`", re.MULTILINE)
_FLAGS = ("task", "config", "limit", "model", "revision", "scoring", "preset")
_FIGURE = re.compile(r"\d")


def selection_words(args: Namespace) -> list[str]:
    """The flags that chose the records, as they would be typed."""
    words = ["--experiment", args.experiment]
    for name in _FLAGS:
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    if args.dtype != "auto":
        words += ["--dtype", args.dtype]
    return words + (["--allow-invalid"] if args.allow_invalid else [])


def render_markdown(planner: Planner, args: Namespace) -> tuple[str, Report]:
    """The whole of ``results.md`` for a selection, and the report that its verdict is from.

    Raises:
        FdllmError: there are no records, or they must not share a table.
    """
    from fdllm.report.publish import make_report  # noqa: PLC0415 - scipy and statsmodels

    sweeps = list(show.report_sweeps(planner, args))
    tables = render_results(planner, sweeps, args.experiment, shlex.join(selection_words(args)))
    report = make_report(planner, sweeps, args.experiment)
    return report.add_verdict(tables), report


def check_markdown(planner: Planner, args: Namespace, path: Path) -> Recheck:
    """Render ``results.md`` again from the records it was written from, and compare the lines.

    Args:
        planner: knows the checkout's own records.
        args: flags of ``fdllm report --check``.
        path: the file.
    """
    from fdllm.cli.parser import build_parser  # noqa: PLC0415 - which adds this command's flags

    header = _HEADER.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    if args.results is not None or header is None:
        why = "is the checkout's own" if header else "was not written by fdllm report yet"
        return _note(f"{path.name} was not compared: it {why}")
    then = build_parser().parse_args(["report", *shlex.split(header["selection"])])
    try:
        sweeps = list(show.report_sweeps(planner, then))
    except FdllmError as error:  # a clone has the file and not the records
        return _note(f"{path.name} was not compared: {error}")
    states = [planner.state(run) for sweep in sweeps for run in planner.runs(sweep)]
    other = [cell for cell in states if cell.state not in SETTLED]
    if other:
        return _note(
            f"{path.name} was not compared: {len(other)} of its {len(states)} cells are "
            f"{other[0].state.value} now ({other[0].run.cell.name}: {other[0].reason})"
        )
    found = render_markdown(planner, then)[0].splitlines()
    written = path.read_text(encoding="utf-8").splitlines()
    number = sum(bool(_FIGURE.search(line)) for line in found)
    return Recheck(0, number, tuple(_differences(path.name, written, found)), ())


def _note(text: str) -> Recheck:
    return Recheck(0, 0, (), (text,))


def _differences(name: str, written: list[str], found: list[str]) -> Iterator[Difference]:
    matcher = difflib.SequenceMatcher(None, written, found, autojunk=False)
    for kind, start, stop, first, last in matcher.get_opcodes():
        if kind != "equal":
            lines = "\n".join(written[start:stop]), "\n".join(found[first:last])
            yield Difference(name, f"line {start + 1}", *(repr(text) for text in lines))
