"""``fdllm report --check``: every figure once more, from the samples and the journal.

What a record's summary, the harness's results, the copy for git and a written report say is
compared with what the samples show. Nothing is trusted because it was written by the tool.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdllm import strictjson
from fdllm.errors import FdllmError
from fdllm.plan import Planner
from fdllm.record import measure
from fdllm.record.journal import DamagedJournalError
from fdllm.record.paths import Layout
from fdllm.report.build import Section, build_report
from fdllm.report.figures import headline, journal_entries, pace
from fdllm.report.records import Record, load_record

_CLOSE = 1e-9
_EMBEDDED = re.compile(
    r'<script type="application/json" id="figures">(?P<json>.*?)</script>', re.DOTALL
)

Figure = tuple[str, str, Any, Any]
"""File, name, what is written, and what the samples give."""


@dataclass(frozen=True)
class Mismatch:
    """A figure that the samples do not bear out."""

    where: str  # the file
    figure: str  # its name
    written: str  # what stands there
    found: str  # what the samples give

    def __str__(self) -> str:
        return f"{self.where}: {self.figure} is {self.written}, the samples give {self.found}"


@dataclass(frozen=True)
class Recheck:
    """What a check found."""

    num_records: int = 0  # records compared
    num_figures: int = 0  # figures compared
    differences: tuple[Mismatch, ...] = ()  # those that differ
    notes: tuple[str, ...] = ()  # what could not be compared, and why

    def __add__(self, other: Recheck) -> Recheck:
        return Recheck(
            self.num_records + other.num_records,
            self.num_figures + other.num_figures,
            self.differences + other.differences,
            self.notes + other.notes,
        )


def recheck(planner: Planner, experiment: str, folders: Sequence[Path], written: Path) -> Recheck:
    """Compute every figure of some records, and of the written report, anew."""
    found = check_records(planner.layout, folders)
    if not written.exists():
        return found + Recheck(notes=(f"{written} is not there: only the records were compared",))
    place = planner.layout.results / experiment
    named = embedded_tables(written)
    try:
        sections = [
            Section(tuple(load_record(place / folder / name) for name in names))
            for folder, names in named
        ]
        settings = planner.experiment(experiment).settings
        title, results = settings.experiment.title, planner.layout.results
        report = build_report(experiment, title, settings.criteria, sections, results)
    except FdllmError as error:
        wrong = Mismatch(written.name, "a record behind it", "gone or broken", str(error))
        return found + Recheck(differences=(wrong,))
    shown = {place / folder / name for folder, names in named for name in names}
    later = [f.relative_to(place).as_posix() for f in folders if f not in shown]
    notes = (f"not in {written.name}: {', '.join(later)}",) if later else ()
    return found + check_page(written, report.figures()) + Recheck(notes=notes)


def check_records(layout: Layout, folders: Sequence[Path]) -> Recheck:
    """Compare each record's files with each other."""
    found = Recheck(num_records=len(folders))
    for folder in folders:
        name = folder.relative_to(layout.results).as_posix()
        notes: list[str] = []
        try:
            cell = load_record(folder)
            pairs = list(_figures(cell, notes))
        except (FdllmError, DamagedJournalError) as error:
            wrong = Mismatch(name, "the record", "not readable", str(error))
            found += Recheck(differences=(wrong,))
            continue
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            found += Recheck(differences=(Mismatch(name, "the record", "not of this form", what),))
            continue
        pairs += _copies(cell, layout.artifacts / folder.relative_to(layout.results), notes)
        differences = (
            Mismatch(f"{name}/{file}", figure, _show(written), _show(fresh))
            for file, figure, written, fresh in pairs
            if not same(written, fresh)
        )
        said = tuple(f"{name}: {note}" for note in notes)
        found += Recheck(0, len(pairs), tuple(differences), said)
    return found


def _embedded(path: Path) -> Any:  # noqa: ANN401 - any JSON
    """The figures that a written report holds; None where it holds none.

    Raises:
        ValueError: they are no JSON.
    """
    match = _EMBEDDED.search(path.read_text(encoding="utf-8"))
    return None if match is None else strictjson.loads(match["json"])


def embedded_tables(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Task folder and configs of each table of a written report; empty where none can be read."""
    try:
        return [
            (str(table["folder"]), tuple(str(cell["name"]) for cell in table["cells"]))
            for table in _embedded(path)["tables"]
        ]
    except (ValueError, KeyError, TypeError):
        return []


def check_page(path: Path, fresh: Mapping[str, Any]) -> Recheck:
    """Compare the figures in a written HTML report with fresh ones."""
    try:
        figures = _embedded(path)
    except ValueError:
        wrong = Mismatch(path.name, "its figures", "not readable", "a JSON object")
        return Recheck(differences=(wrong,))
    if figures is None:
        wrong = Mismatch(path.name, "its figures", "absent", "a report of fdllm holds them")
        return Recheck(differences=(wrong,))
    written = dict(leaves(figures))
    found = dict(leaves(strictjson.loads(strictjson.dumps(fresh))))
    names = {**written, **found}
    differences = (
        Mismatch(path.name, n, _show(written.get(n, "absent")), _show(found.get(n, "absent")))
        for n in names
        if not same(written.get(n), found.get(n))
    )
    return Recheck(0, len(names), tuple(differences))


def check_lines(name: str, written: str, fresh: str) -> Recheck:
    """Compare a written page of Markdown with a fresh one; lines with digits count as figures."""
    lines, found = written.splitlines(), fresh.splitlines()
    matcher = difflib.SequenceMatcher(None, lines, found, autojunk=False)
    differences = tuple(
        Mismatch(
            name,
            f"line {start + 1}",
            repr("\n".join(lines[start:stop])),
            repr("\n".join(found[first:last])),
        )
        for kind, start, stop, first, last in matcher.get_opcodes()
        if kind != "equal"
    )
    return Recheck(0, sum(any(map(str.isdigit, line)) for line in found), differences)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any JSON
    """The single values of a JSON document, by path; list items with a name go by it."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            label = index
            if isinstance(item, dict):
                label = item.get("folder") or item.get("name") or item.get("config") or index
            yield from leaves(item, f"{name}[{label}]")
    else:
        yield name, value


def same(written: Any, found: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Whether two figures are one; sums in another order may differ in the last place."""
    numbers = isinstance(written, (int, float)) and isinstance(found, (int, float))
    if numbers and not isinstance(written, bool) and not isinstance(found, bool):
        return math.isclose(written, found, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return bool(written == found)


def _figures(cell: Record, notes: list[str]) -> Iterator[Figure]:
    """What a summary says, from the samples and the journal."""
    summary, samples = cell.summary, cell.samples
    entries = journal_entries(cell)
    counts = measure.add_counts(samples)
    requests = sum(len(s["output"]) if isinstance(s["output"], list) else 1 for s in samples)
    speed = pace(cell, counts).model_dump()
    if summary.kind == "loglikelihood":
        seconds = speed["seconds"]
        speed["requests_per_second"] = requests / seconds if seconds else 0.0
    fresh: dict[str, Any] = {
        "headline": headline(cell).model_dump(),
        "metrics": {name: measure.mean_of(name, samples) for name in summary.metrics},
        "num_requests": requests,
        "throughput": speed,
        "counts": counts,
        "layer_calls": measure.layer_calls(counts).model_dump(),
    }
    if entries is None:
        what = "repetition" if summary.kind == "generate" else "where answers were scored"
        notes.append(f"no journal here, so {what} cannot be computed anew")
    else:
        quality = measure.quality(summary.kind, entries)
        scored = measure.scored_steps(summary.kind, entries)
        fresh["quality"] = None if quality is None else quality.model_dump()
        fresh["scored"] = None if scored is None else scored.model_dump()
    written = summary.model_dump(mode="json")
    yield from (
        ("summary.json", figure, dict(leaves(written[key], key)).get(figure), found)
        for key in fresh
        for figure, found in leaves(fresh[key], key)
    )
    if entries is not None:
        yield from _against_journal(samples, entries)
    for file, record in summary.files.items():
        digest = hashlib.sha256((cell.folder / file).read_bytes()).hexdigest()
        yield (file, "SHA-256", record.sha256, digest)


def _against_journal(
    samples: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]
) -> Iterator[Figure]:
    """Each sample's tokens and time, from its answers in the journal."""
    tokens: dict[tuple[str, int], int] = {}
    seconds: dict[tuple[str, int], float] = {}
    for entry in entries:
        key = (entry["task"], entry["doc_id"])
        number = entry["num_tokens"] if entry["kind"] == "generate" else entry["scored_tokens"]
        tokens[key] = tokens.get(key, 0) + number
        seconds[key] = seconds.get(key, 0.0) + entry["seconds"]
    for sample in samples:
        key = (sample["task"], sample["doc_id"])
        what = f"row {key[1]} of {key[0]}"
        yield ("samples.jsonl", f"tokens, {what}", sample["tokens"], tokens.get(key))
        yield ("samples.jsonl", f"seconds, {what}", sample["seconds"], seconds.get(key))


def _copies(cell: Record, artifact: Path, notes: list[str]) -> Iterator[Figure]:
    """The headline in the harness's results, and the copy for git."""
    value, metric = headline(cell).value, cell.summary.headline.metric
    results = strictjson.loads((cell.folder / "results.json").read_text(encoding="utf-8"))
    groups = {**results.get("results", {}), **results.get("groups", {})}
    written = groups.get(cell.task, {}).get(metric)
    yield ("results.json", f"{cell.task} {metric}", written, value)
    copy = artifact / "summary.json"
    if not copy.exists():
        notes.append("no copy under artifacts")
        return
    written = strictjson.loads(copy.read_text(encoding="utf-8"))
    for key, own in cell.summary.model_dump(mode="json").items():
        yield ("summary.json under artifacts", key, written.get(key), own)


def _show(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = strictjson.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 70 else f"{text[:67]}…"  # noqa: PLR2004 - a line's worth
