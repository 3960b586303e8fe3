"""One table over all experiments: each figure is that of the experiment's own page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cells import write_study
from command import Command, summary_of
from drawn import Drawn, near
from fdllm.criteria import Criteria
from fdllm.errors import UsageError
from fdllm.experiment import create_experiment
from fdllm.record.paths import Layout
from fdllm.report.bounds import Oracle
from fdllm.report.build import Report, Section, build_report
from fdllm.report.records import Record, load_record
from fdllm.report.referee import (
    OneTask,
    PublicClaims,
    TaskRow,
    by_task,
    draw,
    findings,
    read_claims,
    rows_table,
)
from fdllm.report.referee_page import referee_pages
from fdllm.report.results_md import render_results
from fdllm.report.svg import standalone
from made_up import Invented, write_grid

TASK = ("--task", "tiny_arithmetic")
NUM_DOCS = 120
CURVE = (Invented("t0.95"), Invented("t0.95_again"), Invented("t0.50", 0.7, 60, threshold=0.5))
PLAIN = [Invented("k1_first"), Invented("k1_last")]
CELLS = {
    "00_baseline": [*PLAIN, Invented("k2_first", 0.7), Invented("k3_last", 0.1, repetitive=0.9)],
    "02_other": [*PLAIN, Invented("k2_middle", 0.78)],
    "05_threshold": [*CURVE],
}
TIMES = {
    "00_baseline": {"k2_first": 0.9, "k3_last": 0.8},
    "02_other": {"k2_middle": 1.2},
    "05_threshold": {"t0.50": 0.7},
}
CLAIMS = PublicClaims.read(
    {
        "claim": [
            {"who": "a|b", "says": "half the time", "experiment": "02_other", "rule": "the same"},
            {"who": "c", "says": "more", "experiment": "09_not_run", "rule": "another"},
        ]
    },
    "claims",
)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    results = tmp_path_factory.mktemp("records") / "results"
    tables: dict[str, Sequence[Record]] = {}
    for name, cells in CELLS.items():
        written = write_grid(results, cells, experiment=name, num_docs=NUM_DOCS)
        tables[name] = [load_record(paths.folder) for paths in written]
        write_study(tables[name], TIMES[name])
    layout, criteria = Layout.of(results, results), Criteria(max_accuracy_drop=0.02)
    missing = ("k3_first: pending",)
    return [
        build_report(
            name, "", criteria, [Section(tuple(t), "gsm8k on 7B", missing=missing)], layout
        )
        for name, t in tables.items()
    ]


@pytest.fixture(scope="module")
def task(reports: list[Report]) -> OneTask:
    [one] = by_task(reports)
    return one


@pytest.fixture(scope="module")
def text(reports: list[Report]) -> str:
    return referee_pages(reports, "--all", CLAIMS, Path(), Path())[Path("referee.md")]


def rows(text: str, head: str) -> list[dict[str, str]]:
    """Rows of every table whose first column is called so."""
    found: list[dict[str, str]] = []
    names: list[str] = []
    for line in text.splitlines():
        cells = line.replace("\\|", "/").strip("| ").split(" | ")
        if not line.startswith("| ") or cells[0].startswith("---"):
            names = names if line.startswith("| ---") else []
        elif not names:
            names = cells
        elif names[0] == head:
            found.append(dict(zip(names, cells, strict=False)))
    return found


def test_every_config_stands_there_once_and_no_twin(text: str) -> None:
    assert [row["Config"] for row in rows(text, "Config")] == [
        "00_baseline k2_first",
        "00_baseline k3_last",
        "02_other k2_middle",
        "05_threshold t0.50",
    ]


def test_each_figure_is_that_of_the_experiment_s_own_page(text: str, reports: list[Report]) -> None:
    own = {
        f"{report.experiment} {row['Config']}": row
        for report in reports
        for row in rows(render_results(report, ""), "Config")
        if "Claim" in row
    }
    shared = ("Change [95 %]", "Time by k=1 [95 %]", "Claim", "Layer calls by k=1",
              "FLOPs by k=1", "Bytes by k=1")  # fmt: skip
    for row in rows(text, "Config"):
        theirs = own[row["Config"]]
        assert [row.get(name) for name in shared] == [theirs.get(name) for name in shared]
        assert theirs["Accuracy [95 %]"].startswith(row["Right"])


def test_verdicts_are_the_experiments_own(text: str, reports: list[Report]) -> None:
    verdicts = {row["Experiment"]: row["Verdict"] for row in rows(text, "Experiment")}
    assert verdicts == {one.experiment: one.verdict.word for one in reports}
    criteria = {row["Config"]: row.get("Criteria", "") for row in rows(text, "Config")}
    assert criteria["00_baseline k3_last"] == "missed"


def test_what_the_table_comes_to_is_counted(text: str, task: OneTask) -> None:
    right = {f"{100 * t.base.accuracy:.1f} % of {NUM_DOCS}" for _, t in task.tables if t.base}
    assert f"- k = 1, in 3 experiments, has {' or '.join(sorted(right))} documents right." in text
    number = sum(one.against.verdict == "same-or-better" for one in task.entries)
    assert f"- Of 4 other configs {number} hold accuracy;" in text
    beside = text.split("Beside the best lowered threshold")[1].partition("\n")[0]
    assert "less accurate" in beside
    assert "- 02_other: 1 config, the first k3_first: pending" in text


def test_savings_stand_beside_the_oracle_s_and_the_controls(task: OneTask) -> None:
    def columns(entries: Sequence[TaskRow]) -> dict[str, dict[str, str]]:
        names, *others = rows_table(entries).columns
        return {one.name: dict(zip(names.texts, one.texts, strict=True)) for one in others}

    found = columns(task.entries)
    assert "Of the oracle's saving" not in found  # nobody asked it
    beside = found["Beside lowering the threshold, as few calls"]
    [row] = [one for one in task.entries if one.name == "00_baseline k2_first"]
    [control] = row.table.bounds.controls
    assert beside[row.name] == {one.config: one.word for one in control.against}["k2_first"] != ""
    assert row.bound is not None
    assert found["Answers changed"][row.name] == str(row.bound.changed) != "0"
    bounds = replace(
        row.table.bounds,
        oracle=Oracle(saved=0.25, in_denoise=1.0, equal_texts=9, num_documents=9),
        rows=tuple(replace(one, of_oracle=0.5) for one in row.table.bounds.rows),
    )
    table = replace(row.table, bounds=bounds)
    asked = replace(task, tables=[(row.report, table)])
    assert columns(asked.entries)["Of the oracle's saving"][row.name] == "(50.0 %)"
    assert any("25.0 % of the layer calls can be saved" in one for one in findings(asked))


def test_a_claim_stands_beside_what_its_rule_did(text: str) -> None:
    said = {row["Who"]: row["What it does here"] for row in rows(text, "Who")}
    assert said["a/b"].startswith("gsm8k on 7B: 1 config, change ")
    assert said["a/b"].endswith("time by k=1 1.20")
    assert said["c"] == "not run yet"


def test_claims_are_read_strictly(tmp_path: Path) -> None:
    assert read_claims(tmp_path) == PublicClaims()
    (tmp_path / "claims.toml").write_text("[[claim]]\nwho = 'x'\nwhy = 'y'\n")
    with pytest.raises(UsageError, match=r"claims.toml: .*claim.0"):
        read_claims(tmp_path)


def test_the_picture_has_each_config_and_the_curve(task: OneTask, text: str) -> None:
    pictures = draw(task)
    assert pictures is not None
    drawn = Drawn(pictures["wide"])
    named = {name for name, _, _ in drawn.texts("label halo")}
    assert {"k = 1", "00 k2_first", "02 k2_middle"} <= named
    assert "Too far away to be drawn: 00_baseline k3_last." in text
    assert len(drawn.all("line", "curve")) == len(CURVE) - 2  # the twin is no point of its own
    [circle] = drawn.all("circle", "s0")
    assert (circle["cx"], circle["cy"]) == (near(drawn.across(1.0)), near(drawn.up(0.0)))
    assert f"![Accuracy change against time](referee_{task.folder}.svg)" in text


def test_the_picture_stands_alone_an_element_a_line(task: OneTask) -> None:
    pictures = draw(task)
    assert pictures is not None
    svg = pictures["wide"]
    file = standalone(svg)
    root = ET.fromstring(file)  # noqa: S314 - our own text
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "--paper" in file
    assert file.count("\n<line ") == svg.count("<line ")


def test_the_index_has_the_same_rows_and_the_way_to_each_report(reports: list[Report]) -> None:
    empty = build_report("03_empty", "", None, [], Layout.of(Path()))
    pages = referee_pages([*reports, empty], "--all", CLAIMS, Path(), Path("r"))
    page = pages[Path("r/index.html")]
    for report in reports:
        assert f'href="{report.experiment}/report.html"' in page
    assert 'href="03_empty' not in page, "there is no page of nothing"
    for name in ("00_baseline k2_first", "00_baseline k3_last", "02_other k2_middle"):
        assert f'<th scope="row">{name}</th>' in page
    assert "half the time" in page
    assert "k3_first: pending" in page
    assert "http" not in page.replace("http-equiv", "")


def test_without_times_there_is_no_picture(reports: list[Report], tmp_path: Path) -> None:
    written = write_grid(tmp_path / "results", CELLS["02_other"], experiment="02_other")
    table = tuple(load_record(paths.folder) for paths in written)
    layout = Layout.of(tmp_path, tmp_path / "results")
    [task] = by_task([build_report("02_other", "", None, [Section(table)], layout)])
    assert draw(task) is None
    assert reports


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def two(finished: Command) -> Command:
    """A second experiment beside the finished one."""
    assert finished("new", "second", "--from", "00_baseline") == 0
    settings = finished.root / "experiments/01_second/experiment.toml"
    settings.write_text(settings.read_text().replace("k = [1, 2, 3]", "k = [2, 1]"))
    assert finished("sweep", *TASK, "--experiment", "01_second") == 0
    return finished


@pytest.mark.slow
def test_it_is_written_checked_and_no_digit_of_it_can_change(two: Command) -> None:
    assert two("report", "--all", *TASK, "--check") == 0
    assert "note: 01_second: results.md was not compared: " in two.err
    assert "referee.md was not compared: it was not written" in two.err
    assert two("report", "--all", *TASK, "--stdout") == 0
    assert two.out.startswith("# The referee's table")
    page = two.root / "experiments/referee.md"
    assert not page.exists()
    assert two("report", "--all", *TASK) == 0
    text = page.read_text()
    assert "01_second k2_middle" in text
    index = two.root / "results/index.html"
    assert index.read_text().startswith("<!doctype html>")
    links = re.findall(r'<a href="([^#][^"]*)"', index.read_text())
    assert len(links) == 2
    assert all((index.parent / link).is_file() for link in links)
    assert "Written by `fdllm report --all --task tiny_arithmetic --model " in text
    assert two("report", "--all", *TASK, "--check") == 0, two.out
    assert "15 records computed anew: every one as written" in two.out
    page.write_text(text.replace("40.0 %", "41.0 %", 1))
    assert two("report", "--all", *TASK, "--check") == 1
    assert "referee.md: line " in two.out
    page.write_text(text.replace("--all", "--al", 1))
    assert two("report", "--all", *TASK, "--check") == 1
    assert "referee.md: its flags" in two.out
    page.write_text(text)
    index.write_text(index.read_text().replace("40.0 %", "41.0 %", 1))
    assert two("report", "--all", *TASK, "--check") == 1
    assert "index.html: line " in two.out
    index.unlink()  # a clone has none
    assert two("report", "--all", *TASK, "--check") == 0
    assert "index.html is not there, so it was not compared" in two.err
    summary = summary_of(two.root, "k2_last")
    summary.write_text(summary.read_text().replace('"value":', '"value": 1', 1))
    assert two("report", "--all", *TASK, "--check") == 1
    assert "k2_last" in two.out


def test_rows_do_not_go_unasked(two: Command) -> None:
    assert two("report", "--all", *TASK) == 0
    shutil.rmtree(two.root / "results/01_second")
    shutil.rmtree(two.root / "artifacts/01_second")
    assert two("report", "--all", *TASK) == 1
    assert "01_second k2_first" in two.err
    assert two("report", "--all", *TASK, "--replace") == 0
    assert "01_second" not in (two.root / "experiments/referee.md").read_text()


@pytest.mark.parametrize(
    "flag", [("--config", "k2_last"), ("--experiment", "01_second"), ("--html", "x.html")]
)
def test_it_is_of_everything(finished: Command, flag: tuple[str, str]) -> None:
    create_experiment("second", finished.root)
    assert finished("report", "--all", *TASK, *flag) == 2
    assert f"leave {flag[0]} out" in finished.err


def test_smoke_tests_stay_out_unless_a_limit_is_named(finished: Command) -> None:
    assert finished("report", "--all", *TASK, "--limit", "3") == 1
    assert "no experiment has such records" in finished.err
    assert finished("sweep", *TASK, "--limit", "3") == 0
    assert finished("report", "--all", *TASK, "--stdout") == 0
    assert "SMOKE TEST" not in finished.out
    assert finished("report", "--all", *TASK, "--stdout", "--limit", "3") == 0
    assert "limit 3: SMOKE TEST" in finished.out
