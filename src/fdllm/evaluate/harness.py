"""One evaluation: a task of the harness, answered by the engine, turned into plain data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
from lm_eval import evaluator

from fdllm.config import CodeExecution, Decoding, Evaluating
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.adapter import EngineLM
from fdllm.evaluate.answer import AnswererFactory, ModelAnswerer, OracleAnswerer
from fdllm.evaluate.code import check_consent
from fdllm.evaluate.documents import load_task
from fdllm.evaluate.protocols import WHOLE, Evaluation, Part, Progress, Request, Store
from fdllm.evaluate.queries import Limits
from fdllm.evaluate.samples import join_samples, plain
from fdllm.evaluate.tasks import TaskInfo, task_info
from fdllm.model.weights import Model
from fdllm.reuse import ReuseStrategy

__all__ = ["Evaluation", "Progress", "Request", "Store", "evaluate", "oracle"]

_LOUD = ("lm_eval", "datasets", "huggingface_hub", "transformers", "fsspec", "httpx", "urllib3")


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
        _check_template(model)
    with quiet():
        loaded = load_task(task, asked, code_execution=code_execution)
        for leaf in loaded.leaves.values():
            if leaf.programs is not None:
                leaf.programs.check()
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
        found = evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": loaded.leaves, "groups": loaded.groups},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=asked.chat_template,
            fewshot_as_multiturn=asked.turns,
            confirm_run_unsafe_code=info.runs_code,  # consent was checked above
        )
        samples = join_samples(found.pop("samples"), loaded.leaves, lm.entries, info)
        for leaf in loaded.leaves.values():
            if leaf.programs is not None:
                found["programs"] = leaf.programs.outcomes()
    return _evaluation(info, asked.headline or info.headline, found, samples)


def oracle(task: str) -> AnswererFactory:
    """An answerer that knows: every task must score 1.0 with it, or it is wired wrongly."""
    info = task_info(task)
    return lambda tasks: OracleAnswerer(info, tasks)


def _evaluation(
    info: TaskInfo, headline: str, found: Mapping[str, Any], samples: list[dict[str, Any]]
) -> Evaluation:
    results = json.loads(json.dumps(plain(found)))
    metrics = results["results"].get(info.name, {})
    value = metrics.get(headline)
    if not isinstance(value, (int, float)):
        delivered = sorted(key for key in metrics if "," in key and "_stderr" not in key)
        raise FdllmError(
            f"the harness delivered no '{headline}' for task '{info.name}', only "
            f"{', '.join(delivered)}; name one of them as headline in [evaluation] or the preset"
        )
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample['task']} {sample['doc_id']} {sample['doc_hash']}\n".encode())
    return Evaluation(
        results=results,
        samples=samples,
        headline=headline,
        value=float(value),
        dataset=digest.hexdigest(),
        task_versions=results["versions"],
        num_documents=len(samples),
    )


def _check_numbers(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be 1 or more documents; got {limit}")


def _check_template(model: Model) -> None:
    if model.tokenizer.chat_template is None:
        raise UsageError(
            f"the tokenizer of model '{model.name}' has no chat template; run without one, or "
            "choose a model that was tuned for chat"
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
