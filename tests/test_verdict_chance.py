"""How often a verdict is wrong by chance, in grids whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fdllm.criteria import Criteria
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.margins import Marked
from fdllm.report.stats import Estimate, tango, tango_score
from fdllm.report.verdict import Judged, judge

MARGIN, ROWS, GRIDS = 0.02, 1000, 500


def blank(kind: Any, **values: Any) -> Any:
    return kind(**dict.fromkeys(kind.__dataclass_fields__) | values)


def words(criteria: Criteria, change: float, num_configs: int, num_tasks: int) -> dict[str, int]:
    """Verdicts of grids in which every cell changes by ``change``, one row in ten flipping."""
    draw = np.random.default_rng(7)
    shape = GRIDS, num_tasks, num_configs
    shares = [(0.1 - change) / 2, (0.1 + change) / 2, 0.9]
    losses, gains, _ = np.moveaxis(draw.multinomial(ROWS, shares, shape), -1, 0)
    low, high = tango(losses, gains, np.array(ROWS))
    found: dict[str, int] = {}
    for grid in range(GRIDS):
        tasks = []
        for task in range(num_tasks):
            cells = []
            for config in range(num_configs):
                at = grid, task, config
                shown = Marked(int(losses[at]), int(gains[at]), ROWS).weigh(MARGIN)
                ends = Estimate((gains[at] - losses[at]) / ROWS, low[at], high[at])
                other = blank(Comparison, difference=ends, within=shown.within, beyond=shown.beyond)
                cells.append((blank(CellFigures, name=f"c{config}"), other))
            tasks.append(Judged(f"task{task}", False, cells))
        word = judge(criteria, tasks).word
        found[word] = found.get(word, 0) + 1
    return found


@pytest.mark.parametrize("require", ["any", "all"])
@pytest.mark.parametrize(("num_configs", "num_tasks"), [(1, 1), (9, 1), (9, 2)])
def test_a_verdict_on_the_margin_is_wrong_in_at_most_one_grid_of_twenty(
    require: Any, num_configs: int, num_tasks: int
) -> None:
    """Just too large a loss must not be confirmed, one that is just allowed not be refuted."""
    criteria = Criteria(max_accuracy_drop=MARGIN, require=require)
    at_edge = words(criteria, -MARGIN, num_configs, num_tasks)
    for word in ("confirmed", "refuted"):
        assert at_edge.get(word, 0) <= 0.05 * GRIDS


def test_a_grid_that_holds_is_confirmed_and_one_that_collapsed_is_refuted() -> None:
    criteria = Criteria(max_accuracy_drop=MARGIN)
    assert words(criteria, 0.03, 3, 2).get("confirmed", 0) > 0.95 * GRIDS
    assert words(criteria, -0.08, 3, 2).get("refuted", 0) > 0.95 * GRIDS


def test_the_score_is_what_the_interval_inverts() -> None:
    low, high = tango(np.array(40), np.array(30), np.array(1000))
    for end in (float(low), float(high)):
        assert abs(tango_score(np.array(40), np.array(30), 1000, end)) == pytest.approx(
            1.96, abs=1e-3
        )
