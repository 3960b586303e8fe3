"""What the files of a record say of each other: summary, samples, columns, results, journal.

Each figure stands in several of them, or follows from what stands in another. Texts are not graded
here, and nothing is loaded: :mod:`fdllm.report.asked_again` does that.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fdllm.outside import AbsentError, read_bytes, read_json
from fdllm.record import measure
from fdllm.record.identity import DECIDED, digest_of, strategy_words
from fdllm.record.journal import JournalContent, read_journal
from fdllm.record.measure import Rows
from fdllm.record.paths import COLUMNS, SAMPLES, TaskFolder, model_slug
from fdllm.record.per_document import FROM_JOURNAL, MOST, pack, rows_of, unpack
from fdllm.record.summary import describe_file
from fdllm.report.figures import headline
from fdllm.report.leaves import ABSENT, Figure, compared
from fdllm.report.records import Record, SampleKey, sample_key
from fdllm.runs import CONFIG_NAME, home_model

_JOURNAL, _SUMMARY, _RESULTS = "journal.jsonl", "summary.json", "results.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def own_figures(cell: Record, notes: list[str]) -> Iterator[Figure]:
    """Every value of a record that another of its files, its place or its name bears out.

    ``notes`` gets what cannot be compared, and why.

    Raises:
        FdllmError: a file cannot be read.
    """
    yield from _place(cell)
    yield from _of_columns(cell)
    yield from _of_fingerprint(cell)
    if cell.is_published:
        return
    for name, record in cell.summary.files.items():
        found = describe_file(cell.folder / name, record.lines)
        yield from compared(_SUMMARY, record.model_dump(), found.model_dump(), f"files.{name}")
    content = read_journal(cell.folder / _JOURNAL)
    if content.fingerprint is None:
        notes.append("no journal here, so what only the answers show cannot be computed anew")
    else:
        yield from _of_journal(cell, content)
    yield from _of_samples(cell, list(content.entries.values()))
    yield from _of_results(cell)


def copy_figures(cell: Record, artifact: Path, notes: list[str]) -> Iterator[Figure]:
    """The copies for git beside the record.

    Raises:
        FdllmError: a copy cannot be read.
    """
    try:
        copy = read_json(artifact / _SUMMARY, most=MOST)
    except AbsentError:
        notes.append("no copy under artifacts")
        return
    yield from compared(
        f"{_SUMMARY} under artifacts", copy, cell.summary.model_dump(mode="json"), ""
    )
    try:
        digest = hashlib.sha256(read_bytes(artifact / COLUMNS, most=MOST)).hexdigest()
    except AbsentError:
        digest = ABSENT
    yield f"{COLUMNS} under artifacts", "SHA-256", digest, cell.summary.files[COLUMNS].sha256


def _place(cell: Record) -> Iterator[Figure]:
    """What the folders' names say."""
    summary, place = cell.summary, TaskFolder.parse(cell.folder.parent.name)
    named: dict[str, Any] = {
        "experiment": cell.folder.parent.parent.name,
        "config": cell.folder.name,
    }
    if place is not None:
        named |= {"task": place.task, "limit": place.limit}
    for name, found in named.items():
        yield _SUMMARY, name, getattr(summary, name), found
    told = CONFIG_NAME.match(summary.config)
    if told:
        yield _SUMMARY, "strategy.k", summary.strategy.k, int(told["k"])
        yield _SUMMARY, "strategy.subset", summary.strategy.subset, told["subset"]
    if place is not None and place.model is None:
        yield _SUMMARY, "model", summary.model, home_model(summary.task)
    elif place is not None and _HUB_ID.fullmatch(summary.model):
        yield _SUMMARY, "model, as folders name it", model_slug(summary.model), place.model
    preset = summary.fingerprint.fields.get("preset")
    if place is not None and preset is not None:
        short = preset.partition(", but ")[0]
        yield _SUMMARY, "fingerprint.fields.preset", short, place.preset or "none"


def _of_columns(cell: Record) -> Iterator[Figure]:
    """The figures of a summary, from its columns."""
    summary, rows = cell.summary, cell.samples
    kind = "generate" if any("steps" in row for row in rows) else "loglikelihood"
    counts = measure.add_counts(rows)
    quality = measure.quality(kind, rows)
    scored = measure.scored_steps(kind, rows)
    guards = measure.guards(
        summary.strategy,
        counts,
        one_forward=summary.estimator == "first-token",
        num_samples=len(rows),
        num_documents=len(rows),
        limited=summary.limit is not None,
    )
    found = {
        "kind": kind,
        "headline": headline(cell).model_dump(),
        "metrics": {name: measure.mean_of(name, rows) for name in summary.metrics},
        "num_requests": measure.num_requests(rows),
        "throughput": measure.throughput(kind, rows, counts).model_dump(),
        "counts": counts,
        "layer_calls": measure.layer_calls(counts).model_dump(),
        "quality": None if quality is None else quality.model_dump(),
        "scored": None if scored is None else scored.model_dump(),
        "guards": [guard.model_dump() for guard in guards],
    }
    written = summary.model_dump(mode="json")
    for key, value in found.items():
        yield from compared(_SUMMARY, written[key], value, key)
    if summary.decided is not None:
        yield _SUMMARY, "decided.documents", summary.decided.documents, len(rows)


def _of_fingerprint(cell: Record) -> Iterator[Figure]:
    """What a summary says of itself beside its identity, and the identity's own digests."""
    summary, identity = cell.summary, cell.summary.fingerprint
    strategy = summary.strategy
    found = {
        "limit": "all" if summary.limit is None else str(summary.limit),
        "strategy": strategy_words(strategy.text, strategy.layers, strategy.n_layers),
        "scoring": summary.estimator or "none",
        DECIDED: None if summary.decided is None else summary.decided.identity,
    }
    for field, prefix in (("source", "src/"), ("experiment", "experiments/")):
        hashes = {name: sha for name, sha in identity.files.items() if name.startswith(prefix)}
        if hashes:
            found[field] = digest_of(hashes)
    for name, value in found.items():
        written = identity.fields.get(name)
        if name == "scoring" and written is not None:
            written = written.partition(",")[0]
        yield _SUMMARY, f"fingerprint.fields.{name}", written, value


def _of_journal(cell: Record, content: JournalContent) -> Iterator[Figure]:
    """Identity, sessions and criteria, which stand in the journal too."""
    summary = cell.summary
    written = summary.model_dump(mode="json")
    identity = content.fingerprint
    if identity is not None:
        whole = summary.fingerprint.whole
        yield from compared(_SUMMARY, whole.model_dump(), identity.model_dump(), "fingerprint")
    found = {"sessions": content.sessions, "criteria": content.rows_by_lock}
    for key, value in found.items():
        place = f"provenance.{key}"
        yield from compared(_SUMMARY, written["provenance"].get(key), value, place)
    if summary.decided is None:
        yield _JOURNAL, "total", content.total, summary.num_requests


def _of_samples(cell: Record, entries: Rows) -> Iterator[Figure]:
    """Samples from the answers in the journal, and columns from both."""
    answers: defaultdict[SampleKey, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        answers[sample_key(dict(entry))].append(entry)
    yield _SUMMARY, "dataset", cell.summary.dataset, measure.dataset([*cell.texts.values()])
    for key, sample in cell.texts.items():
        what = f", row {key[1]} of {key[0]}"
        for name, value in _sample(sample, answers[key]).items():
            if name in sample:
                yield from compared(SAMPLES, sample[name], value, f"{name}{what}")
        for entry in answers[key]:
            if entry["kind"] == "generate":
                yield _JOURNAL, f"num_tokens{what}", entry["num_tokens"], len(entry["tokens"])
            if entry["index"] == 0:
                said = entry["prompt_hash"]
                yield _JOURNAL, f"prompt_hash{what}", said, sample["prompt_hash"]
    yield from _columns(cell, entries)


def _columns(cell: Record, entries: Rows) -> Iterator[Figure]:
    """Columns, from samples and answers."""
    found = {sample_key(row): row for row in unpack(pack(rows_of([*cell.texts.values()], entries)))}
    for key, written in cell.by_key.items():
        again = found.get(key, {})
        for name in (*written, *(again.keys() - written.keys())):
            if entries or name not in FROM_JOURNAL:
                what = f"{name}, row {key[1]} of {key[0]}"
                yield COLUMNS, what, written.get(name, ABSENT), again.get(name, ABSENT)


def _sample(sample: Mapping[str, Any], entries: Rows) -> dict[str, Any]:
    """What a sample says of its prompt and its answers, from these."""
    found: dict[str, Any] = {}
    if "prompt" in sample:
        prompt = sample["prompt"].encode("utf-8", "surrogatepass")
        found["prompt_hash"] = hashlib.sha256(prompt).hexdigest()
    if not entries:
        return found
    entries = sorted(entries, key=lambda one: one["index"])
    generated = entries[0]["kind"] == "generate"
    counts = measure.add_counts(entries)
    found |= {
        "tokens": sum(one["num_tokens" if generated else "scored_tokens"] for one in entries),
        "forwards": measure.total(counts, "forwards"),
        "seconds": sum(one["seconds"] for one in entries),
        "counts": counts,
        "finish": entries[0]["finish"] if generated else None,
    }
    if len({one["index"] for one in entries}) < len(entries):  # windows, in the order of answering
        return found
    said = [one["text" if generated else "loglikelihood"] for one in entries]
    return found | {"output": said[0] if generated and len(said) == 1 else said}


def _of_results(cell: Record) -> Iterator[Figure]:
    """The harness's results, from the columns: of a group those of each task too."""
    summary = cell.summary
    results = read_json(cell.folder / _RESULTS, most=MOST)
    figures = {**results.get("results", {}), **results.get("groups", {})}
    shown = {summary.headline.metric: headline(cell).value, **summary.metrics}
    for metric, value in shown.items():
        written = figures.get(cell.task, {}).get(metric)
        yield _RESULTS, f"results.{cell.task}.{metric}", written, value
    by_leaf: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in cell.samples:
        by_leaf[row["task"]].append(row)
    for leaf, rows in by_leaf.items():
        for metric in shown if leaf in figures and leaf != cell.task else ():
            mean = measure.mean_of(metric, rows)
            if mean is not None:
                yield _RESULTS, f"results.{leaf}.{metric}", figures[leaf].get(metric), mean
        if leaf in results.get("n-samples", {}) and summary.decided is None:
            written = results["n-samples"][leaf].get("effective")
            yield _RESULTS, f"n-samples.{leaf}.effective", written, len(rows)
    if "versions" in results:
        yield from compared(_SUMMARY, summary.task_versions, results["versions"], "task_versions")
