"""ifeval from the harness's own definition: known responses to every kind of instruction.

The sentence tokenizer is trained here with nltk's own trainer, because the published one cannot be
fetched; see :mod:`hub.sentences`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fdllm.evaluate.tasks import task_info
from hub.rows import read_rows, repository
from hub.run import run_cases
from hub.sentences import train_sentences
from hub.server import Hub

pytestmark = pytest.mark.slow


class Kind(NamedTuple):
    """An instruction, with a response that satisfies it and one that does not."""

    name: str
    arguments: dict[str, Any]
    good: str
    bad: str


KINDS = (
    Kind("keywords:existence", {"keywords": ["red", "blue"]}, "Red and blue.", "Only red."),
    Kind(
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        "A cat met a cat.",
        "A cat met a dog.",
    ),
    Kind("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "A stone.", "A rock."),
    Kind(
        "keywords:letter_frequency",
        {"letter": "z", "let_frequency": 2, "let_relation": "at least"},
        "A pizza.",
        "A zebra.",
    ),
    Kind(
        "language:response_language",
        {"language": "de"},
        "Das ist eine gute Antwort, und sie steht auf Deutsch geschrieben.",
        "This is a good answer, and it is written in the English language.",
    ),
    Kind(
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        "Dr. Smith went home. He slept.",
        "Dogs run. Cats sit. Birds fly. Fish swim.",
    ),
    Kind(
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "One.\n***\nTwo.",
        "One.\n\nTwo.",
    ),
    Kind(
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 4},
        "One two three four.",
        "One two three.",
    ),
    Kind(
        "length_constraints:nth_paragraph_first_word",
        {"first_word": "weekend", "num_paragraphs": 2, "nth_paragraph": 2},
        "Hello all.\n\nWeekend is near.",
        "Hello all.\n\nSunday is near.",
    ),
    Kind(
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "[name] lives in [town].",
        "[name] lives in town.",
    ),
    Kind(
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "Hello.\n\nP.S. I am late.",
        "Hello. I am late.",
    ),
    Kind("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", "* one\ntwo"),
    Kind("detectable_format:constrained_response", {}, "My answer is yes.", "Perhaps."),
    Kind(
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*One* and *two*.",
        "*One* and two.",
    ),
    Kind(
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\nOne.\nSECTION 2\nTwo.",
        "SECTION 1\nOne. Two.",
    ),
    Kind("detectable_format:json_format", {}, '{"one": 1}', "one: 1"),
    Kind("detectable_format:title", {}, "<<One>>\nTwo.", "One\nTwo."),
    Kind("combination:two_responses", {}, "One.\n******\nTwo.", "One. Two."),
    Kind(
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say hello."},
        "Say hello. Hello!",
        "Hello!",
    ),
    Kind(
        "startend:end_checker",
        {"end_phrase": "That is all."},
        "It is late. That is all.",
        "That is all. It is late.",
    ),
    Kind("startend:quotation", {}, '"It is late."', "It is late."),
    Kind(
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "It is NOW or NEVER.",
        "It is NOW or never.",
    ),
    Kind(
        "change_case:english_capital",
        {},
        "THIS IS A GOOD ANSWER AND IT IS WRITTEN IN ENGLISH.",
        "This is a good answer and it is written in English.",
    ),
    Kind(
        "change_case:english_lowercase",
        {},
        "this is a good answer and it is written in english.",
        "This is a good answer and it is written in English.",
    ),
    Kind("punctuation:no_comma", {}, "One and two.", "One, two."),
)
MIXED = "It is late, friends. That is all."
LOOSE = 'Sure:\n{"one": 1}'


def row(key: int, *kinds: Kind) -> dict[str, Any]:
    """A document in the dataset's schema: every argument of every kind is a column."""
    names = sorted({name for kind in KINDS for name in kind.arguments})
    return {
        "key": key,
        "prompt": f"Prompt {key}: {' and '.join(kind.name for kind in kinds)}.",
        "instruction_id_list": [kind.name for kind in kinds],
        "kwargs": [{name: kind.arguments.get(name) for name in names} for kind in kinds],
    }


def named(name: str) -> Kind:
    (found,) = [kind for kind in KINDS if kind.name == name]
    return found


ROWS = [
    *(row(i, kind) for i, kind in enumerate([*KINDS, *KINDS])),
    row(100, named("punctuation:no_comma"), named("startend:end_checker")),
    row(101, named("detectable_format:json_format")),
]
TEXTS = [*(kind.good for kind in KINDS), *(kind.bad for kind in KINDS), MIXED, LOOSE]
CASE: dict[str, Any] = {"task": "ifeval", "by": "texts", "limit": None, "texts": TEXTS}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub({"google/IFEval": repository({"default": {"train": ROWS}})}) as running:
        yield running


def test_every_kind_of_the_benchmark_is_here(shared: Path) -> None:
    real = {name for r in read_rows(shared, "ifeval.jsonl") for name in r["instruction_id_list"]}
    assert {kind.name for kind in KINDS} == real
    assert len(KINDS) == len(real) == 25


def test_known_responses_score_as_they_should(hub: Hub, tmp_path: Path) -> None:
    train_sentences(tmp_path)
    done = run_cases([CASE | {"repeat": True}], tmp_path, endpoint=hub.url)
    (found,) = done.found
    strict = task_info("ifeval").headline
    wrong = {
        (sample["doc_id"], kind.name)
        for sample, kind in zip(found["samples"], [*KINDS, *KINDS], strict=False)
        if sample["metrics"][strict] != (sample["doc_id"] < len(KINDS))
    }
    assert not wrong
    both, loose = found["samples"][-2:]
    assert both["metrics"]["inst_level_strict_acc,none"] == [False, True]
    assert not both["metrics"][strict]
    assert not loose["metrics"][strict]
    assert loose["metrics"]["prompt_level_loose_acc,none"]
    assert found["value"] == len(KINDS) / len(ROWS)
    assert found["same"]
    assert done.stdout == done.stderr == ""
    # Another process, without a network: the same, to the last sample.
    (offline,) = run_cases([CASE], tmp_path, endpoint=None).found
    assert offline["samples"] == found["samples"]


def test_the_real_rows_are_scored(shared: Path, tmp_path: Path) -> None:
    rows = read_rows(shared, "ifeval.jsonl")
    train_sentences(tmp_path)
    case = CASE | {"texts": ["A short answer, without much in it."] * len(rows)}
    with Hub({"google/IFEval": repository({"default": {"train": rows}})}) as real:
        first, second = run_cases([case, case], tmp_path, endpoint=real.url).found
    assert first["num_documents"] == len(rows) == 541
    assert 0.0 < first["value"] < 0.3
    assert first["samples"] == second["samples"]


def test_without_the_tokenizer_the_task_is_refused_before_it_begins(
    hub: Hub, tmp_path: Path
) -> None:
    (offline,) = run_cases([CASE], tmp_path / "a", endpoint=None).found
    assert "sentence tokenizer 'punkt_tab'" in offline["error"]
    assert "this process is offline" in offline["error"]
    assert "fdllm prefetch --task ifeval" in offline["error"]
    folder = train_sentences(tmp_path / "b")
    (folder / "collocations.tab").unlink()
    (damaged,) = run_cases([CASE], tmp_path / "b", endpoint=hub.url).found
    assert "cannot be read" in damaged["error"]
    assert "\n" not in damaged["error"] + offline["error"]
