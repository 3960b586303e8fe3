"""Reading records back: whole or not at all."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest

from cells import make_cell, share, write_cell
from fdllm.record.paths import COLUMNS, Layout
from fdllm.record.per_document import digest_of_answer, pack
from fdllm.record.summary import describe_file
from fdllm.report.records import RecordError, load_record, load_records

RIGHT = share(6, 4)
SHORT: dict[str, Any] = {
    "task": "gsm8k",
    "doc_id": 0,
    "doc_hash": "0",
    "prompt_hash": "0",
    "output": "0",
    "metrics": {},
    "tokens": 1,
    "seconds": 0.1,
}


def edit(path: Path, line: str) -> None:
    """Put a line in place of the first, and the new content into the summary."""
    samples = path / "samples.jsonl"
    rest = samples.read_text(encoding="utf-8").split("\n")[1:]
    samples.write_text("\n".join([line, *rest]), encoding="utf-8")
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    summary["files"]["samples.jsonl"] = describe_file(samples, len(RIGHT)).model_dump()
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Also line separators that only Unicode knows, which JSON leaves as they are."""
    outputs = ["a\u2028b", "c\u0085d", "e\u2029", "plain", "\x1cf", ""]
    made = make_cell("k2_middle", RIGHT, limit=6, outputs=outputs)
    cell = write_cell(tmp_path, made)
    assert [*cell.texts.values()] == made.samples
    assert (cell.summary.experiment, cell.task, cell.name, cell.limit) == (
        "00_baseline", "gsm8k", "k2_middle", 6,
    )  # fmt: skip
    first = cell.by_key["gsm8k", 0]
    assert (first["output"], first["tokens"]) == (digest_of_answer("a\u2028b"), 100)
    assert cell.texts["gsm8k", 0]["output"] == "a\u2028b"
    assert [cell.value(sample) for sample in cell.samples] == list(RIGHT)


def test_the_finished_cells_of_an_experiment(tmp_path: Path) -> None:
    for cell in (
        make_cell("k1_first", RIGHT),
        make_cell("k2_first", RIGHT),
        make_cell("k1_first", RIGHT, limit=6),
        make_cell("k1_first", RIGHT, task="tiny_arithmetic"),
    ):
        write_cell(tmp_path, cell)
    unfinished = tmp_path / "00_baseline" / "gsm8k" / "k3_first"
    unfinished.mkdir()
    (unfinished / "journal.jsonl").write_text("")
    aside = tmp_path / "00_baseline" / "gsm8k" / ".superseded"
    aside.mkdir()
    (aside / "summary.json").write_text("{}")

    def found(task: str | None = None, limit: int | None = None) -> list[tuple[str, str, object]]:
        cells = load_records(Layout.of(tmp_path, tmp_path), "00_baseline", task, limit)
        return [(cell.task, cell.name, cell.limit) for cell in cells]

    whole = [("gsm8k", "k1_first", None), ("gsm8k", "k2_first", None)]
    assert found() == [*whole, ("gsm8k", "k1_first", 6), ("tiny_arithmetic", "k1_first", None)]
    assert found("gsm8k") == [*whole, ("gsm8k", "k1_first", 6)]
    assert found(limit=6) == [("gsm8k", "k1_first", 6)]
    assert load_records(Layout.of(tmp_path, tmp_path), "01_adaptive_skip") == []


def test_a_record_in_another_cells_folder_is_refused(tmp_path: Path) -> None:
    folder = write_cell(tmp_path, make_cell("k1_first", RIGHT)).folder
    folder.rename(folder.parent / "k3_last")
    with pytest.raises(RecordError, match="holds the record of .*k1_first"):
        load_records(Layout.of(tmp_path, tmp_path), "00_baseline")


def test_an_unfinished_run_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no summary.json: that run is not finished"):
        load_record(tmp_path)
    with pytest.raises(RecordError, match="is absent"):
        load_record(tmp_path / "nowhere")


def test_a_changed_sample_is_seen(tmp_path: Path) -> None:
    """One digit: as long as before, so only the hash can tell."""
    folder = write_cell(tmp_path, make_cell("k1_first", RIGHT)).folder
    samples = folder / "samples.jsonl"
    text = samples.read_text(encoding="utf-8")
    samples.write_text(text.replace('"tokens": 100', '"tokens": 900', 1), encoding="utf-8")
    with pytest.raises(RecordError, match="changed after its run"):
        _ = load_record(folder).texts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "line 1 is no JSON: Expecting value"),
        ("[]", "line 1: 'it': Input should be"),
        ('{"task": "gsm8k", "doc_id": 0}', "line 1: missing keys doc_hash, prompt_hash, output"),
        ("SECOND", "line 2: gsm8k row 1 stands there twice"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    folder = write_cell(tmp_path, make_cell("k1_first", RIGHT)).folder
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    edit(folder, lines[1] if line == "SECOND" else line)
    with pytest.raises(RecordError, match=reason):
        _ = load_record(folder).texts


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"these are no columns", "columns.json.xz: it is no xz stream: Input format not"),
        (lzma.compress(b"{}"), "it lacks task, doc_id, doc_hash"),
        (lzma.compress(b"[1]"), "it holds no columns"),
        (lzma.compress(b'{"task": ["a"], "doc_id": NaN}'), "NaN is no number of JSON's"),
        (pack([SHORT, SHORT]), "line 2: gsm8k row 0 stands there twice"),
        (pack([SHORT]), "holds 1 samples, summary.json counts 6"),
        (None, "columns.json.xz is missing"),
    ],
)
def test_broken_columns_are_named(tmp_path: Path, data: bytes | None, reason: str) -> None:
    """Even where the summary vouches for them."""
    folder = write_cell(tmp_path, make_cell("k1_first", RIGHT)).folder
    columns, path = folder / COLUMNS, folder / "summary.json"
    columns.unlink()
    if data is not None:
        columns.write_bytes(data)
        summary = json.loads(path.read_text(encoding="utf-8"))
        summary["files"][COLUMNS] = describe_file(columns, None).model_dump()
        path.write_text(json.dumps(summary), encoding="utf-8")
    with pytest.raises(RecordError, match=reason):
        load_record(folder)


def test_changed_columns_are_seen(tmp_path: Path) -> None:
    folder = write_cell(tmp_path, make_cell("k1_first", RIGHT)).folder
    columns = folder / COLUMNS
    data = bytearray(columns.read_bytes())
    data[len(data) // 2] ^= 1
    columns.write_bytes(data)
    with pytest.raises(RecordError, match="columns.json.xz was changed after its run"):
        load_record(folder)


def test_what_git_keeps_is_read_where_no_run_was(tmp_path: Path) -> None:
    """The same figures, without texts; a run's own folder comes first, whatever is in it."""
    here = write_cell(tmp_path / "results", make_cell("k1_first", RIGHT))
    layout = Layout.of(tmp_path)
    kept = layout.artifacts / layout.part(here.folder)
    kept.mkdir(parents=True)
    for name in ("summary.json", COLUMNS):
        shutil.copy(here.folder / name, kept)
    assert [one.folder for one in load_records(layout, "00_baseline")] == [here.folder]
    shutil.rmtree(layout.results)
    (there,) = load_records(layout, "00_baseline")
    assert (there.folder, there.is_published, there.texts) == (kept, True, {})
    assert (there.summary, there.samples) == (here.summary, here.samples)
    (layout.results / layout.part(kept)).mkdir(parents=True)  # a run has begun anew
    assert load_records(layout, "00_baseline") == []


def test_a_damaged_summary_is_explained(tmp_path: Path) -> None:
    folder = write_cell(tmp_path, make_cell("k1_first", RIGHT)).folder
    (folder / "summary.json").write_text('{"version": 1')
    with pytest.raises(RecordError, match="summary.json is no JSON"):
        load_record(folder)
