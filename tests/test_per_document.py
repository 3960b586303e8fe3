"""The columns of a record: all that a figure needs of a document, small, the same again."""

from __future__ import annotations

import io
import json
import lzma
import random
import re
from typing import Any

import pandas as pd
import pytest

from fdllm.core.counts import Counts, PhaseCount
from fdllm.core.schedule import Phase
from fdllm.evaluate.recording import text_hash
from fdllm.record.per_document import FROM_JOURNAL, digest_of_answer, pack, rows_of, unpack


def document(number: int, *, scored: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A sample and its answers, as a run of the embedded model leaves them."""
    chance = random.Random(number)
    at = {"task": "tiny", "doc_id": number}
    counts = Counts({phase: PhaseCount(chance.randrange(9), 12, 4, 0.25, 32) for phase in Phase})
    seconds = chance.random() / 100
    sample: dict[str, Any] = at | {
        "doc_hash": text_hash(f"document {number}"),
        "prompt_hash": text_hash(f"prompt {number}"),
        "prompt": f"what is {number}?",
        "target": str(number),
        "output": f"it is {number}",
        "filtered": {"strict": str(number)},
        "metrics": {"exact.match,strict": float(number % 2), "by_part": [True, number % 3 == 0]},
        "tokens": chance.randrange(20, 40),
        "forwards": counts.forwards,
        "seconds": seconds,
        "counts": counts.as_dict(),
        "finish": "stop",
        "subject": "sums",
    }
    if not scored:
        steps = [chance.randrange(1, 8) for _ in range(6)]
        answer: dict[str, Any] = {
            "kind": "generate",
            "tokens": [1] * 20,
            "finish": "length",
            "steps": steps,
        }
        return sample, [at | answer | {"index": 0}]
    scores = [-20 * chance.random() for _ in range(4)]
    answer = {"kind": "loglikelihood", "scored_step": None}
    order = [3, 0, 1, 2]  # as they were ready
    answers = [at | answer | {"index": index, "reused_tokens": index} for index in order]
    return sample | {"output": scores, "finish": None}, answers


def rows(num: int, *, scored: bool = False) -> list[dict[str, Any]]:
    both = [document(number, scored=scored) for number in range(num)]
    return rows_of([one for one, _ in both], [one for _, answers in both for one in answers])


def test_a_row_holds_facts_and_no_texts() -> None:
    sample, answers = document(3)
    (row,) = rows_of([sample], answers)
    assert row == {
        "task": "tiny",
        "doc_id": 3,
        "doc_hash": sample["doc_hash"][:6],
        "prompt_hash": sample["prompt_hash"][:6],
        "output": digest_of_answer("it is 3"),
        "metrics": sample["metrics"],
        "tokens": sample["tokens"],
        "forwards": sample["forwards"],
        "seconds": round(sample["seconds"], 7),
        "counts": sample["counts"],
        "finish": "stop",
        "subject": "sums",
        "requests": 1,
        "truncated": 1,
        "repetitive": 1,
        "steps": [answers[0]["steps"]],
    }


def test_a_row_of_scores_tells_its_choices() -> None:
    sample, answers = document(3, scored=True)
    (row,) = rows_of([sample], answers)
    assert row["output"] == pytest.approx(sample["output"], abs=1e-6)
    assert (row["requests"], row["scored_step"], row["reused_tokens"]) == (
        4,
        [None] * 4,
        [0, 1, 2, 3],
    )
    assert "steps" not in row


def test_without_answers_a_row_lacks_what_only_they_show() -> None:
    for scored in (False, True):
        sample, answers = document(3, scored=scored)
        (whole,), (part,) = rows_of([sample], answers), rows_of([sample], [])
        assert part == {name: value for name, value in whole.items() if name not in FROM_JOURNAL}


@pytest.mark.parametrize("scored", [False, True])
def test_what_is_packed_is_unpacked(scored: bool) -> None:
    written = rows(50, scored=scored)
    assert unpack(pack(written)) == written
    assert pack(rows(50, scored=scored)) == pack(written)
    columns = json.loads(lzma.decompress(pack(written)))
    assert any(name.startswith("counts.denoise forwards computed ") for name in columns)
    assert "metrics.exact.match,strict" in columns
    assert {len(column) for column in columns.values()} == {50}


def test_a_fact_that_some_documents_lack_is_none_there() -> None:
    one, other = rows(2)
    other |= {"metrics": {"acc": 1.0}, "subject": "sums"}
    del one["subject"]
    (first, second) = unpack(pack([one, other]))
    assert first == one | {"subject": None, "metrics": one["metrics"] | {"acc": None}}
    assert second["metrics"] == dict.fromkeys(one["metrics"]) | {"acc": 1.0}


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("tokens", "7", "row 0: 'tokens': Input should be a valid integer"),
        ("seconds", None, "row 0: 'seconds': Input should be a valid number"),
        ("steps", [[1, "a"]], "row 0: 'steps.0.1': Input should be a valid integer"),
        ("output", [1.0, "a"], "row 0: 'output."),
        ("counts.denoise forwards", [1, 2], "its counts of denoise are not 1 numbers"),
    ],
)
def test_a_fact_of_another_type_is_named(name: str, value: Any, wrong: str) -> None:
    columns = json.loads(lzma.decompress(pack(rows(1)))) | {name: [value]}
    with pytest.raises(ValueError, match=re.escape(wrong)):
        unpack(lzma.compress(json.dumps(columns).encode()))


def test_a_packed_file_is_whole_and_no_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack(rows(1))
    monkeypatch.setattr("fdllm.record.per_document._MOST_COLUMNS", 10_000)
    assert unpack(data)
    for broken, wrong in (
        (data[:-9], "it is no whole xz stream: it was cut"),
        (data * 2, "it is no xz stream alone: something follows it"),
        (data[:40] + bytes([data[40] ^ 1]) + data[41:], "it is no xz stream: "),
        (lzma.compress(bytes(10_001)), "it unpacks to more than 10,000 bytes, which no such"),
    ):
        with pytest.raises(ValueError, match=wrong):
            unpack(broken)


def test_pandas_opens_them() -> None:
    frame = pd.read_json(io.BytesIO(lzma.decompress(pack(rows(50)))))
    assert frame["tokens"].sum() == sum(row["tokens"] for row in rows(50))


@pytest.mark.parametrize("scored", [False, True])
def test_a_thousand_documents_are_small(scored: bool) -> None:
    """Hashes and times hardly pack; everything else does."""
    assert len(pack(rows(1000, scored=scored))) < 40_000
