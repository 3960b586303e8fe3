"""Documents are held once; the embedded tasks, end to end, without any Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks.gpqa.n_shot import utils as gpqa

from fdllm import tiny
from fdllm.core.config import Decoding
from fdllm.core.reuse import NoReuse
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.adapter import EngineLM, LoadedModel
from fdllm.evaluate.documents import DeterministicTask, TaskOptions
from fdllm.evaluate.hub_errors import explain_access
from fdllm.evaluate.recording import Evaluation
from fdllm.evaluate.samples import check_prompt
from fdllm.evaluate.tasks import TaskInfo
from fdllm.runs import Evaluating
from helpers import ROOT
from hub.checkpoint import MemoryStore, Tally, random_model
from hub.lm import Oracle, evaluated, run_of
from hub.rows import gpqa_rows


def shuffling(**_: Any) -> DatasetDict:
    return DatasetDict(train=Dataset.from_list(gpqa_rows()))


def gpqa_config() -> dict[str, Any]:
    return {
        "task": "shuffled",
        "custom_dataset": shuffling,
        "process_docs": gpqa.process_docs,
        "output_type": "multiple_choice",
        "training_split": "train",
        "validation_split": "train",
        "doc_to_text": "{{Question}} {{choice1}} {{choice2}} {{choice3}} {{choice4}}",
        "doc_to_target": "answer",
        "doc_to_choice": ["(A)", "(B)", "(C)", "(D)"],
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def held(num_fewshot: int = 0) -> DeterministicTask:
    info = TaskInfo("shuffled", "loglikelihood", "acc,none", 1, "choices in another order")
    asked = Evaluating(num_fewshot=num_fewshot, fewshot_seed=0)
    return DeterministicTask({**gpqa_config(), "options": TaskOptions(info, asked)})


def answers(documents: Any) -> list[str]:
    return [document["answer"] for document in documents]


def test_documents_are_the_same_in_every_access_and_every_instance() -> None:
    plain = ConfigurableTask(config=gpqa_config())
    assert answers(plain.eval_docs) != answers(plain.eval_docs)  # what is guarded against
    first, second = held(), held()
    assert answers(first.eval_docs) == answers(first.eval_docs) == answers(second.eval_docs)
    assert answers(first.eval_docs) == answers(first.training_docs())
    # The harness's own first shuffle, so the documents of a run with a warm cache.
    gpqa.rng.seed(42)
    assert answers(gpqa.process_docs(shuffling()["train"])) == answers(first.eval_docs)


def test_worked_examples_never_hold_the_question_and_follow_the_seed() -> None:
    task = held(num_fewshot=3)
    prompts = [task.fewshot_context(doc, 3) for doc in task.eval_docs]
    for doc, prompt in zip(task.eval_docs, prompts, strict=True):
        assert prompt.count(doc["Question"]) == 1
        assert prompt.endswith(task.doc_to_text(doc))
    again = held(num_fewshot=3)
    assert [again.fewshot_context(doc, 3) for doc in again.eval_docs] == prompts
    with pytest.raises(UsageError, match="has 23 worked examples; got num_fewshot 24"):
        held(num_fewshot=24)


def test_a_prompt_of_another_document_is_never_scored() -> None:
    task = held()
    sent, scored = task.eval_docs[0], task.eval_docs[1]
    sample = {"doc_id": 1, "doc": scored, "arguments": [(f"<u>{task.doc_to_text(sent)}</u>", "A")]}
    with pytest.raises(FdllmError, match="document 1: the prompt that was sent does not hold"):
        check_prompt(sample, task, "shuffled")
    sample["doc"] = sent
    check_prompt(sample, task, "shuffled")


def test_a_token_in_a_client_error_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    error = explain_access(ValueError("bad header hf_secret"), "gsm8k", "openai/gsm8k", None)
    assert "hf_secret" not in str(error)
    assert "bad header <token>" in str(error)


DECODING = Decoding(max_new_tokens=16, threshold=0.5)


def run(task: str, *, limit: int | None = 6, **asked: Any) -> Evaluation:
    asked_for = run_of(task, DECODING, limit=limit, **({"batch_size": 3} | asked))
    loaded = LoadedModel(random_model())
    return loaded.evaluate(asked_for, MemoryStore(), Tally(), strategy=NoReuse())


def known(task: str, limit: int | None = 6) -> Evaluation:
    oracle = Oracle(task)
    return evaluated(run_of(task, DECODING, limit=limit), oracle, random_model(), oracle=oracle)


@pytest.fixture
def _silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The harness talks; an evaluation does not pass it on."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("_silent")
@pytest.mark.parametrize("task", tiny.TASK_NAMES)
def test_an_oracle_answers_every_row_of_an_embedded_task(task: str) -> None:
    found = known(task, limit=None)
    assert found.value == 1.0
    assert found.num_documents >= 200


@pytest.mark.usefixtures("_silent")
def test_a_model_answers_an_embedded_task() -> None:
    found = run("tiny_arithmetic")
    assert [sample["doc_id"] for sample in found.samples] == list(range(6))
    assert all(sample["finish"] in ("stop", "length") for sample in found.samples)
    own = [sample["metrics"]["exact_match,strict-match"] for sample in found.samples]
    assert found.value == sum(own) / 6
    assert found.results["results"]["tiny_arithmetic"][found.headline] == found.value
    # Results are published: they say nothing of the machine, and are the same elsewhere.
    written = json.dumps(found.results)
    assert str(ROOT) not in written
    assert "0x" not in written


def test_the_dataset_fingerprint_covers_the_documents_used() -> None:
    whole = known("tiny_choice")
    fewer = known("tiny_choice", limit=5)
    by_model = run("tiny_choice")
    assert whole.dataset == by_model.dataset != fewer.dataset


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"limit": 0}, "'limit': Input should be greater than or equal to 1; got 0"),
        ({"num_fewshot": -1}, "'num_fewshot': Input should be greater than or equal to 0; got -1"),
        ({"num_fewshot": 2}, "defined without worked examples"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run("tiny_arithmetic", **changes)


def test_a_model_without_a_chat_template_says_so() -> None:
    model = random_model()
    model.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="has no chat template"):
        EngineLM(run_of("tiny_choice"), model, NoReuse())


def test_some_documents_are_asked_what_they_are_asked_among_all() -> None:
    """Worked examples are drawn from one document to the next."""

    def prompts(task: DeterministicTask) -> dict[int, str]:
        task.build_all_requests(limit=None, rank=0, world_size=1)
        return {one.doc_id: str(one.args[0]) for one in task.instances}

    whole = prompts(held(num_fewshot=3))
    task = held(num_fewshot=3)
    task.chosen = {7, 2}
    assert prompts(task) == {n: whole[n] for n in (2, 7)}
    assert [n for n, _ in task.doc_iterator(rank=0, limit=None, world_size=1)] == [2, 7]
    task.chosen = {5}
    assert prompts(task) == {5: whole[5]}
    task.instances[0].resps.append("an answer")
    task.chosen = None
    assert prompts(task) == whole
    assert not any(one.resps for one in task.instances), "each asking has answers of its own"
