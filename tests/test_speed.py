"""What may be said of times, and what never is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cells import flipped, make_cell, make_times, share, write_cell, write_study
from fdllm.report.compare import compare
from fdllm.report.records import Record
from fdllm.report.times import read_times

RIGHT = share(1000, 800)
BASE = make_cell("k1_first", RIGHT)


# --- in a comparison ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "floor", "said"),
    [
        (0.8, 0.01, "It is faster: 0.800 [0.792, 0.808] of k1_first's time"),
        (1.2, 0.01, "It is slower: 1.200 [1.188, 1.212] of k1_first's time"),
        (0.8, 0.3, "No difference in speed is claimed: 0.800 ["),
        (1.2, 0.3, "No difference in speed is claimed: 1.200 ["),
        (0.8, None, "No difference in speed is claimed: 0.800 ["),
        ((0.9, 0.7, 1.1), 0.01, "No difference in speed is claimed: 0.900 ["),
    ],
)
def test_only_what_the_study_claims_is_said(ratio: Any, floor: float | None, said: str) -> None:
    found = compare(BASE, make_cell("k2_a", RIGHT), times=make_times(floor, k2_a=ratio))
    assert said in found.sentence
    noise = "noise floor unknown" if floor is None else f"noise floor {100 * floor:.1f} %"
    assert noise in found.sentence
    assert found.as_dict()["speed"]["claim"] in ("faster", "slower", "none")


def test_without_a_study_nothing_is_said() -> None:
    """Whatever the runs themselves took."""
    b = make_cell("k2_a", RIGHT, seconds=[0.1] * 1000)
    for times in (None, make_times(k3_b=0.5)):
        found = compare(BASE, b, times=times)
        assert found.as_dict()["speed"] is None
        assert "speed" not in found.sentence
        assert "faster" not in found.sentence


def test_a_worse_cell_is_faster_at_a_price() -> None:
    b = make_cell("k2_a", flipped(RIGHT, 80, 30))
    assert (
        "faster, at the price of -5.0 points"
        in compare(BASE, b, times=make_times(k2_a=0.8)).sentence
    )


@pytest.mark.parametrize(
    ("b", "reason"),
    [
        ({"right": share(1000, 60)}, "accuracy fell from 80.0 to 6.0 %"),
        ({"right": share(1000, 550)}, "accuracy fell from 80.0 to 55.0 %"),
        ({"right": RIGHT, "repetition": 0.3}, "repetitive answers rose from 0.0 to 30.0 %"),
        ({"right": RIGHT, "truncation": 0.2}, "truncated answers rose from 0.0 to 20.0 %"),
    ],
)
def test_collapse_is_never_praised_for_speed(b: dict[str, Any], reason: str) -> None:
    cell = make_cell("k3_last", b.pop("right"), **b)
    found = compare(BASE, cell, times=make_times(k3_last=0.3))
    assert found.collapsed == (reason,)
    assert found.claim == "collapsed"
    assert "its time says nothing" in found.sentence
    assert "faster" not in found.sentence


def test_half_of_a_small_accuracy_is_a_collapse_too() -> None:
    """A hard task: nine points are no ten, and still most of what there was."""
    a = make_cell("k1_first", share(1000, 120))
    reason = "accuracy fell from 12.0 to 3.0 %"
    assert compare(a, make_cell("k2_last", share(1000, 30))).collapsed == (reason,)
    assert compare(a, make_cell("k2_last", share(1000, 90))).collapsed == ()


def test_a_small_sample_has_not_collapsed_by_chance() -> None:
    """Ten documents, one of them repetitive, accuracy down by two."""
    a = make_cell("k1_first", share(10, 8))
    assert compare(a, make_cell("k2_last", share(10, 6), repetition=0.1)).collapsed == ()


# --- the study beside records ---------------------------------------------------------------------


@pytest.fixture
def cells(tmp_path: Path) -> list[Record]:
    right = share(40, 30)
    return [
        write_cell(tmp_path, make_cell(name, right)) for name in ("k1_first", "k1_last", "k2_first")
    ]


def test_a_study_is_read_beside_its_records(cells: list[Record]) -> None:
    write_study(cells, {"k2_first": 0.8})
    found = read_times(cells, "k1_first")
    assert found.pairs["k2_first"].claim == "faster"
    assert found.pairs["k2_first"].ratio.value == pytest.approx(0.8, abs=0.01)
    assert found.floor is not None
    assert found.sentence == (
        "timing study of 40 documents, 3 rounds of 3 configs in random order, on Quadro RTX 6000 "
        "(float16); 120 of 120 answers equal the records'"
    )


def test_a_config_may_be_set_against_another_under_the_same_floor(cells: list[Record]) -> None:
    write_study(cells, {"k2_first": 0.8})
    found, other = read_times(cells, "k1_first"), read_times(cells, "k2_first")
    assert other.floor == found.floor
    assert other.pairs["k1_first"].claim == "slower"
    assert other.pairs["k1_first"].ratio.value == pytest.approx(1 / 0.8, abs=0.01)
    assert not other.pairs["k1_last"].twins


def test_without_a_study_the_command_is_named(cells: list[Record]) -> None:
    found = read_times(cells, "k1_first")
    assert (found.pairs, found.floor) == ({}, None)
    assert found.sentence == (
        "speed was not measured: fdllm timing --task gsm8k --experiment 00_baseline --model "
        "Efficient-Large-Model/Fast_dLLM_v2_7B"
    )


def test_a_study_of_other_code_is_not_used(cells: list[Record]) -> None:
    study = write_study(cells, {"k2_first": 0.8})
    old = study.configs["k1_last"]
    old = old.model_copy(update={"fingerprint": old.fingerprint | {"source": "before"}})
    study.model_copy(update={"configs": study.configs | {"k1_last": old}}).write(
        cells[0].folder.parent / "timing" / "study.json"
    )
    found = read_times(cells, "k1_first")
    assert found.pairs == {}
    assert found.sentence.startswith(
        "the timing study is of another source than the record of k1_last: run fdllm timing "
    )


def test_a_study_without_the_baseline_says_so(cells: list[Record]) -> None:
    write_study(cells[1:], {})
    assert "the timing study lacks k1_first" in read_times(cells, "k1_first").sentence
    assert "the timing study lacks a baseline" in read_times(cells, None).sentence


def test_a_study_of_five_documents_says_nothing(tmp_path: Path) -> None:
    names = ("k1_first", "k1_last", "k2_first")
    few = [write_cell(tmp_path, make_cell(name, share(5, 3))) for name in names]
    write_study(few, {"k2_first": 0.8})
    found = read_times(few, "k1_first")
    assert found.pairs == {}
    assert "the timing study has 5 documents, an interval needs 6: run fdllm" in found.sentence


def test_a_damaged_study_is_named(cells: list[Record]) -> None:
    write_study(cells, {})
    (cells[0].folder.parent / "timing" / "study.json").write_text("{")
    found = read_times(cells, "k1_first")
    assert found.pairs == {}
    assert "the timing study cannot be used (study.json is no JSON: Expec" in found.sentence
    assert "): run fdllm timing --task" in found.sentence
