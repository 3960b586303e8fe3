"""A trace through the real harness says what the run says of the same document."""

from __future__ import annotations

from pathlib import Path

import pytest

import fdllm
from cells import make_cell, write_cell
from fdllm.cli import main
from fdllm.cli.trace import against_record
from fdllm.core.config import Decoding
from fdllm.core.reuse import PeriodicReuse
from fdllm.errors import UsageError
from fdllm.evaluate.adapter import LoadedModel
from fdllm.evaluate.attempt import NOWHERE
from fdllm.evaluate.recording import Evaluation
from fdllm.plan import CellState, State
from fdllm.record.paths import RunPaths
from fdllm.runs import Cell, ModelChoice, Run
from fdllm.trace.document import DocumentName, trace_document

pytestmark = pytest.mark.slow
STRATEGY = PeriodicReuse(2, 4, 8)
DOCUMENT = 2


@pytest.fixture(scope="module")
def model() -> fdllm.Model:
    return fdllm.load_model("tiny", device="cpu", dtype="float32")


def make_run(task: str) -> Run:
    return Run(
        experiment="00_baseline",
        task=task,
        cell=Cell.of(2, "middle"),
        model=ModelChoice(name="tiny"),
        decoding=Decoding(max_new_tokens=56),
    )


def evaluated(model: fdllm.Model, run: Run) -> Evaluation:
    asked = {
        "evaluating": run.evaluating.model_copy(update={"batch_size": 4}),
        "limit": DOCUMENT + 1,
    }
    loaded = LoadedModel(model)
    return loaded.evaluate(run.model_copy(update=asked), NOWHERE, NOWHERE, strategy=STRATEGY)


def test_generated_text_is_the_runs(model: fdllm.Model) -> None:
    run = make_run("tiny_arithmetic")
    sample = evaluated(model, run).samples[DOCUMENT]
    trace = trace_document(model, run, STRATEGY, DocumentName(DOCUMENT), staleness=True)
    [row] = trace.rows
    assert row.text == sample["output"]
    assert row.counts == sample["counts"]
    assert row.finish == sample["finish"]
    assert trace.prompt == sample["prompt"]
    assert trace.metrics == sample["metrics"]
    assert trace.expected == sample["target"]
    assert sum(step.reused for step in row.forwards) == sum(
        count["reused"] for count in sample["counts"].values()
    )


def test_scores_are_the_runs(model: fdllm.Model) -> None:
    run = make_run("tiny_choice")
    sample = evaluated(model, run).samples[DOCUMENT]
    trace = trace_document(model, run, STRATEGY, DocumentName(DOCUMENT), staleness=True)
    assert [row.loglikelihood for row in trace.rows] == pytest.approx(sample["output"], abs=1e-5)
    assert trace.metrics == sample["metrics"]
    assert all(step.layers.count("r") == step.reused for r in trace.rows for step in r.forwards)
    assert any(step.stale for row in trace.rows for step in row.forwards)


def test_document_that_is_not_there(model: fdllm.Model) -> None:
    run = make_run("tiny_choice")
    with pytest.raises(UsageError, match=r"documents 0 to \d+; got 99999"):
        trace_document(model, run, STRATEGY, DocumentName(99999))
    with pytest.raises(UsageError, match="consists of tiny_choice; 'mmlu' is none of them"):
        trace_document(model, run, STRATEGY, DocumentName(0, "mmlu"))


def test_programs_are_agreed_to_before_anything_is_decoded(model: fdllm.Model) -> None:
    with pytest.raises(UsageError, match="--allow-code-execution"):
        trace_document(model, make_run("humaneval"), STRATEGY, DocumentName(0))


@pytest.mark.parametrize("text", ["", "x", "-1", "3.0", "mmlu_anatomy:", "3:x"])
def test_names_of_no_document(text: str) -> None:
    with pytest.raises(UsageError, match="names no document"):
        DocumentName.parse(text)


def test_names_of_documents() -> None:
    assert DocumentName.parse("3") == DocumentName(3)
    assert DocumentName.parse("mmlu_anatomy:12") == DocumentName(12, "mmlu_anatomy")


def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FDLLM_ROOT", raising=False)
    page = tmp_path / "new folder" / "trace.html"
    chosen = ["trace", "--task", "tiny_arithmetic", "--config", "k2_middle"]
    assert main([*chosen, "--doc", "3", "--html", str(page), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "00_baseline / tiny_arithmetic / k2_middle, document 3" in out
    assert "refresh" in out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")

    with pytest.raises(SystemExit, match="2"):
        main([*chosen, "--html", str(tmp_path)])
    assert "names the folder" in capsys.readouterr().err
    assert main(["trace", "--task", "tiny_choice"]) == 2
    assert "--config" in capsys.readouterr().err
    scored = ["trace", "--task", "tiny_choice", "--config", "k2_middle"]
    assert main([*scored, "--scoring", "first-token"]) == 2
    assert "use --scoring denoise" in capsys.readouterr().err


def test_record_is_compared(model: fdllm.Model, tmp_path: Path) -> None:
    run = make_run("tiny_arithmetic")
    trace = trace_document(model, run, STRATEGY, DocumentName(0))

    def beside(state: State, answer: str) -> str:
        cell = make_cell("k2_middle", [1.0], outputs=[answer], task=run.task, folder=tmp_path)
        record = write_cell(tmp_path / f"{state}{len(answer)}", cell)
        paths = RunPaths(record.folder, record.folder, record.folder)
        state_of = CellState(run, state, "", paths, summary=record.summary)
        return str(against_record(state_of, trace))

    text = trace.rows[0].text
    assert "says the same" in beside(State.DONE, text)
    assert "says otherwise" in beside(State.DONE, text + "!")
    assert beside(State.PENDING, text) == "None"
