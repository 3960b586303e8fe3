"""The file of a timing study, and what its pairs may claim."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdllm.record.study import Study, read_study
from fdllm.record.summary import InvalidRecordError
from fdllm.report.times import judge_pairs, median_of
from fdllm_bench.made_up_study import make_study

DOCS, REPEATS = 100, 3


def made(factors: dict[str, float]) -> Study:
    """A study whose configs take so many times the first one's time, on a machine that drifts."""
    return make_study(factors, np.random.default_rng(0), documents=DOCS, repeats=REPEATS)


def test_a_study_is_read_as_it_was_written(tmp_path: Path) -> None:
    study = made({"k1_first": 1.0, "k1_last": 1.0, "k2_first": 0.8})
    study.write(tmp_path / "a" / "study.json", tmp_path / "b" / "study.json")
    assert read_study(tmp_path / "a" / "study.json") == study
    assert read_study(tmp_path / "b" / "study.json") == study
    assert read_study(tmp_path / "none.json") is None


@pytest.mark.parametrize("wrong", [{"repeats": 2}, {"baseline": "k9"}, {"documents": []}])
def test_a_damaged_study_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    study = made({"k1_first": 1.0}).model_dump(mode="json") | wrong
    with pytest.raises(ValueError, match="k1_first|k9|documents"):
        Study(**study)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(InvalidRecordError, match="study.json"):
        read_study(tmp_path / "study.json")


def test_a_difference_is_claimed_only_beyond_what_the_twins_reach() -> None:
    found = judge_pairs(made({"k1_a": 1, "k1_b": 1, "k2_fast": 0.8, "k2_slow": 1.1, "k2_same": 1}))
    assert found.floor is not None
    assert found.floor < 0.03
    claims = {pair.b: pair.claim for pair in found.pairs}
    assert claims == {"k1_b": "none", "k2_fast": "faster", "k2_slow": "slower", "k2_same": "none"}
    assert found["k2_fast"].ratio.low < 0.8 < found["k2_fast"].ratio.high
    assert found["k1_b"].twins
    assert not found["k2_fast"].twins


def test_a_twin_that_is_off_blocks_what_lies_within_its_reach() -> None:
    found = judge_pairs(made({"k1_a": 1, "k1_b": 1.15, "k2_slow": 1.1, "k2_fast": 0.95}))
    assert found.floor is not None
    assert found.floor > 0.15
    assert [pair.claim for pair in found.pairs] == ["none"] * 3


def test_without_twins_nothing_is_claimed() -> None:
    found = judge_pairs(made({"k1_a": 1, "k2_fast": 0.5}))
    assert found.floor is None
    assert found["k2_fast"].claim == "none"


def test_a_few_stalled_documents_move_nothing() -> None:
    study = made({"k1_a": 1, "k1_b": 1, "k2": 0.8})
    k2 = study.configs["k2"]
    stalled = ((9.0,) * REPEATS,) * 5 + k2.seconds[5:]
    other = study.model_copy(
        update={"configs": study.configs | {"k2": k2.model_copy(update={"seconds": stalled})}}
    )
    moved = judge_pairs(other)["k2"].ratio.value / judge_pairs(study)["k2"].ratio.value
    assert abs(math.log(moved)) < 0.01


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(3)
    found = [median_of(0.1 + 0.02 * draw.standard_t(3, DOCS)) for _ in range(600)]
    assert 0.93 <= np.mean([one.low <= 0.1 <= one.high for one in found]) <= 0.98


def test_five_documents_have_no_interval() -> None:
    assert median_of(np.arange(5.0)).low == -math.inf
    assert 0.0 < median_of(np.arange(6.0)).low < 1.0
