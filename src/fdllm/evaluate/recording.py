"""The record of an evaluation: its summary's figures, and its files in the order that is safe."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fdllm import strictjson
from fdllm.core.reuse import ReuseStrategy
from fdllm.errors import FdllmError
from fdllm.evaluate.tasks import task_info
from fdllm.record import measure, per_document
from fdllm.record.atomic import write_bytes, write_json, write_text
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import JournalContent
from fdllm.record.paths import RunPaths
from fdllm.record.provenance import utc_now
from fdllm.record.summary import Decided, PeakMemory, StrategyRecord, Summary, describe_file
from fdllm.runs import Run


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    # the harness's results, JSON-able; written as ``results.json``. Groups carry their own metrics
    # and those of every subject.
    results: dict[str, Any]
    # one mapping a document, sorted by task and document; lines of ``samples.jsonl``
    samples: list[dict[str, Any]]
    headline: str  # the key of the task's headline metric
    value: float  # its value
    dataset: str  # SHA-256 over the documents used, in order
    task_versions: dict[str, Any]  # the harness's version of every task and group
    num_documents: int  # documents evaluated
    entries: list[dict[str, Any]]  # journal entries of the answers, in the order asked
    # all of the task's figures, by ``metric,filter``
    metrics: dict[str, float] = field(default_factory=dict)
    decided: Decided | None = None  # where it ended early because its criteria were decided

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The documents as every figure needs them; ``columns.json.xz``."""
        return per_document.rows_of(self.samples, self.entries)


def text_hash(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def describe_strategy(run: Run, strategy: ReuseStrategy[Any], n_layers: int) -> StrategyRecord:
    """What the record says of a strategy."""
    return StrategyRecord(
        text=repr(strategy),
        k=run.cell.k,
        subset=run.cell.subset,
        layers=strategy.layer_subset(n_layers),
        n_layers=n_layers,
        reuses=strategy.reuses,
    )


def fill_summary(
    run: Run,
    found: Evaluation,
    *,
    strategy: StrategyRecord,
    identity: Fingerprint,
    peak_memory: PeakMemory,
    journal: JournalContent,
) -> Summary:
    """The summary of an evaluation, all but its files' hashes.

    Raises:
        FdllmError: a guard failed.
    """
    kind, rows = task_info(run.task, run.include).kind, found.rows
    counts = measure.add_counts(rows)
    estimator = run.evaluating.scoring if kind == "loglikelihood" else None
    guards = measure.guards(
        strategy,
        counts,
        one_forward=estimator == "first-token",
        limited=run.limit is not None,
        num_samples=len(found.samples),
        num_documents=found.num_documents,
    )
    for guard in guards:
        if not guard.passed and guard.level == "error":
            raise FdllmError(
                f"guard '{guard.name}': {guard.detail}. No record is written; the answers are kept "
                "in journal.jsonl"
            )
    return Summary(
        experiment=run.experiment,
        task=run.task,
        config=run.cell.name,
        limit=run.limit,
        model=run.model.name,
        kind=kind,
        estimator=estimator,
        headline=measure.headline(found.headline, found.value, rows),
        metrics=measure.beside(found.headline, found.metrics, rows),
        num_requests=measure.num_requests(rows),
        throughput=measure.throughput(kind, rows, counts),
        peak_memory=peak_memory,
        counts=counts,
        layer_calls=measure.layer_calls(counts),
        quality=measure.quality(kind, rows),
        scored=measure.scored_steps(kind, rows),
        strategy=strategy,
        guards=guards,
        files={},
        fingerprint=identity if found.decided is None else identity.decided(found.decided.identity),
        dataset=found.dataset,
        task_versions=found.task_versions,
        decided=found.decided,
        provenance={
            "sessions": [dict(one) for one in journal.sessions],
            "criteria": journal.rows_by_lock,  # rows by the criteria that were in force
            "finished": utc_now(),
            "exceptions": list(run.exceptions),
        },
    )


def write_record(paths: RunPaths, summary: Summary, found: Evaluation) -> Summary:
    """Write samples, results and columns, then the summary, then what git keeps of it.

    Returns:
        The summary with its files' hashes.

    Raises:
        FdllmError: a file cannot be written; without a summary there is no record.
    """
    lines = [strictjson.dumps(sample) + "\n" for sample in found.samples]
    columns = per_document.pack(found.rows)
    write_text(paths.samples, "".join(lines))
    write_json(paths.results, found.results)
    write_bytes(paths.columns, columns)
    files = {
        paths.samples.name: describe_file(paths.samples, len(lines)),
        paths.results.name: describe_file(paths.results, None),
        paths.columns.name: describe_file(paths.columns, None),
    }
    whole = summary.model_copy(update={"files": files})
    write_json(paths.summary, whole.model_dump(mode="json"))
    published = paths.published
    write_bytes(published.columns, columns)
    write_json(published.summary, whole.model_dump(mode="json"))
    return whole
