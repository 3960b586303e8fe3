"""The table that a first system published, entered as records: does it read as it should.

Its figures: GSM8K on 1,319 documents, MMLU at 66.53 % in all nine cells, and a run whose stale
layer outputs wrote gibberish faster than anything else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cells import GRID, compare_grid, flipped, make_cell, make_times, share
from fdllm.report.grid import check_grid, checks
from fdllm.report.records import NotComparableError, Record

GSM8K = {1: (80.4, 80.4, 80.4), 2: (73.7, 73.6, 73.8), 3: (67.2, 67.6, 67.7)}
SPEED = {1: (22.75, 49.54, 49.63), 2: (39.9, 33.5, 40.5), 3: (34.3, 33.9, 34.1)}
NUM_DOCS = 1319


def gsm8k(**changes: Any) -> list[Record]:
    """The nine cells; beside the loss that was published, sixty documents flip each way."""
    draw = np.random.default_rng(0)
    base = share(NUM_DOCS, round(0.804 * NUM_DOCS))
    length = draw.integers(60, 300, NUM_DOCS)
    cells = []
    for name in GRID:
        k, place = int(name[1]), ("first", "middle", "last").index(name[3:])
        losses = len(np.flatnonzero(base)) - round(GSM8K[k][place] / 100 * NUM_DOCS)
        right = base if k == 1 else flipped(base, losses + 60, 60)
        seconds = length / SPEED[k][place] * draw.uniform(0.95, 1.05, NUM_DOCS)
        output = [f"{'answer' if k == 1 else name} {i}" for i in range(NUM_DOCS)]
        cells.append(
            make_cell(name, right, seconds=seconds, tokens=length, outputs=output, **changes)
        )
    return cells


def test_published_gsm8k() -> None:
    """Every cell that reuses is worse; of speed nothing is said, whatever the runs took."""
    cells = gsm8k()
    check_grid(cells)
    found = {one.b: one for one in compare_grid(cells[0], cells[1:])}
    for name in GRID[3:]:
        assert found[name].verdict == "worse"
        assert found[name].p_holm < 0.001
        assert found[name].speed is None
        assert "speed" not in found[name].sentence
    assert found["k2_middle"].difference.value == pytest.approx(-0.068, abs=1e-3)
    for name in ("k1_middle", "k1_last"):
        assert found[name].verdict == "same-or-better"
        assert found[name].same_computation


def test_mmlu_is_nine_identical_cells() -> None:
    """The log-likelihood path never reached the reuse code."""
    subjects = [f"subject_{i % 57}" for i in range(2000)]
    scores = [[-1.0, -2.0 - i, -3.0, -4.0] for i in range(2000)]
    right = share(2000, 1331)
    cells = [
        make_cell(name, right, task="mmlu", subjects=subjects, outputs=scores) for name in GRID
    ]
    _, same = checks(cells)
    assert same.kind == "identical"
    assert same.cells == GRID
    assert same.text.startswith("nine identical cells (k1_first, ")
    assert "66.55 %" in same.text
    assert "the reuse may never have reached this task" in same.text
    for one in compare_grid(cells[0], cells[3:]):
        assert any("did the reuse" in note for note in one.notes)


def test_twins_alone_may_be_identical() -> None:
    assert not [one for one in checks(gsm8k()) if one.kind == "identical"]


def test_three_commits_in_one_table_are_refused() -> None:
    cells = gsm8k()
    for number, part in enumerate((cells[:3], cells[3:6], cells[6:])):
        for cell in part:
            cell.summary.fingerprint.fields["source"] = f"commit {number}"
    with pytest.raises(NotComparableError, match="field 'source' differs.*k2_first.*commit 1"):
        check_grid(cells)


def test_two_machines_in_one_table_are_refused() -> None:
    with pytest.raises(NotComparableError, match="machine differs"):
        check_grid([*gsm8k()[:3], *gsm8k(machines=("H200",))[3:]])


def test_gibberish_at_the_highest_speed_is_not_praised() -> None:
    """Outputs of one sub-block returned for another: 5 % right, and the table's best tokens/s."""
    draw = np.random.default_rng(1)
    base = share(NUM_DOCS, 1060)
    length = draw.integers(60, 300, NUM_DOCS)
    plain = [
        make_cell(f"k1_{n}", base, seconds=length / speed, tokens=length)
        for n, speed in (("first", 49.5), ("middle", 49.6), ("last", 49.7))
    ]
    broken = make_cell(
        "k2_first",
        flipped(base, 1000, 5),
        seconds=length / 200 * draw.uniform(0.9, 1.1, NUM_DOCS),
        tokens=length,
        repetition=0.9,
        truncation=0.8,
    )
    fine = make_cell("k2_last", flipped(base, 9, 9), seconds=length / 60, tokens=length)
    times = make_times(k2_first=0.25, k2_last=0.8)
    cells = [*plain[1:], broken, fine]
    found = {one.b: one for one in compare_grid(plain[0], cells, times)}
    assert "It is faster" in found["k2_last"].sentence  # the floor lets a speed-up through
    bad = found["k2_first"]
    assert len(bad.collapsed) == 3
    assert "its time says nothing" in bad.sentence
    assert "faster" not in bad.sentence


def test_twins_whose_outputs_differ_are_found() -> None:
    cells = gsm8k()
    cells[2].samples[5]["output"] = "something else"
    (found,) = [one for one in checks(cells[1:3]) if one.kind == "twins-differ"]
    assert found.cells == ("k1_middle", "k1_last")
    assert "1 of 1319 samples differ" in found.text
