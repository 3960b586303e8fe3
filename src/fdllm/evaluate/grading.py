"""Anyone's answers, graded as a run's are: the task's own filters and metrics, and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from fdllm import strictjson
from fdllm.errors import UsageError
from fdllm.evaluate.adapter import ask
from fdllm.evaluate.documents import DeterministicTask, LoadedTask, load_run, quiet
from fdllm.evaluate.requests import until_strings
from fdllm.evaluate.samples import metrics_of, plain
from fdllm.evaluate.tasks import task_info
from fdllm.outside import OutsideError, read_bytes
from fdllm.runs import Run

_FORM = '{"doc_id": 0, "text": "..."}, and "task" where the task is a group'
_MOST = 1 << 30  # bytes of a file of answers
Answers = Mapping[str, Mapping[int, str]]  # leaf task, document, text


@dataclass(frozen=True)
class Grade:
    """What answers are worth."""

    metric: str  # the task's headline, ``metric,filter``
    value: float  # its value
    metrics: dict[str, float]  # all of the task's figures
    num_samples: int  # documents with an answer; the others are left out


class _AnswersLM(LM):  # type: ignore[misc] # lm-eval is untyped
    """Says what a file says. A text ends ahead of the task's ``until`` strings, as a run's does."""

    def __init__(
        self, answers: Answers, documents: Mapping[str, Sequence[int]], *, ignore_until: bool
    ) -> None:
        super().__init__()
        self._answers, self._documents, self._ignore_until = answers, documents, ignore_until

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [self._text(request) for request in requests]

    def _text(self, request: Instance) -> str:
        task = str(request.task_name)
        # The harness numbers a selection of documents anew.
        text = self._answers[task][self._documents[task][int(request.doc_id)]]
        until = until_strings(dict(request.args[1]), task)
        for end in () if self._ignore_until else until:
            text = text.partition(end)[0]
        return text

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


def grade(run: Run, path: Path) -> Grade:
    """Grade the answers of a file.

    Args:
        run: the task and how it is asked, its limit too; model and strategy are not looked at.
        path: a JSON object a line: ``doc_id``, ``text``, and ``task`` (the leaf) for a group.

    Raises:
        UsageError: the task is multiple choice, nobody agreed to run its programs, or a line is
            wrong; it is named.
        FdllmError: documents cannot be had, or programs cannot be confined.
    """
    info = task_info(run.task, run.include)
    if info.kind == "loglikelihood":
        raise UsageError(
            f"task '{run.task}' is multiple choice: choices are ranked by their likelihood, and "
            "there is no text to grade; use fdllm eval"
        )
    lines = _read_lines(path)
    # Worked examples change no grade, and the prompt is not looked at.
    asked = run.evaluating.model_copy(update={"num_fewshot": 0})
    with quiet():
        loaded = load_run(run.model_copy(update={"evaluating": asked}))
        answers = _by_document(lines, loaded.leaves, path, run.limit)
        documents = {task: sorted(texts) for task, texts in answers.items()}
        named = LoadedTask({task: loaded.leaves[task] for task in documents}, loaded.groups)
        lm = _AnswersLM(answers, documents, ignore_until=asked.ignore_until)
        found = ask(lm, named, asked, documents=documents)
    headline = asked.headline or info.headline
    metrics = metrics_of(plain(found), info, headline)
    return Grade(headline, metrics[headline], metrics, sum(map(len, answers.values())))


def _read_lines(path: Path) -> dict[int, Mapping[str, Any]]:
    """The objects of a file, by their line's number from 1."""
    try:
        text = read_bytes(path, most=_MOST).decode("utf-8")
    except OutsideError as error:
        raise UsageError(f"--answers {error}; a line is {_FORM}") from None
    except UnicodeDecodeError as error:
        broken = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {broken}: not UTF-8; a line is {_FORM}") from None
    lines: dict[int, Mapping[str, Any]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = strictjson.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UsageError(f"{path}, line {number}: not a JSON object; a line is {_FORM}")
        lines[number] = found
    return lines


def _by_document(
    lines: Mapping[int, Mapping[str, Any]],
    leaves: Mapping[str, DeterministicTask],
    path: Path,
    limit: int | None,
) -> dict[str, dict[int, str]]:
    """Texts by leaf task and document; documents past the limit are left out.

    Raises:
        UsageError: a line names no document of the task, one that an earlier line names, or no
            text; or none is left.
    """
    answers: dict[str, dict[int, str]] = {}
    for number, line in lines.items():
        where = f"{path}, line {number}"
        task = _leaf(line, leaves, where)
        doc_id, text, known = line.get("doc_id"), line.get("text"), len(leaves[task].eval_docs)
        if type(doc_id) is not int or not 0 <= doc_id < known:
            raise UsageError(
                f"{where}: doc_id is {doc_id!r}; documents of task '{task}' are 0 to {known - 1}"
            )
        if not isinstance(text, str):
            given = "missing" if "text" not in line else f"{text!r:.40}, not a string"
            raise UsageError(f"{where}: text is {given}; a line is {_FORM}")
        if doc_id in answers.setdefault(task, {}):
            raise UsageError(f"{where}: document {doc_id} of task '{task}' has an answer already")
        answers[task][doc_id] = text
    if limit is not None:
        answers = {t: {d: x for d, x in texts.items() if d < limit} for t, texts in answers.items()}
    answers = {task: texts for task, texts in answers.items() if texts}
    if not answers:
        raise UsageError(f"{path} holds no answer; a line is {_FORM}")
    return answers


def _leaf(line: Mapping[str, Any], leaves: Mapping[str, DeterministicTask], where: str) -> str:
    named = line.get("task")
    if named is None and len(leaves) == 1:
        return next(iter(leaves))
    if not isinstance(named, str) or named not in leaves:
        given = "no task is named" if named is None else f"unknown task {named!r}"
        raise UsageError(f"{where}: {given}; tasks are {', '.join(leaves)}")
    return named
