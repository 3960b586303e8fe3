"""In the causal limit our evaluation is the harness's own, text by text and figure by figure.

In blocks of one token a block-diffusion model is a causal one, so lm-eval's own model on the same
weights must find the same prompts, texts, log-likelihoods and metrics: a random Qwen2 with the real
vocabulary, the harness's task definitions, rows of the real benchmarks.
"""

from __future__ import annotations

from typing import Any

import pytest

from hub.run import run_cases
from hub.sentences import train_sentences
from hub.server import Hub

pytestmark = pytest.mark.slow

MATH = ["minerva_math_algebra", "minerva_math_geometry", "minerva_math_prealgebra"]
MMLU = ["mmlu_anatomy", "mmlu_philosophy", "mmlu_virology"]
SHOTS = {"gsm8k": (0, 2, 5), "minerva_math": (0, 4), "mmlu": (0, 2, 5), "ifeval": (0,)}
STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."
RULES = {"gsm8k": "Answer:", "minerva_math": "Solution:"}
PARTS: dict[str, dict[str, Any]] = {
    "gsm8k": {"limit": 3},
    "minerva_math": {"leaves": MATH},
    "mmlu": {"leaves": MMLU},
    "ifeval": {"limit": 3},
}


def case(task: str, num_fewshot: int, *, chat: bool, **more: Any) -> dict[str, Any]:
    return {"task": task, "num_fewshot": num_fewshot, "chat_template": chat, **PARTS[task], **more}


# The harness's own tasks: the rule of our prompts is off.
OWN = {
    f"{task}-{shots}{'-chat' if chat else ''}": case(task, shots, chat=chat)
    for task, all_shots in SHOTS.items()
    for shots in all_shots
    for chat in (False, True)
}
# Our tasks, answered by the harness's model.
RULED = {
    f"{task}-{shots}{'-chat' if chat else ''}-ruled": case(
        task, shots, chat=chat, instruction="ending"
    )
    for task, shots, chat in (
        ("gsm8k", 0, True),
        ("gsm8k", 5, False),
        ("gsm8k", 5, True),
        ("minerva_math", 0, True),
        ("minerva_math", 4, False),
    )
}
CUT = {"gsm8k-until": case("gsm8k", 0, chat=True, cut=True)}
CHAIN = {"mmlu-0-chain-chat": case("mmlu", 0, chat=True, scoring="chain")}
CASES = OWN | RULED | CUT | CHAIN
CHOICES = [name for name in CASES if name.startswith("mmlu")]
TEXTS = [name for name in CASES if name not in CHOICES]


@pytest.fixture(scope="module")
def found(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What both sides found in every case: one process, because its start takes as long as six."""
    home = tmp_path_factory.mktemp("parity")
    train_sentences(home)
    done = run_cases(list(CASES.values()), home, endpoint=hub.url, script="parity.py")
    return dict(zip(CASES, done.found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_prompts_and_metrics_are_the_harness_s(found: dict[str, Any], name: str) -> None:
    ours, theirs = found[name]["ours"], found[name]["theirs"]
    assert len(ours["samples"]) == 3
    for mine, other in zip(ours["samples"], theirs["samples"], strict=True):
        for key in ("task", "doc_id", "prompt", "metrics"):
            assert mine[key] == other[key]
    # The harness makes no figure of a group where it was asked for some of the group's tasks.
    assert theirs["results"].items() <= ours["results"].items()


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_the_harness_s(found: dict[str, Any], name: str) -> None:
    texts = [sample["output"] for sample in found[name]["ours"]["samples"]]
    assert texts == [sample["output"] for sample in found[name]["theirs"]["samples"]]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_the_harness_s(found: dict[str, Any], name: str) -> None:
    """Log-likelihoods are equal where the prompt ends in no white space.

    A chat's prompt ends in the template's line break, which the harness scores with each choice:
    the same summand for all of them, so what is chosen is the same.
    """
    ours, theirs = found[name]["ours"], found[name]["theirs"]
    for mine, other in zip(ours["samples"], theirs["samples"], strict=True):
        space, logprob = other["moved"]
        assert space == ("\n" if name.endswith("chat") else "")
        want = [value - logprob for value in other["output"]]
        assert mine["output"] == pytest.approx(want, abs=5e-5)
        assert len(set(want)) == 4
        assert want.index(max(want)) == mine["output"].index(max(mine["output"]))


def test_the_rule_of_our_prompts_is_all_that_differs(found: dict[str, Any]) -> None:
    for name in RULED:
        own = found[name.removesuffix("-ruled")]["ours"]["samples"]
        ending = RULES[name.split("-")[0]]
        for with_rule, without in zip(found[name]["ours"]["samples"], own, strict=True):
            assert with_rule["prompt"] != without["prompt"]
            assert with_rule["prompt"] == without["prompt"].replace(ending, STEP_BY_STEP)


def test_texts_end_at_the_until_strings_and_at_the_end_token(found: dict[str, Any]) -> None:
    """Both ends do occur above: a comparison of texts that all ran to their limit shows less."""
    [name] = CUT
    case = found[name]
    for free, sample in zip(case["free"], case["ours"]["samples"], strict=True):
        assert len(sample["output"]) < len(free)
        assert free.startswith(sample["output"])
        assert not any(string in sample["output"] for string in case["until"])
    finishes = {s["finish"] for name in TEXTS for s in found[name]["ours"]["samples"]}
    assert finishes == {"stop", "length", "until"}
