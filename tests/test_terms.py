"""Criteria before and after a run: names, rivals, too few rows, what cannot act, edits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fdllm import tiny
from fdllm.criteria import Criteria, criteria_lock, criteria_text
from fdllm.errors import UsageError
from fdllm.evaluate.tasks import task_facts
from fdllm.plan import Planner
from fdllm.record.paths import Layout
from fdllm.report.build import Section, build_report
from fdllm.report.records import Record, load_record
from fdllm.report.terms import (
    before,
    check_criteria,
    judged_cells,
    lock_words,
    num_rows,
    undecidable,
)
from fdllm.runs import Sweep
from helpers import ROOT
from made_up import Invented, write_grid
from stubs import make_planner, make_root, make_sweep

DROP = Criteria(max_accuracy_drop=0.02)


@pytest.fixture
def stated(tmp_path: Path) -> Callable[..., tuple[Planner, Sweep]]:
    """The baseline experiment with other criteria."""
    root = make_root(tmp_path)
    path = root / "experiments/00_baseline/experiment.toml"
    rest = path.read_text().partition("[criteria]")[0]

    def state(criteria: str, **changes: Any) -> tuple[Planner, Sweep]:
        path.write_text(f"{rest}\n[criteria]\n{criteria}\n")
        return make_planner(root), make_sweep(root, **changes)

    return state


# --- what they say --------------------------------------------------------------------------------


def test_a_lock_is_of_what_is_stated_and_not_of_how() -> None:
    one = Criteria(max_accuracy_drop=0.02, min_speedup=1.15)
    assert criteria_text(one) == '{"max_accuracy_drop": 0.02, "min_speedup": 1.15}'
    assert one == Criteria(min_speedup=1.15, max_accuracy_drop=0.02, require="any")
    assert criteria_text(one) == criteria_text(Criteria(**one.model_dump()))
    assert criteria_text(None) == "none"
    locks = {criteria_lock(criteria_text(c)) for c in (one, None, DROP)}
    assert len(locks) == 3
    assert {len(lock) for lock in locks} == {12}


def test_a_rival_is_one_for_all_or_one_for_each() -> None:
    one = Criteria(max_accuracy_drop=0.02, rival="k2_middle")
    assert (one.rival_of("k2_line"), one.rival_of("k2_middle")) == ("k2_middle", None)
    assert one.words.endswith("(accuracy and time against k2_middle)")
    each = Criteria(min_speedup=1.1, rival={"k2_line": "k2_middle", "k3_line": "k3_middle"})
    assert (each.rival_of("k3_line"), each.rival_of("k1_first")) == ("k3_middle", None)
    assert each.rivals == ("k2_middle", "k3_middle")
    assert set(each.names) == {"k2_line", "k3_line", "k2_middle", "k3_middle"}
    with pytest.raises(ValueError, match="only max_accuracy_drop and min_speedup"):
        Criteria(min_saved_share=0.1, rival="k2_middle")


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ('max_accuracy_drop = 0.02\nconfigs = ["k2_midle"]', "did you mean 'k2_middle'"),
        ('max_accuracy_drop = 0.02\nrival = "k2_midle"', "did you mean 'k2_middle'"),
        ('max_accuracy_drop = 0.02\nrival = { k3_last = "k9" }', "unknown config 'k9'"),
        ('min_speedup = 1.1\nrival = { k2_last = "k2_last" }', "k2_last cannot be its own rival"),
        (
            'min_saved_share = 0.1\nconfigs = ["k2_last", "k1_last"]',
            "names k1_last: what the baseline computes",
        ),
    ],
)
def test_criteria_that_cannot_be_judged_are_refused_before_a_run(
    stated: Callable[..., tuple[Planner, Sweep]], criteria: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_criteria(*stated(criteria))


def test_where_no_config_is_named_the_baseline_its_twins_and_rivals_are_not_judged(
    stated: Callable[..., tuple[Planner, Sweep]],
) -> None:
    planner, sweep = stated("min_saved_share = 0.1")
    check_criteria(planner, sweep)
    cells = planner.experiment("00_baseline").cells
    names = [cell.name for cell in judged_cells(Criteria(min_saved_share=0.1), cells)]
    assert names == [f"k{k}_{s}" for k in (2, 3) for s in ("first", "middle", "last")]
    rival = Criteria(max_accuracy_drop=0.1, rival="k2_middle")
    assert "k2_middle" not in [cell.name for cell in judged_cells(rival, cells)]


# --- too few rows ---------------------------------------------------------------------------------


def test_rows_are_known_before_a_run() -> None:
    files = {name: tiny.TASKS / f"{name.removeprefix('tiny_')}.jsonl" for name in tiny.TASK_NAMES}
    for name, path in files.items():
        assert num_rows(name) == len(path.read_text().splitlines())
    assert (num_rows("gsm8k"), num_rows("humaneval")) == (1319, 164)


@pytest.mark.parametrize(
    ("criteria", "rows", "words"),
    [
        (DROP, 961, ""),
        (DROP, 960, "not decidable by 960 rows, needs 961"),
        (DROP, 164, "not decidable by 164 rows, needs 961"),
        (Criteria(max_accuracy_drop=0.02, discordant_share=0.001), 164, "needs 189"),
        (Criteria(max_accuracy_drop=0.0), 10**6, "no number of them decides a margin of 0"),
        (Criteria(min_speedup=1.1), 3, ""),
    ],
)
def test_too_few_rows_are_told_with_the_number_that_is_needed(
    criteria: Criteria, rows: int, words: str
) -> None:
    found = undecidable(criteria, rows)
    assert found.endswith(words)
    assert bool(found) == bool(words)


def test_it_is_said_before_anything_runs() -> None:
    """Also that a task's cells could only repeat one another; a few rows decide nothing anyway."""
    planner = Planner(ROOT, Layout.of(ROOT), task_facts)
    sweep = Sweep(experiment="05_threshold", tasks=("gsm8k", "humaneval", "mmlu"))
    found = before(planner, sweep)
    assert set(found) == {"humaneval", "mmlu"}
    assert found["humaneval"] == "not decidable by 164 rows, needs 961"
    assert found["mmlu"].startswith("not applicable: denoise reads nothing that t0.50 changes")
    assert before(planner, sweep.model_copy(update={"limit": 10})) == {}


# --- edits ----------------------------------------------------------------------------------------


def locked(record: Record, rows: dict[str, int]) -> Record:
    """The record with so many rows under each lock."""
    provenance = record.summary.provenance | {"criteria": rows}
    summary = record.summary.model_copy(update={"provenance": provenance})
    return replace(record, summary=summary)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"now": 60}, ""),
        ({"then": 60}, "criteria changed after 60 rows"),
        ({"then": 20, "now": 40}, "criteria changed after 20 rows"),
        ({"none": 60}, "criteria stated after 60 rows"),
        ({}, "criteria were not locked when these rows were computed"),
    ],
)
def test_an_edit_shows_with_the_rows_that_came_before_it(
    tmp_path: Path, rows: dict[str, int], words: str
) -> None:
    """In the verdict's notes, and where the table stands."""
    locks = {
        "now": criteria_lock(criteria_text(DROP)),
        "then": criteria_lock(criteria_text(Criteria(max_accuracy_drop=0.01))),
        "none": criteria_lock("none"),
    }
    grid = [Invented("k1_first"), Invented("k2_first")]
    cells = [load_record(paths.folder) for paths in write_grid(tmp_path / "results", grid)]
    base, cell = cells
    cells = [locked(base, {locks["now"]: 60}), locked(cell, {locks[n]: k for n, k in rows.items()})]
    assert lock_words(DROP, [one.summary for one in cells]) == words
    sections = [Section(tuple(cells))]
    report = build_report("00_baseline", "", DROP, sections, Layout.of(tmp_path))
    assert [table.lock for table in report.tables] == [words]
    assert (f"gsm8k: {words}." in report.verdict.notes) == bool(words)


def test_criteria_that_were_taken_out_are_missed(tmp_path: Path) -> None:
    (paths,) = write_grid(tmp_path / "results", [Invented("k1_first")])
    record = load_record(paths.folder)
    assert lock_words(None, [record.summary]) == ""
    summary = locked(record, {criteria_lock(criteria_text(DROP)): 60}).summary
    assert lock_words(None, [summary]) == "criteria taken out after 60 rows"


# --- a rival --------------------------------------------------------------------------------------


def test_a_rival_is_what_accuracy_is_judged_against(tmp_path: Path) -> None:
    """Where the rival is worse than the baseline, a config may match it and not the baseline."""
    grid = [Invented("k1_first", 0.95), Invented("k2_first", 0.5), Invented("k2_last", 0.5)]
    cells = tuple(
        load_record(paths.folder) for paths in write_grid(tmp_path / "results", grid, num_docs=400)
    )
    own = {"max_accuracy_drop": 0.12, "discordant_share": 0.2, "configs": ("k2_last",)}
    words = []
    for criteria in (Criteria(**own), Criteria(**own, rival="k2_first")):
        sections = [Section(cells)]
        report = build_report("00_baseline", "", criteria, sections, Layout.of(tmp_path))
        words.append(report.verdict.word)
        assert report.tables[0].against["k2_last"].a == "k1_first", "what is shown stays"
    assert words == ["refuted", "confirmed"]
