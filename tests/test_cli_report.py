"""``fdllm report`` as a person types it: both files, and the check of what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command import Command, summary_of
from fdllm.record.paths import COLUMNS
from fdllm.record.per_document import pack, unpack
from stubs import change_code

TASK = ("--task", "tiny_arithmetic")


def test_both_files_are_written_and_hold(finished: Command) -> None:
    assert finished("report", *TASK) == 0, finished.err
    page = finished.root / "results/00_baseline/report.html"
    assert page.read_text().startswith("<!doctype html>")
    assert str(page) in finished.out
    assert (finished.root / "experiments/00_baseline/results.md").exists()
    assert finished("report", "--check") == 0, finished.out
    assert "9 records computed anew: every one as written" in finished.out


def test_the_page_goes_where_it_is_told(finished: Command, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / "page.html"
    assert finished("report", *TASK, "--html", str(place)) == 0
    assert place.exists()
    assert not (finished.root / "results/00_baseline/report.html").exists()


def test_a_tampered_summary_fails_the_check(finished: Command) -> None:
    path = summary_of(finished.root, "k2_last")
    data = json.loads(path.read_text())
    data["throughput"]["tokens_per_second"] *= 2
    path.write_text(json.dumps(data))
    assert finished("report", "--check") == 1
    assert "k2_last/summary.json: throughput.tokens_per_second is" in finished.out
    assert finished("report", "--check", "--json") == 1
    assert "throughput.tokens_per_second" in {
        difference["figure"] for difference in json.loads(finished.out)["differences"]
    }


def test_a_tampered_page_fails_the_check(finished: Command) -> None:
    finished("report", *TASK)
    page = finished.root / "results/00_baseline/report.html"
    page.write_text(page.read_text().replace('"num_samples":5', '"num_samples":500', 1))
    assert finished("report", "--check") == 1
    assert "cells[k1_first].num_samples is 500; computed anew it is 5" in finished.out


def test_tampered_results_fail_the_check(finished: Command) -> None:
    finished("report", *TASK)
    path = finished.root / "experiments/00_baseline/results.md"
    lines = path.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith("| k2_last |"))
    lines[number] = lines[number].replace("%", "0 %", 1)
    path.write_text("\n".join(lines) + "\n")
    assert finished("report", "--check") == 1
    assert f"results.md: line {number + 1} is '| k2_last |" in finished.out
    path.write_bytes(path.read_bytes() + b"\xff")
    assert finished("report", "--check") == 1
    assert "results.md: the page is not readable; " in finished.out
    assert f"{path} is no UTF-8 text: byte " in finished.out


@pytest.fixture
def clone(finished: Command) -> Command:
    """What git has of a published grid: nothing of ``results/``."""
    assert finished("report", *TASK) == 0
    shutil.rmtree(finished.root / "results")
    return finished


def test_a_clone_computes_everything_published_anew(clone: Command) -> None:
    assert clone("report", "--check") == 0, clone.out
    assert "9 records computed anew: every one as written" in clone.out
    assert "results.md was not compared" not in clone.err
    before = (clone.root / "experiments/00_baseline/results.md").read_bytes()
    assert clone("report", *TASK) == 0
    assert (clone.root / "experiments/00_baseline/results.md").read_bytes() == before
    page = (clone.root / "results/00_baseline/report.html").read_text()
    assert "git keeps no texts" in page
    assert clone("report", "--check") == 0, clone.out
    assert clone("compare", "k1_first", "k2_last", *TASK) in (0, 1, 2)
    assert "k2_last" in clone.out


def test_a_clone_tells_what_is_published_from_what_was_run_here(clone: Command) -> None:
    """A sweep computes: git has no samples of what it keeps."""
    assert clone("status", "--json", *TASK) == 0
    cells = json.loads(clone.out)["cells"]
    assert {(cell["state"], cell["reason"]) for cell in cells} == {("done", "from artifacts")}
    assert clone("sweep", *TASK, "--dry-run") == 0
    assert "would run 9 of 9" in clone.out
    assert clone("sweep", *TASK, "--config", "k2_last") == 0
    assert clone("status", "--json", *TASK) == 0
    reasons = {one["config"]: one["reason"] for one in json.loads(clone.out)["cells"]}
    assert [name for name, reason in reasons.items() if not reason] == ["k2_last"]


@pytest.mark.parametrize("config", ["k1_first", "k3_last"])
@pytest.mark.parametrize(
    "changed",
    [
        "provenance",
        "fingerprint",
        "headline",
        "columns",
        "a bit of the columns",
        "results.md",
        "SHA256SUMS",
    ],
)
def test_one_changed_digit_in_a_clone_is_named(clone: Command, changed: str, config: str) -> None:
    """Whether or not it is a figure that anything is computed from."""
    folder = clone.root / "artifacts/00_baseline"
    summary = next(folder.glob(f"*/{config}/summary.json"))
    path = summary
    if changed == "columns":
        path = summary.with_name(COLUMNS)
        rows = unpack(path.read_bytes())
        rows[2]["tokens"] += 1
        path.write_bytes(pack(rows))
    elif changed == "a bit of the columns":  # as long as before, so that only the hash can tell
        path = summary.with_name(COLUMNS)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif changed in {"results.md", "SHA256SUMS"}:
        file = "experiments/00_baseline/results.md"
        path = folder / changed if changed == "SHA256SUMS" else clone.root / file
        start = f"| {config} |" if changed == "results.md" else ""
        _change_digit(path, start)
    else:
        said = json.loads(summary.read_text())
        text = json.dumps(said[changed])
        number = next(one for one in text if one.isdigit())
        said[changed] = json.loads(text.replace(number, str((int(number) + 1) % 10), 1))
        summary.write_text(json.dumps(said))
    assert clone("report", "--check") == 1
    assert (path.name if changed != "SHA256SUMS" else "SHA-256") in clone.out


def _change_digit(path: Path, start: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if line.startswith(start))
    head, tail = lines[at][: len(start)], lines[at][len(start) :]
    digit = next(one for one in tail if one.isdigit())
    lines[at] = head + tail.replace(digit, str((int(digit) + 1) % 10), 1)
    path.write_text("".join(lines))


def test_results_whose_records_are_elsewhere_are_not_compared(finished: Command) -> None:
    """As in a clone: git has results.md, and not the records it was written from."""
    path = finished.root / "experiments/00_baseline/results.md"
    path.write_text("Written by `fdllm report --experiment 00_baseline --model gone/away` from\n")
    assert finished("report", "--check") == 0
    assert "results.md was not compared: experiment '00_baseline' has no records" in finished.err


@pytest.mark.parametrize("flags", ["--limit x", "--nonsense", "--task 'a", "--help"])
def test_flags_that_no_report_has_are_damage(flags: str, finished: Command) -> None:
    path = finished.root / "experiments/00_baseline/results.md"
    path.write_text(f"Written by `fdllm report {flags}` from the records\n")
    assert finished("report", "--check") == 1
    assert f"results.md: its flags is {flags}" in finished.out


def test_results_of_code_that_has_changed_are_not_compared(finished: Command) -> None:
    finished("report", *TASK)
    change_code(finished.root)
    assert finished("report", "--check") == 0
    assert "results.md was not compared: 9 of its 9 cells are stale now" in finished.err


def written(finished: Command) -> dict[Path, bytes]:
    places = ("experiments/00*/results.md", "results/*/report.html", "artifacts/*/SHA256SUMS")
    return {path: path.read_bytes() for one in places for path in finished.root.glob(one)}


def test_rows_that_stand_are_replaced_by_fewer_only_when_asked(finished: Command) -> None:
    assert finished("report", *TASK) == 0
    before = written(finished)
    assert len(before) == 3
    assert finished("report", *TASK, "--config", "k1_first", "k1_middle", "k2_last") == 1
    assert "results.md shows rows that the new one would not: tiny_arithm" in finished.err
    assert "(k1_last, k2_first, k2_middle, k3_first, k3_middle, k3_last)" in finished.err
    assert "--replace" in finished.err
    assert written(finished) == before
    assert finished("report", *TASK, "--config", "k1_first", "--replace") == 0
    assert finished("report", *TASK) == 0, "more rows need no asking for"
    assert written(finished).keys() == before.keys()


def test_an_attempt_that_failed_empties_no_table(finished: Command) -> None:
    assert finished("report", *TASK) == 0
    before = written(finished)
    change_code(finished.root)
    finished.machine.before = lambda _: 1 / 0  # type: ignore[assignment]
    assert finished("eval", *TASK, "--config", "k1_first") == 1
    assert finished("report", *TASK) == 1
    assert "(k1_first, k1_middle, k1_last, k2_first" in finished.err
    assert written(finished) == before


def test_the_page_is_guarded_where_there_is_no_other(finished: Command) -> None:
    assert finished("report", *TASK) == 0
    (finished.root / "experiments/00_baseline/results.md").unlink()
    assert finished("report", *TASK, "--config", "k1_first") == 1
    assert "report.html shows rows" in finished.err
    assert "(k1_middle, k1_last" in finished.err


def test_another_folder_of_results_has_its_own_report(finished: Command, tmp_path: Path) -> None:
    assert finished("report", *TASK) == 0
    before = written(finished)
    mine = tmp_path / "mine"
    shutil.copytree(finished.root / "results", mine)
    (mine / "00_baseline/report.html").unlink()
    assert finished("report", *TASK, "--results", str(mine), "--config", "k1_first") == 0
    for name in ("00_baseline/results.md", "00_baseline/report.html"):
        assert (mine / name).is_file()
        assert str(mine / name) in finished.out
    assert str(finished.root) not in finished.out
    assert written(finished) == before
    assert finished("report", "--check", "--results", str(mine)) == 0, finished.out
    assert "results.md was not compared" not in finished.err
    text = (mine / "00_baseline/results.md").read_text()
    (mine / "00_baseline/results.md").write_text(text.replace("40.0 %", "41.0 %"))
    assert finished("report", "--check", "--results", str(mine)) == 1


def test_a_record_that_the_page_lacks_is_noted(finished: Command) -> None:
    finished("report", *TASK, "--config", "k1_first", "k1_last")
    assert finished("report", "--check") == 0
    assert "not in report.html: " in finished.err


def test_nothing_to_check_is_an_error(finished: Command) -> None:
    assert finished("report", "--check", "--task", "gsm8k") == 1
    assert "no finished records of this selection" in finished.err
