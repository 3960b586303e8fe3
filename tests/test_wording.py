"""What a report says in words about a table: each sentence by the figures that it is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cells import make_cell, make_times
from fdllm.record.summary import Headline
from fdllm.report.alternative import THRESHOLD, Alternative, ControlCell
from fdllm.report.bounds import Bounds
from fdllm.report.build import TablePage
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.grid import GridFinding
from fdllm.report.made import Made
from fdllm.report.origin import Origin
from fdllm.report.page_tables import page_tables
from fdllm.report.report_text import notices, summary_sentence
from fdllm.report.scatter import legend
from fdllm.report.stats import Estimate
from fdllm.report.table import percent, with_interval
from fdllm.report.times import Times

TIMES = make_times(0.04, k1_last=1.0, k2_first=0.8, k2_last=0.62, k3_first=0.98, k3_last=1.3)


def cell(name: str, **changes: Any) -> CellFigures:
    values: dict[str, Any] = dict.fromkeys(CellFigures.__dataclass_fields__)
    k, _, subset = name.removeprefix("k").partition("_")
    values |= {
        "name": name,
        "k": int(k) if k.isdigit() else 1,
        "subset": subset,
        "reuses": not name.startswith("k1"),
        "accuracy": 0.8,
        "num_samples": 250,
        "saved_share": 0.25,
        "calls": {},
        "possible": 1.0,
        "tokens": 1,
        "repetition": 0.0,
        "subjects": {},
    }
    return CellFigures(**(values | changes))


def against(name: str, **changes: Any) -> Comparison:
    values: dict[str, Any] = dict.fromkeys(Comparison.__dataclass_fields__)
    values |= {
        "a": "k1_first",
        "b": name,
        "difference": Estimate(-0.01, -0.03, 0.01),
        "made": Made(0.75, 0.8, 0.9),
        "speed": TIMES.pairs.get(name),
        "floor": TIMES.floor,
        "collapsed": (),
        "same_computation": False,
        "identical": False,
        "notes": (),
        "verdict": "same-or-better",
    }
    return Comparison(**(values | changes))


def table(*cells: CellFigures, **changes: Any) -> TablePage:
    values: dict[str, Any] = dict.fromkeys(TablePage.__dataclass_fields__)
    values |= {
        "key": "t0",
        "kind": "generate",
        "baseline": "k1_first",
        "cells": cells,
        "against": {},
        "times": TIMES,
        "findings": (),
        "alternative": Alternative(THRESHOLD),
        "bounds": Bounds(),
    }
    return TablePage(**(values | changes))


BASE = cell("k1_first")


# --- the summary ----------------------------------------------------------------------------------


def summed(*comparisons: Comparison, **changes: Any) -> str:
    cells = (BASE, *(cell(one.b) for one in comparisons))
    return summary_sentence(table(*cells, against={one.b: one for one in comparisons}, **changes))


def test_without_a_baseline_nothing_is_compared() -> None:
    found = summary_sentence(table(cell("k2_last"), baseline=None))
    assert found == "No cell without reuse is done, so nothing can be compared yet."


def test_the_summary_counts_verdicts_and_names_the_fastest() -> None:
    four = [
        against("k2_first"),
        against("k2_last", verdict="worse"),
        against("k3_first", verdict="cannot-tell"),
        against("k3_last", verdict="worse"),
    ]
    begins = (
        "k1_first reaches 80.0 % on 250 documents; of 4 other configs 1 hold that, 2 lose some, 1 "
        "cannot be told from it; the fastest, "
    )
    ends = "of k1_first's time at -1.0 points (noise floor 4.0 %)."
    assert summed(*four) == f"{begins}k2_last, takes 0.620 [0.614, 0.626] {ends}"
    four[1] = replace(four[1], collapsed=("accuracy fell",))
    assert summed(*four) == f"{begins}k2_first, takes 0.800 [0.792, 0.808] {ends}"


@pytest.mark.parametrize("name", ["k3_first", "k3_last"])
def test_what_is_not_claimed_is_not_said(name: str) -> None:
    assert summed(against(name)).endswith("; none is shown to be faster (noise floor 4.0 %).")


def test_twins_are_no_other_configs() -> None:
    twin = against("k1_last", same_computation=True)
    assert "; no other computation stands beside it; " in summed(twin)
    assert "; of 1 other configs 1 hold that; " in summed(twin, against("k2_first"))


def test_without_a_study_that_is_said() -> None:
    no_study = Times(sentence="speed was not measured: fdllm timing --task gsm8k")
    found = summed(against("k2_last", speed=None), times=no_study)
    assert found.endswith("; speed was not measured: fdllm timing --task gsm8k.")


# --- notices --------------------------------------------------------------------------------------


def said(one: TablePage, overlap: str | None = None) -> list[tuple[str, str]]:
    return [(notice.text, notice.kind) for notice in notices(one, overlap)]


def test_checks_are_good_news_or_bad() -> None:
    good = GridFinding("twins", ("k1_first", "k1_last"), "A/A: k1_first = k1_last")
    wrong = GridFinding("twins-differ", ("k1_first", "k1_last"), "k1_first and k1_last differ")
    other = GridFinding("identical", ("k1_first",), "two identical cells")
    assert said(table(BASE, findings=(good, wrong, other))) == [
        ("✓ A/A: k1_first = k1_last.", "good"),
        ("✗ k1_first and k1_last differ.", "bad"),
        ("! two identical cells.", "bad"),
    ]


def test_collapse_overlap_and_missing_journals_are_said() -> None:
    fallen = against("k2_last", collapsed=("accuracy fell", "it repeats itself"))
    silent = cell("k2_last", repetition=None)
    one = table(BASE, silent, against={"k2_last": fallen, "k2_first": against("k2_first")})
    reasons = "k2_last (accuracy fell; it repeats itself)"
    assert said(one, "subsets overlap") == [
        (f"Collapsed, so that their time is no merit: {reasons}.", "bad"),
        ("Subsets overlap.", ""),
        ("Some journals are not here: repetition and unmasking cannot be shown for them.", ""),
    ]
    assert said(replace(one, kind="loglikelihood", against={})) == []


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
    curve_cell = ControlCell("t0.5", Estimate(1, 1, 1), Estimate(0, 0, 0))
    named = table(cell("calm"), alternative=Alternative(THRESHOLD, (curve_cell,)))
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
