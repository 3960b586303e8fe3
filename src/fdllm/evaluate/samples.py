"""From the harness's results to an evaluation: one mapping a document, joined with its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from fdllm import strictjson
from fdllm.core.counts import Counts
from fdllm.errors import FdllmError
from fdllm.evaluate.boxed import WholeText
from fdllm.evaluate.documents import DeterministicTask, LoadedTask
from fdllm.evaluate.recording import Evaluation, text_hash
from fdllm.evaluate.tasks import TaskInfo, task_info
from fdllm.record import measure
from fdllm.runs import Run

EntriesByDocument = Mapping[tuple[str, int], Sequence[dict[str, Any]]]


def evaluation_of(
    found: dict[str, Any], loaded: LoadedTask, entries: EntriesByDocument, run: Run
) -> Evaluation:
    """What the harness delivered as plain data, with the journal entries of each document.

    Raises:
        FdllmError: a prompt does not hold its document's text, or there is no headline.
    """
    info = task_info(run.task, run.include)
    samples = join_samples(found.pop("samples"), loaded.leaves, entries, info)
    for leaf in loaded.leaves.values():
        if leaf.programs is not None:
            found["programs"] = leaf.programs.outcomes()
    results = strictjson.loads(strictjson.dumps(plain(found)))
    headline = run.evaluating.headline or info.headline
    metrics = metrics_of(results, info, headline)
    return Evaluation(
        results=results,
        samples=samples,
        headline=headline,
        value=metrics[headline],
        dataset=measure.dataset(samples),
        task_versions=results["versions"],
        num_documents=len(samples),
        entries=[entry for answers in entries.values() for entry in answers],
        metrics=metrics,
    )


def metrics_of(results: Mapping[str, Any], info: TaskInfo, headline: str) -> dict[str, float]:
    """A task's figures, by ``metric,filter``; of a group, those over all of its subtasks.

    Raises:
        FdllmError: the headline is not among them.
    """
    found = results["results"].get(info.name, {})
    metrics = {
        key: float(value)
        for key, value in found.items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    }
    if headline not in metrics:
        raise FdllmError(
            f"the harness delivered no '{headline}' for task '{info.name}', only "
            f"{', '.join(sorted(metrics))}; name one of them as headline in [evaluation] or the "
            "preset"
        )
    return metrics


def join_samples(
    logged: Mapping[str, Sequence[Mapping[str, Any]]],
    tasks: Mapping[str, DeterministicTask],
    entries: EntriesByDocument,
    info: TaskInfo,
) -> list[dict[str, Any]]:
    """One mapping a document, sorted by leaf task and document, from one a document and filter.

    Raises:
        FdllmError: a prompt does not hold its document's text.
    """
    samples = []
    for task in sorted(logged):
        by_document: dict[int, list[Mapping[str, Any]]] = {}
        for sample in logged[task]:
            by_document.setdefault(int(sample["doc_id"]), []).append(sample)
        for doc_id in sorted(by_document):
            filtered = by_document[doc_id]
            check_prompt(filtered[0], tasks[task], task)
            joined = _join(task, doc_id, filtered, entries[task, doc_id], info)
            programs = tasks[task].programs
            if programs is not None:
                written = [one for sample in filtered for one in sample["filtered_resps"][0]]
                joined["programs"] = [programs.reason(one, joined["target"]) for one in written]
            samples.append(joined)
    return samples


def check_prompt(sample: Mapping[str, Any], task: DeterministicTask, name: str) -> None:
    """Prompt and answer must be of the same document.

    Raises:
        FdllmError: the text of the document that was scored is not in the prompt that was sent.
    """
    text = task.doc_to_text(sample["doc"])
    prompts = [str(arguments[0]) for arguments in sample["arguments"]]
    # Where choices are put into the question, each has a prompt of its own.
    texts = task.doc_to_choice(sample["doc"]) if task.multiple_input else [text] * len(prompts)
    # A chat template may strip the message it wraps; acc_mutual_info asks without a question too.
    if any(
        not isinstance(text, str) or (prompt and text.strip() not in prompt)
        for text, prompt in zip(texts, prompts, strict=False)
    ):
        raise FdllmError(
            f"task '{name}', document {sample['doc_id']}: the prompt that was sent does not hold "
            "the text of the document it is scored against; the task's documents changed between "
            "accesses, or the chat template rewrites them, and its score would mean nothing"
        )


def _join(
    task: str,
    doc_id: int,
    filtered: Sequence[Mapping[str, Any]],
    entries: Sequence[Mapping[str, Any]],
    info: TaskInfo,
) -> dict[str, Any]:
    first = filtered[0]
    prompt = str(first["arguments"][0][0])
    counts = sum((Counts.from_dict(entry["counts"]) for entry in entries), Counts())
    generated = entries[0]["kind"] == "generate"
    outputs = [entry["text" if generated else "loglikelihood"] for entry in entries]
    joined = {
        "task": task,
        "doc_id": doc_id,
        "doc_hash": first["doc_hash"],
        "prompt_hash": text_hash(prompt),
        "prompt": prompt,
        "target": plain(first["target"]),
        "output": outputs[0] if generated and len(outputs) == 1 else outputs,
        "filtered": {
            sample["filter"]: plain(_single(sample["filtered_resps"], alone=generated))
            for sample in filtered
            # The whole text, beside filters, stands there already: it is the output.
            if len(filtered) == 1 or not isinstance(sample["filtered_resps"][0], WholeText)
        },
        "metrics": {
            f"{metric},{sample['filter']}": plain(sample[metric])
            for sample in filtered
            for metric in sample["metrics"]
        },
        "tokens": sum(entry["num_tokens" if generated else "scored_tokens"] for entry in entries),
        "forwards": counts.forwards,
        "seconds": sum(entry["seconds"] for entry in entries),
        "counts": counts.as_dict(),
        "finish": entries[0]["finish"] if generated else None,
    }
    if info.cluster_by is not None:
        joined[info.cluster_by] = task.removeprefix(f"{info.name}_")
    return joined


def _single(values: Sequence[Any], *, alone: bool) -> Any:  # noqa: ANN401
    return values[0] if alone and len(values) == 1 else list(values)


def plain(value: Any) -> Any:  # noqa: ANN401 - anything the harness logs
    """A JSON value with the same content, the same in every process.

    Numpy scalars become numbers, tuples lists, functions their names; NaN and infinity, which the
    harness gives where a spread has no meaning, become null.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.__qualname__ if isinstance(value, FunctionType) else str(value)
