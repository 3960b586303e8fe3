"""``fdllm report --check``: every figure once more, from the columns, and these from the samples.

What a record's summary and a written report say is compared with what the columns show. Where the
run was, the columns are compared with its samples and its journal, and with the copies for git; a
clone has the copies alone. Nothing is trusted because it was written by the tool.
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
from fdllm.record.journal import DamagedJournalError, read_journal
from fdllm.record.paths import COLUMNS, SAMPLES, Layout
from fdllm.record.per_document import FROM_JOURNAL, pack, rows_of, unpack
from fdllm.report.build import Section, build_report
from fdllm.report.figures import headline
from fdllm.report.records import Record, SampleKey, load_record, sample_key

_CLOSE = 1e-9
_EMBEDDED = re.compile(
    r'<script type="application/json" id="figures">(?P<json>.*?)</script>', re.DOTALL
)

Figure = tuple[str, str, Any, Any]
"""File, name, what is written, and what the samples give."""


@dataclass(frozen=True)
class Mismatch:
    """A figure that what it is computed from does not bear out."""

    where: str  # the file
    figure: str  # its name
    written: str  # what stands there
    found: str  # what it is computed from gives

    def __str__(self) -> str:
        return f"{self.where}: {self.figure} is {self.written}; computed anew it is {self.found}"


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
        return found + Recheck(notes=(f"{written} is not there, so it was not compared",))
    at = {planner.layout.part(one).as_posix(): one for one in folders}
    place = planner.layout.results / experiment
    named = [
        [f"{experiment}/{folder}/{name}" for name in names]
        for folder, names in embedded_tables(written)
    ]
    try:
        sections = [
            Section(tuple(load_record(at.get(part, place.parent / part)) for part in parts))
            for parts in named
        ]
        settings = planner.experiment(experiment).settings
        title, layout = settings.experiment.title, planner.layout
        grid = planner.experiment(experiment).cells
        report = build_report(experiment, title, settings.criteria, sections, layout, grid=grid)
    except FdllmError as error:
        wrong = Mismatch(written.name, "a record behind it", "gone or broken", str(error))
        return found + Recheck(differences=(wrong,))
    shown = {part for parts in named for part in parts}
    later = [part.removeprefix(f"{experiment}/") for part in at if part not in shown]
    notes = (f"not in {written.name}: {', '.join(later)}",) if later else ()
    return found + check_page(written, report.figures()) + Recheck(notes=notes)


def check_records(layout: Layout, folders: Sequence[Path]) -> Recheck:
    """Compare each record's files with each other."""
    found = Recheck(num_records=len(folders))
    for folder in folders:
        name = layout.part(folder).as_posix()
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
        if not cell.is_published:
            pairs += _copies(cell, layout.artifacts / name, notes)
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
    """Whether two figures are one; but for counts, sums in another order may differ at the end."""
    kinds = {type(written), type(found)}
    if float in kinds and kinds <= {int, float}:
        return math.isclose(written, found, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return bool(written == found)


def _figures(cell: Record, notes: list[str]) -> Iterator[Figure]:
    """What a summary says, from the columns; and these, from the samples and the journal."""
    summary, rows = cell.summary, cell.samples
    counts = measure.add_counts(rows)
    quality = measure.quality(summary.kind, rows)
    scored = measure.scored_steps(summary.kind, rows)
    fresh: dict[str, Any] = {
        "headline": headline(cell).model_dump(),
        "metrics": {name: measure.mean_of(name, rows) for name in summary.metrics},
        "num_requests": measure.num_requests(rows),
        "throughput": measure.throughput(summary.kind, rows, counts).model_dump(),
        "counts": counts,
        "layer_calls": measure.layer_calls(counts).model_dump(),
        "quality": None if quality is None else quality.model_dump(),
        "scored": None if scored is None else scored.model_dump(),
    }
    written = summary.model_dump(mode="json")
    yield from (
        ("summary.json", figure, dict(leaves(written[key], key)).get(figure), found)
        for key in fresh
        for figure, found in leaves(fresh[key], key)
    )
    if cell.is_published:
        return
    yield from _against_samples(cell, notes)
    for file, record in summary.files.items():
        digest = hashlib.sha256((cell.folder / file).read_bytes()).hexdigest()
        yield (file, "SHA-256", record.sha256, digest)


def _against_samples(cell: Record, notes: list[str]) -> Iterator[Figure]:
    """Each document's facts, from its sample and its answers in the journal."""
    path = cell.folder / "journal.jsonl"
    entries = read_journal(path).entries.values() if path.exists() else ()
    cost: dict[SampleKey, tuple[int, float]] = {}
    for entry in entries:
        key = sample_key(entry)
        if key not in cell.by_key:
            continue
        tokens, seconds = cost.get(key, (0, 0.0))
        number = entry["num_tokens" if entry["kind"] == "generate" else "scored_tokens"]
        cost[key] = (tokens + number, seconds + entry["seconds"])
    if not entries:
        notes.append("no journal here, so what only the answers show cannot be computed anew")
    rows = {
        (row["task"], row["doc_id"]): row
        for row in unpack(pack(rows_of([*cell.texts.values()], entries)))
    }
    for key, written in cell.by_key.items():
        found = rows.get(key, {})
        for name in (*written, *(found.keys() - written.keys())):
            if entries or name not in FROM_JOURNAL:
                what = f"{name}, row {key[1]} of {key[0]}"
                yield (COLUMNS, what, written.get(name), found.get(name))
    for key, (tokens, seconds) in cost.items():
        sample, what = cell.texts.get(key, {}), f"row {key[1]} of {key[0]}"
        yield (SAMPLES, f"tokens, {what}", sample.get("tokens"), tokens)
        yield (SAMPLES, f"seconds, {what}", sample.get("seconds"), seconds)


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
    packed = artifact / COLUMNS
    digest = hashlib.sha256(packed.read_bytes()).hexdigest() if packed.exists() else "absent"
    written, own = digest, cell.summary.files[COLUMNS].sha256
    yield (f"{COLUMNS} under artifacts", "SHA-256", written, own)
    written = strictjson.loads(copy.read_text(encoding="utf-8"))
    for key, own in cell.summary.model_dump(mode="json").items():
        yield ("summary.json under artifacts", key, written.get(key), own)


def _show(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = strictjson.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 70 else f"{text[:67]}…"  # noqa: PLR2004 - a line's worth
