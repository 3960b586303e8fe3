"""A record's documents asked and graded once more from its journal, by the run's own writer.

Summary, samples, results and columns are a pure function of a journal and a run, so whole files are
made anew and compared, value by value. No model is loaded: its answers are in the journal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fdllm import strictjson
from fdllm.errors import first_line
from fdllm.outside import read_json
from fdllm.plan import Planner
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import read_journal
from fdllm.record.paths import SAMPLES, model_slug
from fdllm.record.per_document import MOST
from fdllm.report.leaves import ABSENT, Figure, compared
from fdllm.report.records import Record, sample_key
from fdllm.runs import Run

if TYPE_CHECKING:
    from fdllm.evaluate.again import KeptLM
    from fdllm.evaluate.documents import LoadedTask

_GIVEN = ("peak_memory", "files")  # by the machine alone; and of the files, checked as such


class AskedAgain:
    """Makes records anew, and remembers which tasks cannot be asked here.

    Args:
        planner: knows the experiment and the model.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._cannot: dict[tuple[str, str], str] = {}  # why, by task and model

    def figures(self, cell: Record, run: Run, notes: list[str]) -> Iterator[Figure]:
        """Every value of the record's files, and what the run's own writer makes of its journal.

        ``notes`` gets why it cannot be made anew.

        Raises:
            FdllmError: the journal does not answer what the run asks, or a file cannot be read.
        """
        from fdllm.evaluate.again import prepare  # noqa: PLC0415 - the harness: seconds

        now = self._planner.fingerprint(run)
        changed = now.differences(cell.summary.fingerprint.whole)
        where = run.task, run.model.name
        why = "; ".join(changed) or self._cannot.get(where, "")
        if why:
            notes.append(f"not asked again: {why}")
            return
        try:
            lm, loaded = prepare(run)
        except Exception as error:  # noqa: BLE001 - whatever a tokenizer or a data set raises
            self._cannot[where] = first_line(error, type(error).__name__)
            notes.append(f"not asked again: {self._cannot[where]}")
            return
        yield from self._made(cell, run, now, lm, loaded)

    def _made(
        self, cell: Record, run: Run, now: Fingerprint, lm: KeptLM, loaded: LoadedTask
    ) -> Iterator[Figure]:
        from fdllm.evaluate.again import evaluate_again  # noqa: PLC0415 - as above
        from fdllm.evaluate.recording import describe_strategy, fill_summary  # noqa: PLC0415

        content, decided = read_journal(cell.folder / "journal.jsonl"), cell.summary.decided
        documents: defaultdict[str, set[int]] = defaultdict(set)
        for task, number in cell.by_key:
            documents[task].add(number)
        found, follows = evaluate_again(lm, loaded, content.entries, documents if decided else None)
        found = replace(found, decided=decided)
        # What is not known here (the revision of a checkpoint that is not on this machine) is taken
        # from the record, as planning does.
        strategy, recorded = cell.summary.strategy, cell.summary.fingerprint.fields
        n_layers = self._planner.model(run.model).n_layers or strategy.n_layers
        fields = {name: recorded.get(name) if v is None else v for name, v in now.fields.items()}
        summary = fill_summary(
            run,
            found,
            strategy=describe_strategy(run, self._planner.strategy(run, n_layers), n_layers),
            identity=now.model_copy(update={"fields": fields}),
            peak_memory=cell.summary.peak_memory,
            journal=content,
        ).model_dump(mode="json")
        written = cell.summary.model_dump(mode="json")
        if written["model"] == model_slug(run.model.name):  # what a release calls a folder
            summary["model"] = written["model"]
        for name in _GIVEN:
            summary[name] = written[name]
        summary["provenance"]["finished"] = written["provenance"].get("finished")
        yield from compared("summary.json", written, _plain(summary))
        results = read_json(cell.folder / "results.json", most=MOST)
        yield from compared("results.json", results, found.results)
        samples = {sample_key(sample): sample for sample in found.samples}
        for key in {**cell.texts, **samples}:
            what = f"row {key[1]} of {key[0]}"
            yield from compared(
                SAMPLES, cell.texts.get(key, ABSENT), samples.get(key, ABSENT), what
            )
        for asked, facts in follows.items():
            answer = content.entries[asked]
            what = f"row {facts['doc_id']} of {facts['task']}"
            for name, value in facts.items():
                yield "journal.jsonl", f"{name}, {what}", answer.get(name, ABSENT), value


def _plain(data: Any) -> Any:  # noqa: ANN401 - any JSON value
    return strictjson.loads(strictjson.dumps(data))
