"""What a report says in words about a table: each sentence by the figures that it is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cells import make_cell
from fdllm.record.summary import Headline
from fdllm.report.alternative import Alternative
from fdllm.report.build import TablePage
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.grid import GridFinding
from fdllm.report.origin import Origin
from fdllm.report.page_tables import page_tables
from fdllm.report.report_text import notices, summary_sentence
from fdllm.report.scatter import legend
from fdllm.report.speed import Floor, Speed
from fdllm.report.stats import Estimate
from fdllm.report.table import percent, with_interval

FLOOR = Floor(("k1_first", "k1_last"), (40.0, 41.0), 0.025, 0.04, None)


def cell(name: str, **changes: Any) -> CellFigures:
    values: dict[str, Any] = dict.fromkeys(CellFigures.__dataclass_fields__)
    k, _, subset = name.removeprefix("k").partition("_")
    values |= {
        "name": name,
        "k": int(k) if k.isdigit() else 1,
        "subset": subset,
        "reuses": not name.startswith("k1"),
        "accuracy": 0.8,
        "speed": 40.0,
        "saved_share": 0.25,
        "made": 100.0,
        "calls": {},
        "possible": 1.0,
        "tokens": 1,
        "repetition": 0.0,
        "subjects": {},
    }
    return CellFigures(**(values | changes))


def against(**changes: Any) -> Comparison:
    values: dict[str, Any] = dict.fromkeys(Comparison.__dataclass_fields__)
    values |= {
        "speed": speed(1.25),
        "collapsed": (),
        "verdict": "same-or-better",
    }
    return Comparison(**(values | changes))


def speed(ratio: float, claim: Any = "faster") -> Speed:
    return Speed(Estimate(ratio, ratio, ratio), ratio, 1.0, FLOOR, claim)


def table(*cells: CellFigures, **changes: Any) -> TablePage:
    values: dict[str, Any] = dict.fromkeys(TablePage.__dataclass_fields__)
    values |= {
        "key": "t0",
        "kind": "generate",
        "unit": "tokens/s",
        "baseline": "k1_first",
        "cells": cells,
        "against": {},
        "floor": FLOOR,
        "findings": (),
        "alternative": Alternative((), (), ""),
    }
    return TablePage(**(values | changes))


BASE = cell("k1_first")


# --- the summary ----------------------------------------------------------------------------------


def test_a_table_without_reuse_tells_its_best_accuracy_and_its_speeds() -> None:
    cells = (BASE, cell("k1_last", accuracy=0.82, speed=44.0), cell("k1_middle"))
    assert summary_sentence(table(*cells)) == (
        "nothing is reused here. Accuracy is at best 82.0 % (k1_last), speed 40.0 to 44.0 tokens/s."
    )


def test_without_a_baseline_nothing_is_compared() -> None:
    found = summary_sentence(table(cell("k2_last"), baseline=None))
    assert found == "no cell without reuse is done, so nothing can be compared yet."


def test_the_summary_counts_verdicts_and_names_the_fastest() -> None:
    cells = (
        BASE,
        *(cell(name, made=75.0) for name in ("k2_first", "k2_last", "k3_first", "k3_last")),
    )
    one = table(
        *cells,
        against={
            "k2_first": against(),
            "k2_last": against(verdict="worse", speed=speed(1.6)),
            "k3_first": against(verdict="cannot-tell", speed=None),
        },
    )
    begins = (
        "k1_first reaches 80.0 % at 40.0 tokens/s. Of 4 configs that reuse, 1 hold its accuracy, "
        "1 lose some, 2 cannot be told. The fastest that did not collapse, "
    )
    ends = "with 25 % of its layer calls saved; it makes 0.75 times k1_first's."
    assert summary_sentence(one) == f"{begins}k2_last, takes 62 % of the time, {ends}"
    gone = replace(one.against["k2_last"], collapsed=("accuracy fell",))
    other = replace(one, against=one.against | {"k2_last": gone})
    assert summary_sentence(other) == f"{begins}k2_first, takes 80 % of the time, {ends}"


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("faster", "takes 80 % of the time"),
        ("slower", "takes 80 % of the time"),
        ("none", "is not shown to be faster (1.25 times the speed)"),
    ],
)
def test_what_is_not_claimed_is_not_said(claim: str, said: str) -> None:
    one = table(BASE, cell("k2_last"), against={"k2_last": against(speed=speed(1.25, claim))})
    assert f" The fastest, k2_last, {said}, with" in summary_sentence(one)


def test_where_all_collapsed_no_speed_is_told() -> None:
    fallen = against(collapsed=("accuracy fell",), verdict="worse")
    one = table(BASE, cell("k2_last"), against={"k2_last": fallen})
    assert summary_sentence(one).endswith("None of them is worth a word on speed.")


# --- notices --------------------------------------------------------------------------------------


def said(one: TablePage, overlap: str | None = None) -> list[tuple[str, str]]:
    return [(notice.text, notice.kind) for notice in notices(one, overlap)]


def test_twins_that_agree_set_the_floor() -> None:
    good = (
        "✓ A/A: k1_first = k1_last in every output; speeds 40.0, 41.0: noise floor 4.0 %, no "
        "speed-up below it is claimed."
    )
    assert said(table(BASE)) == [(good, "good")]
    odd = table(BASE, floor=replace(FLOOR, odd="k1_last"))
    assert said(odd) == [(good, "")]
    far = table(BASE, floor=replace(FLOOR, floor=1.5))
    assert "40.0, 41.0, so far apart that nothing can be said about speed here." in said(far)[0][0]
    edge = table(BASE, floor=replace(FLOOR, floor=1.0))
    assert "noise floor 100.0 %" in said(edge)[0][0]


def test_twins_that_differ_are_no_good_news() -> None:
    wrong = GridFinding("twins-differ", ("k1_first", "k1_last"), "k1_first and k1_last differ")
    assert said(table(BASE, findings=(wrong,))) == [("✗ k1_first and k1_last differ.", "bad")]
    other = GridFinding("identical", ("k1_first",), "two identical cells")
    found = said(table(BASE, findings=(other,)))
    assert found[0] == ("! two identical cells.", "bad")
    assert found[1][1] == "good"


def test_without_twins_that_is_said() -> None:
    ((text, kind),) = said(table(BASE, floor=None))
    assert text.startswith("No two cells here are one computation")
    assert text.endswith("no speed-up is claimed.")
    assert kind == ""


def test_collapse_overlap_and_missing_journals_are_said() -> None:
    fallen = against(collapsed=("accuracy fell", "it repeats itself"))
    silent = cell("k2_last", repetition=None)
    one = table(BASE, silent, against={"k2_last": fallen, "k2_first": against()})
    found = said(one, "subsets overlap")
    reasons = "k2_last (accuracy fell; it repeats itself)"
    assert found[1:] == [
        (f"Collapsed, so that their speed is no merit: {reasons}.", "bad"),
        ("Subsets overlap.", ""),
        ("Some journals are not here: repetition and unmasking cannot be shown for them.", ""),
    ]
    assert len(said(replace(one, kind="loglikelihood", against={}))) == 1


# --- legend and subjects --------------------------------------------------------------------------


def test_the_legend_names_what_is_there() -> None:
    none, curve = (
        ("s0", "●", "no reuse"),
        ("s4", "\N{MULTIPLICATION SIGN}", "threshold lowered instead"),
    )
    assert legend(table(BASE)) == [none]
    grid = table(BASE, cell("k2_first"), cell("k3_last"), cell("k4_last"))
    assert legend(grid) == [
        none,
        ("s1", "▬", "first"),
        ("s3", "▬", "last"),
        ("soft", "■", "k = 2"),
        ("soft", "▲", "k = 3"),
        ("soft", "◆", "k = 4"),
    ]
    named = table(cell("calm"), alternative=Alternative((BASE,), (), ""))
    assert legend(named) == [("s1", "▬", "reuse"), curve]


def test_subjects_stand_beside_the_baselines() -> None:
    one = table(
        cell("k1_first", subjects={"anatomy": (0.5, 10), "law": (0.25, 4)}),
        cell("k2_last", subjects={"anatomy": (0.75, 10), "zoology": (1.0, 3)}),
    )
    assert by_subject(one) == {
        "Subject": ["anatomy", "law", "zoology"],
        "n": ["10", "4", "3"],
        "k1_first": ["50.0", "25.0", "0.0"],
        "k2_last": ["75.0 [+25.0]", "0.0 [-25.0]", "100.0"],
    }
    assert by_subject(replace(one, baseline="gone"))["k2_last"] == ["75.0", "0.0", "100.0"]


def by_subject(one: TablePage) -> dict[str, list[str]]:
    whole = replace(one, origin=Origin({}, {}, ()))
    records = [make_cell(cell.name, [1.0, 0.0]) for cell in one.cells]
    found = page_tables(whole, records)["subjects"]
    assert found is not None
    return {column.name: list(column.texts) for column in found.columns}


# --- figures in words -----------------------------------------------------------------------------


def test_a_share_is_told_in_percent_with_its_interval() -> None:
    assert percent(0.1234) == "12.3 %"
    assert percent(0.1234, 2) == "12.34 %"
    whole = Headline(metric="acc", value=0.8, num_samples=100, num_correct=80)
    assert with_interval(whole) == "80.0 % [71.1, 86.7]"
    graded = whole.model_copy(update={"num_correct": None})
    assert with_interval(graded) == "80.0 %"
    assert with_interval(whole.model_copy(update={"num_samples": 0})) == "80.0 %"
