"""One document of a task, decoded as its run does it: the harness's prompt, the run's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from fdllm.core.checkpoint import Model
from fdllm.core.engine import resolve
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.unmask import Unmask, by_threshold
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.documents import DeterministicTask, load_task, quiet
from fdllm.evaluate.samples import plain
from fdllm.runs import Evaluating, Run
from fdllm.trace.steps import Trace, tokens_in
from fdllm.trace.tracing_lm import TracingLM


@dataclass(frozen=True)
class Document:
    """Which document of a task.

    Attributes:
        number: its number in the leaf task.
        subtask: the leaf task; None where the task has no others.
    """

    number: int
    subtask: str | None = None

    @classmethod
    def parse(cls, text: str) -> Document:
        """Read ``3`` or ``mmlu_anatomy:3``.

        Raises:
            UsageError: it has another form.
        """
        subtask, _, number = text.rpartition(":")
        if not number.isdecimal():
            raise UsageError(
                f"'{text}' names no document; use its number from 0 on, for example 3, or "
                "mmlu_anatomy:3 where the task is a group"
            )
        return cls(int(number), subtask or None)


def trace_document(
    model: Model,
    run: Run,
    strategy: ReuseStrategy[Any],
    document: Document,
    *,
    unmask: Unmask = by_threshold,
    staleness: bool = False,
) -> Trace:
    """Decode, or score, one document as its run does, and keep every forward.

    Args:
        model: from :func:`fdllm.load_model`, with its tokenizer.
        run: what to do; its limit only bounds which documents there are.
        strategy: the run's layer reuse.
        document: which.
        unmask: the experiment's rule, where it brings one.
        staleness: compute how far each reused value is from a fresh one. It takes a forward more
            for each that reuses, and changes no token.

    Raises:
        UsageError: there is no such document, or the first-token estimator scores the task.
        FdllmError: documents cannot be had, or the prompt leaves no room for an answer.
    """
    with quiet():
        asked = run.evaluating
        loaded = load_task(run.task, asked)
        leaf = _leaf(loaded.leaves, document, run)
        lm = TracingLM(run, model, strategy, unmask, staleness=staleness)
        instances = _requests(leaf, lm, document.number, asked)
        _answer(lm, instances)
        metrics = _metrics(leaf, instances)
    doc = instances[0].doc
    decoding = resolve(run.decoding, model)
    rows = tuple(lm.rows)
    return Trace(
        experiment=run.experiment,
        task=str(leaf.task_name),
        doc_id=document.number,
        config=run.cell.name,
        model=run.model.name,
        strategy=repr(strategy),
        n_layers=model.n_layers,
        block_size=decoding.block_size,
        small_block_size=decoding.small_block_size,
        threshold=decoding.threshold,
        mask_id=int(decoding.mask_id or 0),
        pieces={t: str(model.tokenizer.decode([t])) for t in sorted(tokens_in(rows))},
        prompt=str(instances[0].args[0]),
        expected=_expected(leaf, doc),
        metrics=metrics,
        rows=rows,
        staleness=staleness,
    )


def _leaf(
    leaves: Mapping[str, DeterministicTask], document: Document, run: Run
) -> DeterministicTask:
    name = document.subtask or (run.task if len(leaves) == 1 else None)
    if name is None or name not in leaves:
        names = ", ".join(sorted(leaves))
        given = f"'{name}' is none of them" if name else "name one of them"
        raise UsageError(
            f"task '{run.task}' consists of {names}; {given}, for example --doc "
            f"{min(leaves)}:{document.number}"
        )
    leaf = leaves[name]
    num_documents = min(len(leaf.eval_docs), run.limit or len(leaf.eval_docs))
    if document.number >= num_documents:
        raise UsageError(
            f"task '{name}' has documents 0 to {num_documents - 1}"
            f"{'' if run.limit is None else f' under --limit {run.limit}'}; got {document.number}"
        )
    return leaf


def _requests(
    leaf: DeterministicTask, lm: TracingLM, number: int, asked: Evaluating
) -> list[Instance]:
    """The document's requests. Those ahead of it are built too, and dropped.

    Worked examples are drawn document by document from one generator, so this is what makes the
    prompt the run's.
    """
    leaf.build_all_requests(
        limit=number + 1,
        apply_chat_template=asked.chat_template,
        fewshot_as_multiturn=asked.turns,
        chat_template=lm.apply_chat_template if asked.chat_template else None,
        tokenizer_name=lm.tokenizer_name if asked.chat_template else "",
    )
    return leaf.keep_only(number)


def _answer(lm: TracingLM, instances: Sequence[Instance]) -> None:
    kind = instances[0].request_type
    asked = [instance for instance in instances for _ in range(instance.repeats)]
    if kind == "generate_until":
        answers: Sequence[Any] = lm.generate_until(asked)
    elif kind == "loglikelihood":
        answers = lm.loglikelihood(asked)
    else:
        raise FdllmError(f"requests of kind '{kind}' cannot be traced; see tasks of fdllm sweep")
    for instance, answer in zip(asked, answers, strict=True):
        instance.resps.append(answer)


def _metrics(leaf: DeterministicTask, instances: Sequence[Instance]) -> dict[str, Any]:
    """The task's metrics of the document, under the harness's names."""
    leaf.apply_filters()
    found = {}
    for name in instances[0].filtered_resps:
        answers = [instance.filtered_resps[name] for instance in instances]
        for metric, value in leaf.process_results(instances[0].doc, answers).items():
            found[f"{metric},{name}"] = plain(value)
    return found


def _expected(leaf: DeterministicTask, doc: Mapping[str, Any]) -> str:
    target = leaf.doc_to_target(doc)
    if isinstance(target, int) and str(leaf.OUTPUT_TYPE) == "multiple_choice":
        return str(leaf.doc_to_choice(doc)[target])
    return str(target)
