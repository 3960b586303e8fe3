"""The lm-eval model under test, with whoever answers in the model's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from lm_eval.api.instance import Instance, OutputType
from transformers import PreTrainedTokenizerBase

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.counts import Counts
from fdllm.core.sampler import Generation
from fdllm.core.scorer import Score
from fdllm.errors import FdllmError
from fdllm.evaluate import adapter
from fdllm.evaluate.adapter import OnDone, RequestLM
from fdllm.evaluate.attempt import Reporter, Store
from fdllm.evaluate.documents import DeterministicTask, LoadedTask, load_run
from fdllm.evaluate.recording import Evaluation
from fdllm.evaluate.requests import EvalRequest
from fdllm.evaluate.tasks import task_info
from fdllm.runs import Cell, CodeExecution, Evaluating, Run
from hub.checkpoint import MemoryStore, Tally, byte_tokenizer

Answer = Callable[[Sequence[EvalRequest], OnDone], None]
CELL = Cell(name="k1_first")


def run_of(
    task: str,
    decoding: Decoding | None = None,
    *,
    limit: int | None = None,
    code_execution: CodeExecution = "refused",
    **asked: Any,
) -> Run:
    """A run of a task; its experiment and cell are looked at by nobody here."""
    return Run.read(
        {
            "experiment": "00_baseline",
            "task": task,
            "cell": CELL,
            "decoding": decoding or Decoding(),
            "evaluating": Evaluating.read(asked, "test"),
            "limit": limit,
            "code_execution": code_execution,
        },
        "test",
    )


class AnsweredLM(RequestLM):
    """The lm-eval model, and somebody else's answers."""

    def __init__(
        self, answer: Answer, run: Run, tokenizer: PreTrainedTokenizerBase, max_positions: int
    ) -> None:
        super().__init__(run, tokenizer, max_positions)
        self._answer = answer

    def answer(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        self._answer(requests, on_done)


@dataclass
class Recorder:
    """Keeps what it was asked, and may break down on the way."""

    asked: list[EvalRequest] = field(default_factory=list)
    breaks_after: int | None = None

    def __call__(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        numbered = list(enumerate(requests))
        if requests[0].target is None:  # rows end in any order; here the last one first
            numbered.reverse()
        for i, request in numbered:
            if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            if request.target is None:
                text = f"answer {request.doc_id}"
                on_done(i, Generation([1, 2], Counts(), 0.5, "stop", text, (1, 1)))
            else:
                on_done(i, Score(-float(request.index), request.index == 0, Counts(), 0.5, 1))


@dataclass
class Oracle:
    """Answers from the document each prompt was made of.

    A task is wired rightly if and only if this scores 1.0: prompt, document, target, filters and
    headline metric then belong together. It computes nothing and counts nothing.

    Attributes:
        tasks: the leaf tasks, by name; :func:`evaluated` fills them in.
    """

    task: str
    tasks: Mapping[str, DeterministicTask] = field(default_factory=dict)

    def __call__(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        for i, request in enumerate(requests):
            if request.target is None:
                solution = task_info(self.task).solution
                target = self.tasks[request.task].doc_to_target(request.doc)
                text = str(request.doc[solution]) if solution is not None else str(target)
                on_done(i, Generation([], Counts(), 0.0, "stop", text))
            else:
                right = request.index == self._gold(request)
                on_done(i, Score(0.0 if right else -100.0, right, Counts(), 0.0, 0))

    def _gold(self, request: EvalRequest) -> int:
        task = self.tasks[request.task]
        if (
            task.multiple_input
        ):  # choices stand in the question, which is the number of the right one
            return int(task.doc_to_text(request.doc))
        target, choices = task.doc_to_target(request.doc), task.doc_to_choice(request.doc)
        if isinstance(target, int):
            return target
        if target in choices:
            return int(choices.index(target))
        raise FdllmError(f"{request}: target {target!r} is none of the choices {choices}")


def evaluated(
    run: Run,
    answer: Answer,
    model: Model,
    *,
    oracle: Oracle | None = None,
    store: Store | None = None,
    progress: Reporter | None = None,
) -> Evaluation:
    """An evaluation with somebody else's answers in the place of the model's.

    Args:
        run: the run.
        answer: who answers.
        model: whose tokenizer and positions hold.
        oracle: who is to know the tasks.
        store: known answers.
        progress: told how far it is.
    """

    def load(run: Run) -> LoadedTask:
        loaded = load_run(run)
        if oracle is not None:
            oracle.tasks = loaded.leaves
        return loaded

    lm = AnsweredLM(answer, run, model.tokenizer, model.spec.max_positions)
    with patch.object(adapter, "load_run", load):
        return adapter.evaluate(lm, store or MemoryStore(), progress or Tally())


def instance(
    prompt: str,
    second: str | dict[str, Any],
    *,
    kind: OutputType = "generate_until",
    doc_id: int = 0,
    index: int = 0,
    task: str = "sums",
) -> Instance:
    return Instance(kind, {"n": doc_id}, (prompt, second), index, metadata=(task, doc_id, 1))


def engine_lm(
    answer: Answer,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    store: MemoryStore | None = None,
    progress: Tally | None = None,
    max_positions: int = 512,
    **asked: Any,
) -> AnsweredLM:
    run = run_of("sums", Decoding(max_new_tokens=40), **asked)
    lm = AnsweredLM(answer, run, tokenizer or byte_tokenizer(), max_positions)
    lm.store, lm.progress = store or MemoryStore(), progress or Tally()
    return lm
