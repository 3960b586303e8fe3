"""``fdllm report --check``: a changed figure is found and named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cells import write_study
from fdllm.record.journal import sealed
from fdllm.record.paths import COLUMNS, TIMING, Layout
from fdllm.record.per_document import pack, unpack
from fdllm.record.study import Agreement
from fdllm.record.summary import describe_file
from fdllm.report.build import Section, build_report
from fdllm.report.html import render_html
from fdllm.report.leaves import same
from fdllm.report.recheck import Recheck, check_page, check_records, embedded_tables
from fdllm.report.records import load_record, record_folders
from fdllm.report.sums import check_studies
from made_up import Invented, tamper, write_grid

GRID = [Invented("k1_first"), Invented("k1_last"), Invented("k2_first", 0.7, 44)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("original") / "results"
    write_grid(results, GRID)
    write_grid(results, GRID, task="mmlu")
    return results


@pytest.fixture
def results(original: Path, tmp_path: Path) -> Path:
    """Records of its own for each test, to be tampered with."""
    shutil.copytree(original, tmp_path / "results")
    return tmp_path / "results"


def check(results: Path) -> Recheck:
    layout = Layout.of(results.parent, results)
    return check_records(layout, record_folders(layout, "00_baseline"))


def cell(results: Path, task: str = "gsm8k", config: str = "k2_first") -> Path:
    return results / "00_baseline" / task / config


def edit(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def renew_hash(folder: Path) -> None:
    """Hide a change of the samples from their hash, as a careful forger would."""
    record = describe_file(folder / "samples.jsonl", 60).model_dump()
    for path in (folder / "summary.json",):
        edit(path, lambda data: data["files"].update({"samples.jsonl": record}))


def test_untouched_records_hold(results: Path) -> None:
    found = check(results)
    assert found.differences == ()
    assert found.num_records == 6
    assert found.num_figures > 6 * 60


def test_a_tampered_sample_is_found_by_its_hash(results: Path) -> None:
    tamper(cell(results) / "samples.jsonl", 3, tokens=1)
    (difference,) = check(results).differences
    assert "gsm8k/k2_first" in str(difference)
    assert "was changed" in str(difference)


def test_a_tampered_sample_is_found_by_its_figures(results: Path) -> None:
    folder = cell(results)
    sample = json.loads((folder / "samples.jsonl").read_text().split("\n")[3])
    metric, right = next(iter(sample["metrics"].items()))
    tamper(folder / "samples.jsonl", 3, metrics={metric: 1.0 - right})
    renew_hash(folder)
    (difference,) = (one for one in check(results).differences if "artifacts" not in one.where)
    assert (difference.where, difference.figure) == (
        "00_baseline/gsm8k/k2_first/columns.json.xz",
        "metrics, row 3 of gsm8k",
    )


def test_forged_columns_are_found_by_figures_samples_and_git(results: Path) -> None:
    """Their hash fits; the summary's figures, the samples and the copy for git do not."""
    folder = cell(results)
    columns = folder / COLUMNS
    rows = unpack(columns.read_bytes())
    rows[3]["tokens"] += 1
    columns.write_bytes(pack(rows))
    record = describe_file(columns, None).model_dump()
    edit(folder / "summary.json", lambda data: data["files"].update({COLUMNS: record}))
    found = {(Path(one.where).name, one.figure) for one in check(results).differences}
    assert {
        ("summary.json", "throughput.tokens"),
        (COLUMNS, "tokens, row 3 of gsm8k"),
        (f"{COLUMNS} under artifacts", "SHA-256"),
    } <= found


@pytest.mark.parametrize("config", ["k1_first", "k2_first"])
def test_a_clone_checks_what_git_keeps(results: Path, config: str) -> None:
    """No samples, no journal: summaries against columns; one digit is a named difference."""
    layout = Layout(results.parent / "nothing", results / "artifacts", results / "logs")

    def found() -> Recheck:
        return check_records(layout, record_folders(layout, "00_baseline"))

    whole = found()
    assert (whole.differences, whole.num_records, whole.notes) == ((), 6, ())
    assert whole.num_figures > 6 * 20
    path = layout.artifacts / "00_baseline/gsm8k" / config / "summary.json"
    edit(path, lambda data: data["layer_calls"].update(saved_share=0.123))
    (difference,) = found().differences
    where = f"00_baseline/gsm8k/{config}/summary.json"
    assert (difference.where, difference.figure) == (where, "layer_calls.saved_share")
    path.with_name(COLUMNS).write_bytes(b"forged")
    assert any("columns.json.xz" in one.found for one in found().differences)


def test_a_study_must_be_its_copy_and_say_how_its_answers_agree(results: Path) -> None:
    layout = Layout.of(results.parent, results)
    folders = record_folders(layout, "00_baseline", ["gsm8k"])
    cells = [load_record(folder) for folder in folders]
    assert check_studies(layout, folders) == Recheck()
    study = write_study(cells, {one.name: 1.0 for one in cells})
    keys = study.documents
    configs = {
        one.name: study.configs[one.name].model_copy(
            update={
                "answers": tuple(one.by_key[key]["output"] for key in keys),
                "agrees": Agreement(compared=len(keys), equal=len(keys)),
                "fingerprint": {},
            }
        )
        for one in cells
    }
    path, copy = cells[0].folder.parent / TIMING, layout.artifacts / "00_baseline/gsm8k" / TIMING
    true = study.model_copy(update={"configs": configs})
    true.write(path / "study.json", copy / "study.json")
    found = check_studies(layout, folders)
    assert (found.differences, found.num_figures) == ((), 1 + len(cells))
    other = configs["k1_last"].model_copy(
        update={"answers": ("0" * 16, *true.configs["k1_last"].answers[1:])}
    )
    true.model_copy(update={"configs": configs | {"k1_last": other}}).write(path / "study.json")
    names = [one.figure for one in check_studies(layout, folders).differences]
    assert names == [
        "SHA-256 of the copy under artifacts",
        "answers of k1_last equal to its record's",
    ]


def test_a_faster_sample_disagrees_with_the_journal(results: Path) -> None:
    folder = cell(results)
    tamper(folder / "samples.jsonl", 3, seconds=0.001)
    renew_hash(folder)
    shown = [str(difference) for difference in check(results).differences]
    assert any("samples.jsonl: seconds, row 3 of gsm8k" in text for text in shown)
    assert any("columns.json.xz: seconds, row 3 of gsm8k" in text for text in shown)


@pytest.mark.parametrize(
    ("table", "key", "figure"),
    [
        ("headline", "value", "headline.value"),
        ("throughput", "tokens_per_second", "throughput.tokens_per_second"),
        ("throughput", "latency_p95_s", "throughput.latency_p95_s"),
        ("layer_calls", "saved_share", "layer_calls.saved_share"),
        ("quality", "repetition_rate", "quality.repetition_rate"),
    ],
)
def test_a_tampered_summary_is_found(results: Path, table: str, key: str, figure: str) -> None:
    edit(cell(results) / "summary.json", lambda data: data[table].update({key: 0.987}))
    differences = [d for d in check(results).differences if "artifacts" not in d.where]
    assert [(d.figure, d.written) for d in differences] == [(figure, "0.987")]


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        ({"experiment": "01_other"}, "experiment"),
        ({"limit": 60}, "limit"),
        ({"model": "tiny"}, "model"),
        ({"estimator": "chain"}, "fingerprint.fields.scoring"),
        ({"dataset": "0" * 64}, "dataset"),
        ({"task_versions": {"gsm8k": 2}}, "task_versions.gsm8k"),
    ],
)
def test_what_a_summary_says_beside_its_figures_is_found(
    results: Path, change: dict[str, Any], figure: str
) -> None:
    edit(cell(results) / "summary.json", lambda data: data.update(change))
    assert figure in {d.figure for d in check(results).differences}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("strategy.k", 3),
        ("strategy.text", "PeriodicReuse(k=3)"),
        ("fingerprint.fields.decoding", "block_size=32, threshold=0.9"),
        ("fingerprint.fields.strategy", "NoReuse"),
        ("provenance.sessions", [{"machine": "a faster one"}]),
        ("provenance.criteria", {"0" * 12: 60}),
    ],
)
def test_settings_and_provenance_are_held_to_the_journal(
    results: Path, place: str, value: Any
) -> None:
    def change(data: Any) -> None:
        *tables, key = place.split(".")
        for table in tables:
            data = data[table]
        data[key] = value

    edit(cell(results) / "summary.json", change)
    wrong = {d.figure for d in check(results).differences if "artifacts" not in d.where}
    # The strategy's text stands in the fingerprint.
    expected = "fingerprint.fields.strategy" if place == "strategy.text" else place
    assert any(figure.startswith(expected) for figure in wrong)


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        ({"prompt": "another question"}, "prompt_hash, row 3 of gsm8k"),
        ({"output": "#### 12"}, "output, row 3 of gsm8k"),
        ({"finish": "until"}, "finish, row 3 of gsm8k"),
        ({"doc_hash": "0" * 64}, "doc_hash, row 3 of gsm8k"),
    ],
)
def test_a_forged_text_is_found_whatever_its_hash(
    results: Path, change: dict[str, Any], figure: str
) -> None:
    folder = cell(results)
    tamper(folder / "samples.jsonl", 3, **change)
    renew_hash(folder)
    assert figure in {d.figure for d in check(results).differences}


def test_a_damaged_journal_beside_a_record_is_found(results: Path) -> None:
    path = cell(results) / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"num_tokens": ', b'"num_tokens": 1', 1))
    (difference,) = check(results).differences
    assert "journal.jsonl, line 3 does not fit its checksum" in difference.found


def test_a_forged_journal_is_found_although_its_checksums_fit(results: Path) -> None:
    path = cell(results) / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines[5]["entry"]["seconds"] /= 2
    path.write_bytes(
        b"".join(sealed({k: v for k, v in one.items() if k != "sum"} for one in lines))
    )
    assert "seconds, row 3 of gsm8k" in {d.figure for d in check(results).differences}


def test_a_sum_may_differ_in_its_last_place_and_a_count_may_not() -> None:
    assert same(0.1 + 0.2, 0.3)
    assert same(2, 2.0)
    assert not same(10**12, 10**12 + 1)
    assert not same(True, 1.5)


def test_a_scored_summary_is_checked_too(results: Path) -> None:
    path = cell(results, "mmlu") / "summary.json"
    edit(path, lambda data: data["throughput"].update(requests_per_second=1.0))
    assert "throughput.requests_per_second" in {d.figure for d in check(results).differences}


def test_the_copy_for_git_and_the_results_are_compared(results: Path) -> None:
    copy = results / "artifacts/00_baseline/gsm8k/k1_last/summary.json"
    edit(copy, lambda data: data["headline"].update(value=0.99))
    metric = "exact_match,flexible-extract"
    folder = cell(results)
    edit(folder / "results.json", lambda data: data["results"]["gsm8k"].update({metric: 0.5}))
    record = describe_file(folder / "results.json", None).model_dump()
    edit(folder / "summary.json", lambda data: data["files"].update({"results.json": record}))
    shown = "\n".join(map(str, check(results).differences))
    assert "k1_last/summary.json under artifacts: headline" in shown
    assert f"k2_first/results.json: results.gsm8k.{metric} is 0.5" in shown


def test_without_journals_that_is_said(results: Path) -> None:
    for path in results.rglob("journal.jsonl"):
        path.unlink()
    found = check(results)
    assert found.differences == ()
    assert sum("no journal" in note for note in found.notes) == 6


def test_a_written_page_is_compared_figure_by_figure(results: Path) -> None:
    def build() -> Any:
        table = Section(tuple(load_record(cell(results, config=c.config)) for c in GRID))
        return build_report("00_baseline", "", None, [table], Layout.of(results, results))

    page = build()
    path = results / "report.html"
    path.write_text(render_html(page))
    assert embedded_tables(path) == [("gsm8k", ("k1_first", "k1_last", "k2_first"))]
    assert check_page(path, build().figures()).differences == ()
    speed = json.dumps(page.tables[0].cells[2].speed)
    assert speed in path.read_text()
    path.write_text(path.read_text().replace(f'"speed":{speed}', '"speed":99.5'))
    (difference,) = check_page(path, build().figures()).differences
    assert difference.figure == "tables[gsm8k].cells[k2_first].speed"
    assert difference.written == "99.5"


def test_a_page_that_is_no_file_is_a_difference(tmp_path: Path) -> None:
    """A pipe would keep whoever opens it waiting."""
    path = tmp_path / "report.html"
    for make, wrong in ((os.mkfifo, "a pipe"), (Path.mkdir, "a folder")):
        make(path)
        assert embedded_tables(path) == []
        (difference,) = check_page(path, {}).differences
        assert difference.found == f"{path} is {wrong}, not a file"
        path.rename(tmp_path / wrong)
