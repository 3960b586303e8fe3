"""One evaluation: a task of the harness, answered by the engine, turned into plain data."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import datasets
from lm_eval import evaluator
from lm_eval.api.model import LM

from fdllm import strictjson
from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.reuse import ReuseStrategy
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.adapter import EngineLM
from fdllm.evaluate.answer import AnswererFactory, ModelAnswerer, OracleAnswerer
from fdllm.evaluate.documents import LoadedTask, load_task
from fdllm.evaluate.humaneval import check_consent
from fdllm.evaluate.protocols import WHOLE, Evaluation, Part, Progress, Request, Store
from fdllm.evaluate.queries import Limits
from fdllm.evaluate.samples import join_samples, plain
from fdllm.evaluate.tasks import TaskInfo, task_info
from fdllm.runs import CodeExecution, Evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Evaluation", "Progress", "Request", "Store", "evaluate", "oracle"]

_LOUD = (
    "lm_eval", "datasets", "huggingface_hub", "transformers", "fsspec", "httpx", "urllib3",
    "math_verify",
)  # fmt: skip


def evaluate(
    model: Model,
    task: str,
    asked: Evaluating,
    *,
    decoding: Decoding,
    strategy: ReuseStrategy[Any],
    limit: int | None,
    store: Store,
    progress: Progress,
    code_execution: CodeExecution = "refused",
    answerer: AnswererFactory | None = None,
    part: Part = WHOLE,
) -> Evaluation:
    """Evaluate a model on a task.

    Args:
        model: from :func:`fdllm.load_model`, with its tokenizer.
        task: a name of :data:`fdllm.evaluate.tasks.TASKS`.
        asked: how the task is asked.
        decoding: settings; they win over the sampling settings of a task's definition, while a
            length limit in the definition wins over ``decoding.max_new_tokens``, unless
            ``asked.whole_blocks``.
        strategy: layer reuse, active in generation and in scoring.
        limit: documents of each leaf task at most, so of every subject of a group; None is all.
        store: answers that are already known; new ones are put there as they come.
        progress: told how far it is.
        code_execution: consent to run code that the model writes.
        answerer: who answers in the model's place; see :func:`oracle`.
        part: which documents to answer, and until when.

    Raises:
        EndedEarly: ``part`` said that no further request may be begun.
        ShardAnswered: ``part`` is a shard, and all of it is answered.
        UsageError: the task is unknown, a number makes no sense, the model has no chat template,
            or the task runs code and nobody agreed to that.
        FdllmError: documents cannot be had, a prompt leaves no room for its answer, or the
            estimator is invalid for the task.
    """
    info = task_info(task)
    check_consent(info, code_execution)
    _check_numbers(limit)
    if asked.chat_template:
        check_template(model.tokenizer, model.name)
    with quiet():
        loaded = load_task(task, asked, code_execution=code_execution)
        prove_confinement(loaded)
        make = answerer or (lambda _: ModelAnswerer(model, decoding, strategy, asked))
        lm = EngineLM(
            model.tokenizer,
            make(loaded.leaves),
            asked,
            limits=Limits.of(model, decoding),
            store=store,
            progress=progress,
            name=model.name,
            part=part,
        )
        found = ask(lm, loaded, asked, limit=limit)
        samples = join_samples(found.pop("samples"), loaded.leaves, lm.entries, info)
        for leaf in loaded.leaves.values():
            if leaf.programs is not None:
                found["programs"] = leaf.programs.outcomes()
    return _evaluation(info, asked.headline or info.headline, found, samples)


def ask(
    lm: LM,
    loaded: LoadedTask,
    asked: Evaluating,
    *,
    limit: int | None = None,
    documents: Mapping[str, list[int]] | None = None,
) -> dict[str, Any]:
    """Put a task's requests to an lm-eval model, and grade what it says: the harness's results.

    Args:
        lm: answers.
        loaded: the task; who calls has the user's consent where its metric runs programs.
        asked: how it is asked. A model without a tokenizer is asked in the harness's plain words.
        limit: documents of each leaf task at most.
        documents: the documents of each leaf task, sorted; None is all.
    """
    wrapped = asked.chat_template and isinstance(lm, EngineLM)
    results: dict[str, Any] = evaluator.evaluate(
        lm=lm,
        task_dict={"tasks": loaded.leaves, "groups": loaded.groups},
        limit=limit,
        samples=documents,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=wrapped,
        fewshot_as_multiturn=wrapped and asked.turns,
        confirm_run_unsafe_code=True,
    )
    return results


def prove_confinement(loaded: LoadedTask) -> None:
    """Try the sandbox of a task that runs programs, ahead of answers that could not be scored.

    Raises:
        FdllmError: programs cannot be confined on this machine.
    """
    for leaf in loaded.leaves.values():
        if leaf.programs is not None:
            leaf.programs.check()


def oracle(task: str) -> AnswererFactory:
    """An answerer that knows: every task must score 1.0 with it, or it is wired wrongly."""
    info = task_info(task)
    return lambda tasks: OracleAnswerer(info, tasks)


def _evaluation(
    info: TaskInfo, headline: str, found: Mapping[str, Any], samples: list[dict[str, Any]]
) -> Evaluation:
    results = strictjson.loads(strictjson.dumps(plain(found)))
    metrics = metrics_of(results, info, headline)
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample['task']} {sample['doc_id']} {sample['doc_hash']}\n".encode())
    return Evaluation(
        results=results,
        samples=samples,
        headline=headline,
        value=metrics[headline],
        dataset=digest.hexdigest(),
        task_versions=results["versions"],
        num_documents=len(samples),
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


def _check_numbers(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be 1 or more documents; got {limit}")


def check_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a chat without a template.

    Raises:
        UsageError: the tokenizer has none.
    """
    if tokenizer.chat_template is None:
        raise UsageError(
            f"the tokenizer of model '{name}' has no chat template; run without one, or choose a "
            "model that was tuned for chat"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Errors only from the libraries beneath, and no bars; restored on the way out."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    bars = datasets.utils.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.utils.enable_progress_bars()
