"""One document of a task, decoded as its run does it: the harness's prompt, the run's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance

from fdllm.core.checkpoint import Model
from fdllm.core.config import Unmask
from fdllm.core.counts import Counts
from fdllm.core.drafting import Drafting
from fdllm.core.engine import resolve
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.sampler import Generation
from fdllm.core.scorer import Score
from fdllm.core.unmask import by_threshold
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.adapter import EngineLM, OnDone, ask
from fdllm.evaluate.documents import DeterministicTask, LoadedTask, load_run, quiet
from fdllm.evaluate.requests import EvalRequest
from fdllm.evaluate.samples import plain
from fdllm.runs import Run
from fdllm.trace.steps import RowTrace, Trace, tokens_in
from fdllm.trace.watcher import Watcher, assemble


@dataclass(frozen=True)
class DocumentName:
    """Which document of a task."""

    number: int  # its number in the leaf task
    subtask: str | None = None  # the leaf task; None where the task has no others

    @classmethod
    def parse(cls, text: str) -> DocumentName:
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


class TracingLM(EngineLM):
    """Answers one document as the run's own model does, one row after the other, and no other.

    A row's tokens and scores never depend on the rows beside it, so this is what the run computes.
    Choices of one question are scored apart, each with all of its forwards: a run shares those
    that are the same, and books them once.

    Attributes:
        rows: the rows so far.
    """

    def __init__(
        self,
        run: Run,
        model: Model,
        strategy: ReuseStrategy[Any],
        unmask: Unmask,
        *,
        number: int,
        staleness: bool,
    ) -> None:
        alone = run.evaluating.model_copy(update={"prefix_cache_gib": 0.0})
        super().__init__(run.model_copy(update={"evaluating": alone}), model, strategy)
        self.rows: list[RowTrace] = []
        self._rule, self._number, self._staleness = unmask, number, staleness
        self._refresh_reuse = strategy.refresh_reuse

    def warm_up(self) -> None:
        """Nobody asks for the speed."""

    def answer(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        """Decode or score each of the document's by itself, watched; give the others nothing."""
        mine = [i for i, request in enumerate(requests) if request.doc_id == self._number]
        for i, request in enumerate(requests):
            if i not in mine:
                nothing = Generation([], Counts(), 0.0, "stop", "")
                on_done(i, nothing if request.target is None else Score())
                continue
            self.hook = watcher = Watcher(self._staleness)
            self.unmask = watcher.rule(self._rule)
            found: dict[int, Any] = {}
            super().answer([request], found.__setitem__)
            title = "answer" if len(mine) == 1 else f"answer {len(self.rows) + 1} of {len(mine)}"
            self.rows.append(self._row(request, found[0], watcher, title))
            on_done(i, found[0])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:  # noqa: ARG002
        """Refuse whole documents."""
        raise FdllmError(
            "requests of kind 'loglikelihood_rolling' cannot be traced; see tasks of fdllm sweep"
        )

    def _row(
        self, request: EvalRequest, found: Generation | Score, watcher: Watcher, title: str
    ) -> RowTrace:
        forwards = assemble(
            watcher.seen,
            block_size=self.decoding.block_size,
            refresh_reuse=self._refresh_reuse,
        )
        row = partial(
            RowTrace, prompt=request.tokens, forwards=forwards, counts=found.counts.as_dict()
        )
        if isinstance(found, Generation):
            tokens, text = tuple(found.tokens), str(found.text)
            return row(title=title, tokens=tokens, text=text, finish=found.finish)
        return row(
            title=f"choice {request.index}: {str(request.target).strip()}",
            tokens=request.target_tokens,
            text=str(request.target),
            loglikelihood=found.loglikelihood,
            is_greedy=found.is_greedy,
        )


def trace_document(
    model: Model,
    run: Run,
    strategy: ReuseStrategy[Any],
    document: DocumentName,
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
        UsageError: there is no such document, its metric runs programs and nobody agreed, or the
            strategy drafts.
        FdllmError: documents cannot be had, or the prompt leaves no room for an answer.
    """
    if isinstance(strategy, Drafting):
        raise UsageError(
            f"config '{run.cell.name}' verifies drafts: its steps are those of k=1, so trace that"
        )
    with quiet():
        loaded = load_run(run)
        leaf = _leaf(loaded.leaves, document, run)
        name, number = str(leaf.task_name), document.number
        lm = TracingLM(run, model, strategy, unmask, number=number, staleness=staleness)
        # Worked examples are drawn document by document from one generator, so the documents ahead
        # are asked too: that makes the prompt the run's.
        found = ask(lm, LoadedTask({name: leaf}, {}), run.evaluating, limit=number + 1)
        samples = [one for one in found["samples"][name] if one["doc_id"] == number]
        expected = _expected(leaf, samples[0]["doc"])
    rows = tuple(lm.rows)
    return Trace(
        run=run,
        task=name,
        doc_id=number,
        strategy=repr(strategy),
        n_layers=model.n_layers,
        decoding=resolve(run.decoding, model),
        pieces={t: str(model.tokenizer.decode([t])) for t in sorted(tokens_in(rows))},
        prompt=str(samples[0]["arguments"][0][0]),
        expected=expected,
        metrics={
            f"{metric},{one['filter']}": plain(one[metric])
            for one in samples
            for metric in one["metrics"]
        },
        rows=rows,
        staleness=staleness,
    )


def _leaf(
    leaves: Mapping[str, DeterministicTask], document: DocumentName, run: Run
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


def _expected(leaf: DeterministicTask, doc: Mapping[str, Any]) -> str:
    target = leaf.doc_to_target(doc)
    if isinstance(target, int) and str(leaf.OUTPUT_TYPE) == "multiple_choice":
        return str(leaf.doc_to_choice(doc)[target])
    return str(target)
