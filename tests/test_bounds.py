"""What savings are worth: by the oracle's, by those of the controls, and where they come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cells import make_cell, write_cell
from fdllm.profiling.record import OracleSaving, Profile
from fdllm.record.paths import Layout
from fdllm.report.alternative import Alternative
from fdllm.report.bounds import Bounds, Oracle, find_bounds
from fdllm.report.build import Report, Section, build_report
from fdllm.report.html import render_html
from fdllm.report.page_tables import bounds_table
from fdllm.report.records import Record
from fdllm.report.results_md import render_results
from fdllm.report.sums import check_profiles, check_sums, write_sums
from profiles import made_up_half, made_up_profile

TASK, DOCS = "gsm8k", 6
FIELDS = {"source": "s1", "task": TASK, "decoding": "threshold=0.9"}


def cell(
    config: str,
    right: str,
    *,
    forwards: int = 10,
    calls: int = 100,
    drafted: int = 0,
    experiment: str = "00_baseline",
    **fields: str,
) -> Record:
    """Its documents all made as many forwards and layer calls; ``right`` is a digit each."""
    count = {"forwards": forwards, "computed": calls, "reused": 0, "tokens": 8, "shared": 0}
    counts = {"denoise": count | ({"drafted": drafted} if drafted else {})}
    made = make_cell(config, [float(one) for one in right], task=TASK, fields=fields)
    whole = {"denoise": {name: DOCS * number for name, number in counts["denoise"].items()}}
    changes: dict[str, Any] = {"counts": whole, "experiment": experiment, "dataset": "d"}
    summary = made.summary.model_copy(update=changes)
    facts = {"counts": counts, "requests": 1, "truncated": 0, "repetitive": 0, "steps": [[1]]}
    return replace(made, summary=summary, read=[one | facts for one in made.samples])


def saving(whole: int, saved: int) -> OracleSaving:
    return OracleSaving(
        layer_calls_whole=whole, layer_calls_saved=saved, denoise_share=0.75, equal_texts=DOCS
    )


BASE = cell("k1_first", "111110")
TWIN = cell("k1_last", "111110")
KEPT = cell("k2_kept", "111110", calls=90)
LOST = cell("k2_lost", "110000", calls=70)
MORE = cell("k3_more", "111110", forwards=12, calls=108)
DRAFTS = cell("k2_drafts", "111110", forwards=12, calls=120, drafted=7)
OTHER = cell("k2_other", "111110", calls=50, decoding="threshold=0.5")
TABLE = [BASE, TWIN, KEPT, LOST, MORE, DRAFTS, OTHER]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.of(tmp_path, tmp_path / "results")


def put(layout: Layout, *cells: Record) -> list[Record]:
    return [write_cell(layout.results, one) for one in cells]


def profiled(layout: Layout, **changes: Any) -> Profile:
    """A profile of these documents, whose oracle saves a fifth of k=1's 600 layer calls."""
    halves = {
        name: half.model_copy(update={"documents": tuple((TASK, i) for _, i in half.documents)})
        for name, half in (("choosing", made_up_half(0)), ("testing", made_up_half(3)))
    }
    values = {"task": TASK, "fingerprint": FIELDS, "oracle": saving(600, 120)} | halves
    profile = made_up_profile(**(values | changes))
    profile.write(*layout.profile_beside(TASK))
    return profile


def built(layout: Layout, table: list[Record]) -> Report:
    return build_report("00_baseline", "", None, [Section(tuple(table))], layout)


def bounds(layout: Layout) -> Bounds:
    [table] = built(layout, put(layout, *TABLE)).tables
    return table.bounds


def test_every_config_but_k1_has_a_row_and_its_gain_is_taken_apart(layout: Layout) -> None:
    found = {one.config: one for one in bounds(layout).rows}
    assert [*found] == ["k2_kept", "k2_lost", "k3_more", "k2_drafts", "k2_other"]
    assert [one.changed for one in found.values()] == [0, 3, 0, 0, 0]
    more = found["k3_more"].made
    assert (more.forwards, more.layer_calls) == (1.2, 1.08)
    assert found["k2_drafts"].made.forwards == 0.5, "a draft shares the forward of its state"


def test_savings_are_shares_of_the_oracles(layout: Layout) -> None:
    profiled(layout)
    found = bounds(layout)
    assert found.oracle == Oracle(0.2, 0.75, DOCS, DOCS)
    shares = {one.config: one.of_oracle for one in found.rows}
    assert shares == pytest.approx(
        {"k2_kept": 0.5, "k2_lost": 1.5, "k3_more": -0.4, "k2_drafts": -1.0, "k2_other": None}
    )


def test_a_share_bought_with_answers_stands_in_brackets(layout: Layout) -> None:
    profiled(layout)
    report = built(layout, put(layout, *TABLE))
    table = bounds_table(report.tables[0])
    assert table is not None
    names = [one.config for one in report.tables[0].bounds.rows]
    texts = {one.name: dict(zip(names, one.texts, strict=True)) for one in table.columns}
    share = texts["Of the oracle's saving"]
    assert share == {
        "k2_kept": "50.0 %", "k2_lost": "(150.0 %)", "k3_more": "-40.0 %",
        "k2_drafts": "-100.0 %", "k2_other": "",
    }  # fmt: skip
    assert texts["Layer calls saved"]["k3_more"] == "-8.0 %"
    assert texts["Calls a forward by k=1"]["k3_more"] == "0.90"
    assert "saves 20.0 % of the layer calls of 6 documents (75 % of" in table.caption


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (None, "fdllm profile --task gsm8k --experiment 00_baseline --model"),
        ({"oracle": None}, "finds that"),
        ({"fingerprint": FIELDS | {"decoding": "threshold=1"}}, "profile is of another decoding"),
        ({"testing": made_up_half(3)}, "has documents that these records lack"),
        (
            {"oracle": saving(601, 1)},
            "k1_first made other layer calls on the profile's documents than it did",
        ),
    ],
)
def test_why_there_is_no_share(layout: Layout, changes: dict[str, Any] | None, why: str) -> None:
    if changes is not None:
        profiled(layout, **changes)
    found = bounds(layout)
    assert found.oracle is None
    assert all(one.of_oracle is None for one in found.rows)
    assert found.notes[0].startswith("No share of the oracle's saving: ")
    assert why in found.notes[0]


def test_a_damaged_profile_is_named(layout: Layout) -> None:
    path, _ = layout.profile_beside(TASK)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert "profile.json: " in bounds(layout).notes[0]


def controls(layout: Layout) -> dict[str, Alternative]:
    random = [
        cell("k1_first", "111110", experiment="11_random"),
        cell("k2_r5", "111100", calls=95, experiment="11_random"),
        cell("k2_r20", "111000", calls=80, experiment="11_random"),
        cell("k2_r40", "110000", calls=60, experiment="11_random"),
    ]
    resample = [cell("k1_first", "111110", experiment="04_resample", source="s2")]
    put(layout, *random, *resample)
    found = bounds(layout)
    assert "04_resample has records, yet not comparable ones" in found.notes[-1]
    assert "05_threshold has no records of this task and model" in found.notes[-1]
    return {one.experiment: one for one in found.controls}


def test_a_control_answers_with_its_best_that_makes_no_more_layer_calls(layout: Layout) -> None:
    found = controls(layout)
    assert [*found] == ["11_random"]
    against = {one.config: one for one in found["11_random"].against}
    assert {name: one.rival for name, one in against.items()} == {
        "k2_kept": "k2_r20",  # k2_r5 makes 95
        "k2_lost": "k2_r40",
        "k3_more": "k1_first",  # what saves nothing is beaten by no reuse at all
        "k2_drafts": "k1_first",
        "k2_other": None,
    }
    kept = against["k2_kept"].difference
    assert kept is not None
    assert kept.value == pytest.approx(2 / 6)
    assert against["k2_other"].word == "none costs as little"
    costs = [one.cost.value for one in found["11_random"].cells]
    assert costs == pytest.approx([0.6, 0.8, 0.95, 1])


def test_page_and_markdown_show_them_and_a_check_sees_a_change(layout: Layout) -> None:
    profiled(layout)
    table = put(layout, *TABLE)
    report = built(layout, table)
    assert "Of the oracle's saving" in render_results(report, "--task x")
    page = render_html(report)
    assert "Bounds and controls" in page
    assert "(150.0\u00a0%)" in page or "(150.0 %)" in page
    profiled(
        layout,
        oracle=saving(600, 60),
    )
    again = built(layout, table).figures()
    assert again["tables"][0]["bounds"] != report.figures()["tables"][0]["bounds"]


def test_without_a_baseline_nothing_stands_beside(layout: Layout) -> None:
    assert find_bounds(layout, [KEPT], None, ()) == Bounds()
    assert find_bounds(layout, [BASE, TWIN], BASE, ()) == Bounds()


def test_a_profile_that_was_changed_is_noticed_with_and_without_the_original(
    layout: Layout,
) -> None:
    profiled(layout)
    table = put(layout, *TABLE)
    write_sums(layout, "00_baseline", table)
    folders = [one.folder for one in table]
    original, copy = layout.profile_beside(TASK)
    assert not check_sums(layout, "00_baseline").differences
    found = check_profiles(layout, folders)
    assert (found.num_figures, found.differences) == (1, ())
    copy.write_text(copy.read_text().replace('"layer_calls_saved": 120', '"layer_calls_saved": 90'))
    [seen] = check_profiles(layout, folders).differences
    assert seen.where == f"profile/{TASK}/profile.json"
    original.unlink()
    assert not check_profiles(layout, folders).differences
    [seen] = check_sums(layout, "00_baseline").differences
    assert seen.where.endswith(f"profile/{TASK}/profile.json")
