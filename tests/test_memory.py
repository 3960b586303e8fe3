"""``--batch-size auto``: as many rows as there is memory for, and the same answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fdllm import load_model
from fdllm.cli import main
from fdllm.core.memory import MOST_ROWS, batch_size_within, max_batch_size, memory_bytes, row_bytes
from fdllm.core.model_spec import ModelSpec
from fdllm.record.summary import read_summary
from stubs import make_root

SEVEN_B = ModelSpec(152064, 3584, 28, 28, 4, 18944)
GIB = 2**30


def test_parameters_are_those_that_are_there() -> None:
    model = load_model("tiny", device="cpu", dtype="float32", freeze=False)
    assert model.spec.num_parameters == sum(p.numel() for p in model.network.parameters())


def test_more_memory_holds_more_rows_and_never_more_than_is_useful() -> None:
    rows = [batch_size_within(gib * GIB, SEVEN_B, 2) for gib in (8, 24, 40, 80, 141, 1000)]
    assert rows == sorted(rows)
    assert rows[0] == 1, "one row is tried even where the weights alone are too large"
    assert rows[-1] == MOST_ROWS
    assert 20 < rows[3] < 40


@pytest.mark.parametrize("gib", [24, 40, 80, 141])
def test_what_is_chosen_fits(gib: int) -> None:
    rows = batch_size_within(gib * GIB, SEVEN_B, 2)
    assert SEVEN_B.num_parameters * 2 + rows * row_bytes(SEVEN_B, 2) < gib * GIB
    longer = replace(SEVEN_B, max_positions=2 * SEVEN_B.max_positions)
    assert batch_size_within(gib * GIB, longer, 2) <= rows


def test_a_job_counts_the_memory_it_was_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("tiny", device="cpu", dtype="float32")
    all_of_it = memory_bytes(model.device)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert memory_bytes(model.device) == 100 * 2**20 < all_of_it
    assert 1 <= max_batch_size(model) < MOST_ROWS


def test_auto_is_recorded_as_a_number_and_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, sizes = [], []
    for asked in ("1", "auto"):
        root = make_root(tmp_path / asked)
        monkeypatch.setenv("FDLLM_ROOT", str(root))
        given = ["--task", "tiny_arithmetic", "--config", "k1_first", "--model", "tiny"]
        code = main(["eval", *given, "--limit", "6", "--batch-size", asked])
        assert code == 0, capsys.readouterr().err
        (record,) = root.glob("results/**/summary.json")
        (session,) = read_summary(record).provenance["sessions"]
        sizes.append(session["batch_size"])
        lines = (record.parent / "samples.jsonl").read_text().splitlines()
        answers.append([json.loads(line)["output"] for line in lines])
    assert answers[0] == answers[1]
    assert sizes[0] == 1 < sizes[1] <= MOST_ROWS


def test_a_batch_size_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--task", "tiny_arithmetic", "--batch-size", "many"])
    assert "1 or more; got 'many'; or 'auto'" in capsys.readouterr().err
