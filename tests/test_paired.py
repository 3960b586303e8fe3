"""Two records against each other: the verdict, what is refused, what is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cells import GRID, compare_grid, flipped, make_cell, share
from fdllm.report.compare import compare, compare_all, decide
from fdllm.report.records import NotComparableError, Record, RecordError
from fdllm.report.stats import Estimate

RIGHT = share(1000, 800)
BASE = make_cell("k1_first", RIGHT)


def test_worse_by_a_significant_loss() -> None:
    found = compare(BASE, make_cell("k2_middle", flipped(RIGHT, 80, 30)))
    assert found.verdict == "worse"
    assert (found.value_a, found.value_b) == (0.8, 0.75)
    assert found.difference.value == pytest.approx(-0.05)
    assert found.difference.low < -0.05 < found.difference.high < 0
    assert (len(found.losses), len(found.gains)) == (80, 30)
    assert found.losses[0] == ("gsm8k", 0)
    assert found.gains[0] == ("gsm8k", 800)
    assert "k2_middle is worse than k1_first in accuracy: 75.0 % against 80.0 %" in found.sentence
    assert "80 right to wrong, 30 wrong to right" in found.sentence


def test_same_where_a_loss_is_excluded() -> None:
    found = compare(BASE, make_cell("k2_middle", flipped(RIGHT, 12, 11)))
    assert found.verdict == "same-or-better"
    assert "a loss of more than 2 points is excluded" in found.sentence
    assert compare(BASE, make_cell("k2_middle", flipped(RIGHT, 12, 11)), margin=0.005).verdict == (
        "cannot-tell"
    )


def test_better_is_said() -> None:
    found = compare(BASE, make_cell("k2_middle", flipped(RIGHT, 30, 80)))
    assert found.verdict == "same-or-better"
    assert "k2_middle is better than k1_first" in found.sentence


def test_few_documents_cannot_tell() -> None:
    """Ten rows of each, equally good: no loss was seen, and none could have been."""
    right = share(10, 8)
    found = compare(make_cell("k1_first", right, limit=10), make_cell("k2_last", right, limit=10))
    assert found.verdict == "cannot-tell"
    assert found.is_smoke_test
    assert found.sentence.startswith("SMOKE TEST (limit 10")
    assert found.smallest_detectable > 0.5


def test_a_whole_task_is_no_smoke_test() -> None:
    found = compare(BASE, make_cell("k2_middle", RIGHT))
    assert not found.is_smoke_test
    assert "SMOKE" not in found.sentence


def test_one_computation_done_twice() -> None:
    """Twins agree by their settings; ten rows are enough to see that nothing is broken."""
    right = share(10, 8)
    found = compare(make_cell("k1_first", right, limit=10), make_cell("k1_last", right, limit=10))
    assert found.same_computation
    assert found.verdict == "same-or-better"
    assert "one computation" in found.sentence


def test_twins_that_differ_are_broken() -> None:
    found = compare(BASE, make_cell("k1_last", flipped(RIGHT, 1, 0)))
    assert found.same_computation
    assert not found.identical
    assert any("something is broken" in note for note in found.notes)


def test_identical_outputs_under_reuse_are_asked_about() -> None:
    found = compare(BASE, make_cell("k3_last", RIGHT))
    assert any("did the reuse reach this task?" in note for note in found.notes)
    assert not compare(BASE, make_cell("k3_last", flipped(RIGHT, 1, 0))).notes


@pytest.mark.parametrize(
    ("difference", "p_value", "certain", "verdict"),
    [
        (Estimate(-0.05, -0.08, -0.02), 0.001, False, "worse"),
        (Estimate(-0.01, -0.015, -0.005), 0.001, False, "worse"),  # within the margin, yet shown
        (Estimate(0.05, 0.02, 0.08), 0.001, False, "same-or-better"),
        (Estimate(-0.01, -0.019, 0.001), 0.06, False, "same-or-better"),
        (Estimate(-0.01, -0.021, 0.001), 0.06, False, "cannot-tell"),
        (Estimate(0.0, -0.3, 0.3), 1.0, True, "same-or-better"),
        (Estimate(-0.05, -0.08, -0.02), 0.06, False, "cannot-tell"),  # Holm took it back
    ],
)
def test_verdicts(difference: Estimate, p_value: float, certain: bool, verdict: str) -> None:
    assert decide(difference, p_value, 0.02, certain=certain) == verdict


def other(**changes: Any) -> Record:
    return make_cell("k2_middle", share(20, 15), **changes)


@pytest.mark.parametrize(
    ("b", "reason"),
    [
        (other(task="tiny_arithmetic"), "task differs"),
        (other(versions={"gsm8k": 4}), "version of the task differs"),
        (other(fields={"task": "another"}), "task's definition differs"),
    ],
)
def test_unlike_records_are_refused(b: Record, reason: str) -> None:
    with pytest.raises(NotComparableError, match=reason) as refused:
        compare(make_cell("k1_first", share(20, 15)), b)
    assert refused.value.exit_code == 2


def test_a_record_that_ended_early_may_lack_a_subtask() -> None:
    whole = make_cell("k1_first", share(20, 15), versions={"gsm8k": 3, "gsm8k_long": 1})
    assert compare(whole, other(versions={"gsm8k": 3})).n == 20
    with pytest.raises(NotComparableError, match="version of the task differs"):
        compare(whole, other(versions={"gsm8k": 3, "gsm8k_long": 2}))


def test_estimators_are_never_mixed() -> None:
    a = make_cell("k1_first", share(20, 15), task="gpqa_main_n_shot")
    b = make_cell("k2_first", share(20, 15), task="gpqa_main_n_shot", estimator="first-token")
    with pytest.raises(NotComparableError, match="estimator differs"):
        compare(a, b)


@pytest.mark.parametrize(
    ("field", "reason"), [("prompt_hash", "different prompts"), ("doc_hash", "another document")]
)
def test_documents_and_prompts_must_agree(field: str, reason: str) -> None:
    a, b = make_cell("k1_first", share(20, 15)), other()
    b.samples[7][field] = "changed"
    with pytest.raises(NotComparableError, match=f"gsm8k row 7 .*{reason}"):
        compare(a, b)


def test_documents_of_one_record_alone_are_left_out() -> None:
    found = compare(BASE, make_cell("k2_middle", RIGHT[:900], limit=900))
    assert found.n == 900
    assert any("100 documents are in one record only" in note for note in found.notes)
    assert found.is_smoke_test


def test_a_sample_without_its_figure_is_refused() -> None:
    b = other()
    b.samples[3]["metrics"] = {"exact_match,strict-match": 1.0}
    with pytest.raises(RecordError, match="gsm8k row 3 has no 'exact_match,flexible-extract'"):
        compare(make_cell("k1_first", share(20, 15)), b)


def test_documents_of_a_subject_go_together() -> None:
    """Sixty losses in one subject of twenty say less than sixty that are spread."""
    subjects = [f"s{i // 50}" for i in range(1000)]
    heaped, spread = np.ones(1000), np.ones(1000)
    heaped[:60] = 0
    spread[:: 1000 // 60] = 0
    a = make_cell("k1_first", np.ones(1000), task="mmlu", subjects=subjects)
    for right, verdict in ((heaped, "cannot-tell"), (spread, "worse")):
        found = compare(a, make_cell("k2_first", right, task="mmlu", subjects=subjects))
        assert found.verdict == verdict
        assert "clustered by subject" in found.test


def test_a_subject_must_stand_in_every_sample() -> None:
    subjects = ["s1", "s2"] * 10
    a = make_cell("k1_first", share(20, 9), task="mmlu", subjects=subjects)
    del a.samples[4]["subject"]
    with pytest.raises(RecordError, match="lacks its subject"):
        compare(a, make_cell("k2_first", share(20, 9), task="mmlu", subjects=subjects))


def test_holm_over_the_grid() -> None:
    """One loss of p = 0.02 among six is what chance gives; alone it would be significant."""
    cells = [make_cell(name, flipped(RIGHT, 30, 30)) for name in GRID[4:]]
    cells.insert(0, make_cell("k2_first", flipped(RIGHT, 40, 20)))
    alone = compare(BASE, cells[0])
    assert alone.p_value < 0.02
    assert alone.verdict == "worse"
    found = compare_grid(BASE, cells)[0]
    assert found.p_holm == pytest.approx(6 * found.p_value)
    assert found.verdict == "cannot-tell"
    assert found.smallest_detectable > alone.smallest_detectable


def test_twins_do_not_count_in_the_family() -> None:
    cells = [make_cell("k1_last", RIGHT), make_cell("k2_first", flipped(RIGHT, 40, 20))]
    found = compare_grid(BASE, cells)
    assert found[1].p_holm == found[1].p_value
    assert found[1].verdict == "worse"


def test_tasks_are_one_family() -> None:
    b = make_cell("k2_first", flipped(RIGHT, 40, 20))
    found = compare_all([(BASE, b, None), (BASE, b, None), (BASE, b, None)])
    assert found[0].p_holm == pytest.approx(3 * found[0].p_value)


def test_graded_figures_are_compared_by_bootstrap() -> None:
    draw = np.random.default_rng(1)
    grades = draw.random(300)
    a = make_cell("k1_first", grades)
    found = compare(a, make_cell("k2_first", grades - 0.05 * draw.random(300)))
    assert found.verdict == "worse"
    assert found.difference.low < -0.025 < found.difference.high
    assert "bootstrap" in found.interval
    assert (found.losses, found.gains) == ((), ())
    with pytest.raises(NotComparableError, match="share one document"):
        compare(make_cell("k1_first", [0.5]), make_cell("k2_first", [0.4]))


def test_what_else_differs_is_said() -> None:
    b = make_cell("k2_middle", flipped(RIGHT, 1, 1), fields={"source": "s2"})
    assert any("more than the cell differs: source" in note for note in compare(BASE, b).notes)
