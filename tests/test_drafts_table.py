"""What a table says of verified drafts."""

from __future__ import annotations

from dataclasses import replace

from cells import make_cell
from fdllm.report.drafts import Drafts, drafts_table
from fdllm.report.records import Record


def drafting(drafted: int, drafts: int = 0, layers: int = 4) -> Record:
    """Two documents of ten steps each, in four layers; 12 forwards of which some are drafts."""
    cell = make_cell("k1_r3", [1, 0])
    denoise = {"forwards": 12, "computed": (12 - drafts) * layers + drafts, "trimmed": 0}
    counts = {"denoise": denoise | {"drafted": drafted, "drafting": drafts}}
    strategy = cell.summary.strategy.model_copy(update={"n_layers": layers})
    summary = cell.summary.model_copy(update={"counts": counts, "strategy": strategy})
    samples = [row | {"steps": [[1] * 10]} for row in cell.samples]
    return replace(cell, summary=summary, read=samples)


def test_rounds_drafts_and_the_gain_of_a_memory_bound_device() -> None:
    assert Drafts.of(drafting(7)) == Drafts(20, 5, 7, 0, 4.0)
    # Four drafting forwards of one layer in four cost as much as one forward.
    assert Drafts.of(drafting(4, drafts=4)) == Drafts(20, 4, 4, 4, 4.0)


def test_a_table_only_where_something_was_drafted() -> None:
    assert drafts_table([drafting(0)]) is None
    table = drafts_table([drafting(0), drafting(7)])
    assert table is not None
    assert table.markdown()[-1] == "| k1_r3 | 20 | 5 | 7 | 0 | 4.00 |"
