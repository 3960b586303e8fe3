"""What may be said of times, and what never is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cells import MACHINE, flipped, make_cell, share
from fdllm.report.compare import compare
from fdllm.report.grid import find_twins
from fdllm.report.speed import Floor, floor_factor, noise_floor

pytestmark = pytest.mark.usefixtures("small_heap")

QUIET = Floor(("k1_first", "k1_last"), (50.0, 50.1), 0.002, 0.01, None)
RIGHT = share(1000, 800)


def times(ratio: float, noise: float = 0.05, n: int = 1000) -> Any:
    """Seconds of documents, 1 by ``ratio`` on average, drawn anew for each ratio."""
    draw = np.random.default_rng(round(1000 * ratio))
    return 2 / ratio * np.exp(noise * draw.standard_normal(n))


BASE = make_cell("k1_first", RIGHT, seconds=times(1.0))


def test_speed_beyond_the_floor_is_claimed() -> None:
    found = compare(BASE, make_cell("k2_middle", RIGHT, seconds=times(1.25)), floor=QUIET)
    assert found.speed is not None
    assert found.speed.claim == "faster"
    assert found.speed.ratio.low < 1.25 < found.speed.ratio.high
    assert "It is faster: 1.25x the speed" in found.sentence
    back = compare(make_cell("k2_middle", RIGHT, seconds=times(1.25)), BASE, floor=QUIET)
    assert back.speed is not None
    assert back.speed.claim == "slower"


def test_speed_inside_the_floor_is_never_claimed() -> None:
    """25 % on every document, beyond any doubt, on a machine whose twins spread by 30 %."""
    loud = Floor(("k1_first", "k1_last"), (40.0, 52.0), 0.3, 0.3, "k1_first")
    found = compare(BASE, make_cell("k2_middle", RIGHT, seconds=times(1.25)), floor=loud)
    assert found.speed is not None
    assert found.speed.ratio.low > 1.2
    assert found.speed.claim == "none"
    assert "No difference in speed is claimed" in found.sentence


@pytest.mark.parametrize(
    ("denoise", "claim"), [(70, "faster"), (90, "none"), (0, "faster"), (None, "faster")]
)
def test_more_speed_than_the_layer_calls_allow_is_never_claimed(
    denoise: int | None, claim: str
) -> None:
    """Twins that ran side by side are quiet; between them and this cell the machine sped up."""
    calls = None if denoise is None else {"refresh": 100, "denoise": denoise}
    base = make_cell("k1_first", RIGHT, seconds=times(1.0), calls={"refresh": 100, "denoise": 100})
    cell = make_cell("k2_middle", RIGHT, seconds=times(1.25), calls=calls)
    found = compare(base, cell, floor=QUIET)
    assert found.speed is not None
    assert found.speed.claim == claim
    doubted = "faster than its layer calls allow (at most 1.11x)" in found.sentence
    assert doubted == (claim == "none")
    many = make_cell("k2_middle", RIGHT, seconds=times(1.25), calls=calls, batch_size=8)
    also = make_cell("k1_first", RIGHT, seconds=times(1.0), calls=calls, batch_size=8)
    full = compare(also, many, floor=QUIET).speed
    assert full is not None, "rows share forwards: calls do not tell the time"
    assert full.claim == "faster"


def test_without_twins_no_speed_is_claimed() -> None:
    found = compare(BASE, make_cell("k2_middle", RIGHT, seconds=times(2.0)))
    assert found.speed is not None
    assert found.speed.claim == "none"
    assert "the noise of the machine is unknown" in found.sentence


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"machines": ("A100",)}, "machines differ"),
        ({"machines": (MACHINE, "A100")}, "not computed on one machine"),
        ({"batch_size": 8}, "batch sizes differ"),
    ],
)
def test_times_of_different_machines_are_not_compared(changes: Any, reason: str) -> None:
    found = compare(BASE, make_cell("k2_middle", RIGHT, **changes), floor=QUIET)
    assert found.speed is None
    assert reason in str(found.speed_refused)
    assert "Speed is not compared" in found.sentence
    assert found.verdict == "same-or-better"  # accuracy may be


def test_a_gain_in_tokens_that_takes_longer_is_no_speed_up() -> None:
    """The ancestor's re-run: more tokens/s, yet 715 s became 958, for answers grew."""
    b = make_cell(
        "k2_middle", RIGHT, seconds=times(715 / 958), tokens=np.full(1000, 100 * 958 / 715 * 1.08)
    )
    found = compare(BASE, b, floor=QUIET)
    assert found.speed is not None
    assert found.speed.tokens_per_second == pytest.approx(1.08, abs=0.01)
    assert found.speed.claim == "slower"
    assert "its tokens/s are 1.0" in found.sentence
    assert "its answers grew to 1.4" in found.sentence


def test_a_worse_cell_is_faster_at_a_price() -> None:
    b = make_cell("k2_middle", flipped(RIGHT, 80, 30), seconds=times(1.25))
    assert "faster, at the price of -5.0 points" in compare(BASE, b, floor=QUIET).sentence


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
    cell = make_cell("k3_last", b.pop("right"), seconds=times(3.0), **b)
    found = compare(BASE, cell, floor=QUIET)
    assert found.speed is not None
    assert found.speed.ratio.low > 2
    assert found.speed.claim == "none"
    assert found.collapsed == (reason,)
    assert "its speed says nothing" in found.sentence
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


def test_twins_are_found_by_their_settings() -> None:
    cells = [
        make_cell("k1_first", RIGHT),
        make_cell("k1_middle", RIGHT, machines=("A100",)),
        make_cell("k1_last", RIGHT, fields={"decoding": "threshold=0.5"}),
        make_cell("k2_first", RIGHT),
    ]
    assert [cell.name for cell in find_twins(cells)] == ["k1_first"]
    assert noise_floor(cells) is None
    cells.append(make_cell("k1_again", RIGHT))
    assert [cell.name for cell in find_twins(cells)] == ["k1_first", "k1_again"]


def test_the_floor_grows_with_the_grid_and_shrinks_with_twins() -> None:
    assert floor_factor(3, 6) > floor_factor(3, 1) > floor_factor(4, 1)
    twins = [
        make_cell(name, RIGHT, seconds=times(ratio, noise=0))
        for name, ratio in (("k1_first", 1.0), ("k1_middle", 1.01), ("k1_last", 1.02))
    ]
    floor = noise_floor(twins, 6)
    assert floor is not None
    assert floor.spread == pytest.approx(0.02)
    assert floor.floor > floor.spread
    assert floor.odd is None
