"""Records in the forms of other tools: what those write and read, from the record alone."""

from __future__ import annotations

import hashlib
import json
from argparse import ArgumentParser
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import evaluator, result_schema
from lm_eval.loggers import EvaluationTracker

from fdllm.cli import main
from fdllm.cli.report import ReportCommand
from fdllm.cli.request import read_request
from fdllm.errors import FdllmError
from fdllm.evaluate.again import prepare
from fdllm.evaluate.attempt import Known
from fdllm.record.journal import read_journal
from fdllm.release import hub_eval_results
from fdllm.release.every_eval import every_eval, every_eval_samples, write_every_eval
from fdllm.release.harness_log import Answer, HarnessLog, answer_of, harness_log
from fdllm.release.hub_eval_results import HUB_ID, hub_entry
from fdllm.release.inspect_log import inspect_log
from fdllm.report.records import Record, load_record
from fdllm.runs import Run
from own_tasks import make_tasks

TASKS = ("tiny_arithmetic", "tiny_choice")
GROUP, LEAVES = "all_doubles", ["doubles", "more_doubles"]
FLAGS = ("--model", "tiny", "--config", "k2_middle", "--limit", "3")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a task of each kind, on the embedded model."""
    folder = tmp_path_factory.mktemp("results")
    for task in TASKS:
        assert main(["eval", "--task", task, *FLAGS, "--results", str(folder)]) == 0
    return folder


def export(results: Path, out: Path, form: str, *tasks: str) -> int:
    flags = ("--task", *(tasks or TASKS), "--results", str(results), "--out", str(out))
    return main(["export", *FLAGS, *flags, "--format", form])


def run_of(results: Path, task: str, *more: str) -> tuple[Run, Path]:
    """A record's run, and its folder."""
    parser = ArgumentParser()
    ReportCommand.add_flags(parser)
    flags = [*(more or FLAGS), "--task", task, "--results", str(results)]
    request = read_request(ReportCommand.read(parser.parse_args(flags)))
    (run,) = request.runs
    return run, request.planner.layout.run(run).folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def as_lm_eval(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "lm-eval"
    assert export(results, out, "lm-eval") == 0
    return out


@pytest.mark.parametrize("task", TASKS)
def test_files_are_those_that_lm_eval_writes(
    results: Path, as_lm_eval: Path, tmp_path: Path, task: str
) -> None:
    """Its own tracker writes the same, of the same answers."""
    run, folder = run_of(results, task)
    lm, loaded = prepare(run)
    lm.store = Known(read_journal(folder / "journal.jsonl").entries)
    found = evaluator.evaluate(lm=lm, task_dict={"tasks": loaded.leaves}, limit=3,
                               apply_chat_template=True, fewshot_as_multiturn=True)  # fmt: skip
    samples = found.pop("samples")
    tracker = EvaluationTracker(output_path=str(tmp_path))
    template = lm.tokenizer.chat_template
    tracker.general_config_tracker.log_experiment_args(
        "fdllm", "pretrained=fdllm/tiny", None, template, fewshot_as_multiturn=True
    )
    tracker.save_results_aggregated(found, samples)
    tracker.save_results_samples(task, samples[task])
    ours, theirs = as_lm_eval / f"{task}_limit_3" / "k2_middle" / "fdllm__tiny", tmp_path
    (written,), (expected,) = ours.glob("results_*.json"), theirs.rglob("results_*.json")
    assert expected.parent.name == ours.name
    here, there = json.loads(written.read_text()), json.loads(expected.read_text())
    del there["total_evaluation_time_seconds"]  # of the grading, not of the run
    assert {name: here[name] for name in there} == there
    assert set(here) <= set(result_schema.EvalResults.__annotations__)
    (written,), (expected,) = ours.glob("samples_*.jsonl"), theirs.rglob("samples_*.jsonl")
    assert lines(written) == lines(expected)
    time = written.name.removeprefix(f"samples_{task}_").removesuffix(".jsonl")
    assert (ours / f"results_{time}.json").is_file()


def test_what_makes_a_cell_stands_among_the_models_arguments(as_lm_eval: Path) -> None:
    (written,) = as_lm_eval.glob("tiny_choice*/*/*/results_*.json")
    data = json.loads(written.read_text())
    assert data["config"]["limit"] == 3
    arguments = data["config"]["model_args"]
    assert arguments["pretrained"] == data["model_name"] == "fdllm/tiny"
    assert (arguments["config"], arguments["layers"]) == ("k2_middle", "4 5 6 7")
    assert data["results"]["tiny_choice"]["acc_stderr,none"] > 0
    assert data["lm_eval_version"] == "0.4.13"
    assert data["date"] > 1.7e9


def test_no_answers_no_form(results: Path) -> None:
    """A clone has no answers, and nothing is made up."""
    run, folder = run_of(results, "tiny_choice")
    published = load_record(results / "artifacts" / folder.relative_to(results))
    with pytest.raises(FdllmError, match="holds no journal.jsonl"):
        harness_log(published, run)


def test_damage_is_refused(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run_of(results, "tiny_choice")
    path = folder / "summary.json"
    kept = path.read_text()
    try:
        path.write_text(kept.replace('"num_requests": 12', '"num_requests": 13'))
        assert export(results, tmp_path / "out", "lm-eval", "tiny_choice") == 1
    finally:
        path.write_text(kept)
    assert "num_requests is 13; computed anew it is 12" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def logs(results: Path) -> list[HarnessLog]:
    runs = [run_of(results, task) for task in TASKS]
    return [harness_log(load_record(folder), run) for run, folder in runs]


def test_every_eval_ever_keeps_to_its_schema(logs: list[HarnessLog], tmp_path: Path) -> None:
    """Fields of its eval.schema.json and instance_level_eval.schema.json, 0.3.0."""
    needed = {"schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata",
              "eval_library", "model_info", "evaluation_results"}  # fmt: skip
    each = {"schema_version", "evaluation_id", "model_id", "evaluation_name", "sample_id",
            "interaction_type", "input", "answer_attribution", "evaluation"}  # fmt: skip
    may = {"evaluation_result_id", "sample_hash", "output", "messages", "performance", "metadata"}
    for log in logs:
        whole, samples = every_eval(log, "own"), every_eval_samples(log, "own")
        assert set(whole) == needed | {"evaluation_timestamp"}
        assert whole["retrieved_timestamp"].isdigit()
        (found,) = whole["evaluation_results"]
        assert found["score_details"]["score"] == log.record.summary.headline.value
        assert found["score_details"]["uncertainty"]["num_samples"] == 3
        details = found["generation_config"]["additional_details"]
        assert details["config"] == "k2_middle"
        assert all(isinstance(value, str) for value in details.values())
        assert len(samples) == 3
        for one in samples:
            assert each <= set(one) <= each | may
            assert one["evaluation_result_id"] == found["evaluation_result_id"]
            chosen, choices = one["output"]["raw"][0], one["input"]["choices"]
            assert (
                choices is None
                or (chosen == choices[int(one["input"]["reference"][0])])
                == (one["evaluation"]["is_correct"])
            )
        mean = sum(one["evaluation"]["score"] for one in samples) / 3
        assert mean == pytest.approx(found["score_details"]["score"])
        write_every_eval(log, tmp_path)
    for path in tmp_path.rglob("*.json"):
        detailed = json.loads(path.read_text())["detailed_evaluation_results"]
        beside = tmp_path / detailed["file_path"]
        assert beside == path.with_name(f"{path.stem}_samples.jsonl")
        assert detailed["checksum"] == hashlib.sha256(beside.read_bytes()).hexdigest()


def test_inspect_s_log_has_what_version_2_asks_for(logs: list[HarnessLog]) -> None:
    """Fields without a default in inspect_ai.log: EvalLog, EvalSpec, EvalScore, EvalSample."""
    for log in logs:
        data = inspect_log(log)
        assert list(data)[:3] == ["version", "status", "eval"]  # their order is part of the format
        assert (data["version"], data["status"]) == (2, "success")
        assert {"created", "task", "dataset", "model", "config"} <= set(data["eval"])
        assert datetime.fromisoformat(data["eval"]["created"]).tzinfo is not None
        (score,) = data["results"]["scores"]
        assert {"name", "scorer"} <= set(score)
        assert score["metrics"]["mean"]["value"] == log.record.summary.headline.value
        assert data["results"]["total_samples"] == len(data["samples"]) == 3
        for one in data["samples"]:
            assert {"id", "epoch", "input", "target"} <= set(one)
            assert set(one["scores"]) == {score["name"]}
            assert one["messages"][-1]["content"] == one["output"]["completion"]


def test_the_hub_takes_whole_tasks_of_its_own_models_and_data(
    results: Path, tmp_path: Path
) -> None:
    """https://huggingface.co/docs/hub/eval-results: data set, task and value are required."""
    record = load_record(run_of(results, "tiny_arithmetic")[1])

    def changed(**values: Any) -> Record:
        return replace(record, folder=tmp_path, summary=record.summary.model_copy(update=values))

    def results_of(dataset: str) -> None:
        data = {"configs": {"tiny_arithmetic": {"dataset_path": dataset}}}
        (tmp_path / "results.json").write_text(json.dumps(data))

    results_of("openai/gsm8k")
    entry = hub_entry(changed(model="some/model", limit=None))
    assert set(entry) == {"dataset", "value", "date", "notes"}
    assert entry["dataset"] == {"id": "openai/gsm8k", "task_id": "tiny_arithmetic"}
    assert HUB_ID.fullmatch(entry["dataset"]["id"])
    assert entry["value"] == pytest.approx(100 * record.summary.headline.value, abs=1e-3)
    assert "k2_middle" in entry["notes"]
    with pytest.raises(FdllmError, match="no repository on the Hub"):
        hub_entry(changed(limit=None))
    with pytest.raises(FdllmError, match="a part of the task's documents"):
        hub_entry(changed(model="some/model"))
    results_of("json")
    with pytest.raises(FdllmError, match="no data set of the Hub"):
        hub_entry(changed(model="some/model", limit=None))


# --- a group, of a user's own tasks ---------------------------------------------------------------


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags that choose the record of a group, all rows of both subtasks."""
    folder = tmp_path_factory.mktemp("group")
    own = make_tasks(folder / "tasks", 4)
    flags = ("--model", "tiny", "--config", "k2_middle", "--include-path", str(own))
    where = ("--task", GROUP, "--results", str(folder / "results"))
    assert main(["eval", *flags, *where]) == 0
    return *flags, *where


@pytest.fixture(scope="module")
def group_log(group: tuple[str, ...]) -> HarnessLog:
    run, folder = run_of(Path(group[-1]), GROUP, *group[:-4])
    return harness_log(load_record(folder), run)


def test_a_group_has_a_figure_of_itself_and_of_each_subtask(
    group: tuple[str, ...], tmp_path: Path
) -> None:
    """As lm-eval lays it out: one file of results, samples by subtask."""
    assert main(["export", *group, "--format", "lm-eval", "--out", str(tmp_path / "out")]) == 0
    (written,) = (tmp_path / "out").rglob("results_*.json")
    data = json.loads(written.read_text())
    assert {GROUP, *LEAVES} <= set(data["results"])
    assert set(data["groups"]) == {GROUP}
    assert GROUP in data["group_subtasks"]
    assert set(data["configs"]) == set(data["task_hashes"]) == set(LEAVES)
    assert sorted(path.name.rsplit("_", 1)[0] for path in written.parent.glob("samples_*")) == [
        f"samples_{name}" for name in LEAVES
    ]


def test_each_sample_of_a_group_stands_under_its_subtask_s_figure(group_log: HarnessLog) -> None:
    whole, samples = every_eval(group_log, "own"), every_eval_samples(group_log, "own")
    figures = {one["evaluation_result_id"]: one for one in whole["evaluation_results"]}
    assert len(figures) == len(whole["evaluation_results"])
    first = whole["evaluation_results"][0]
    assert first["evaluation_name"] == f"{GROUP}/last-line"
    assert first["score_details"]["score"] == group_log.record.summary.headline.value
    for leaf in LEAVES:
        own = [one for one in samples if one["sample_id"].startswith(f"{leaf} ")]
        figure = figures[f"{leaf}:exact_match:last-line"]
        assert {one["evaluation_result_id"] for one in own} == {figure["evaluation_result_id"]}
        assert {one["evaluation_name"] for one in own} == {figure["evaluation_name"]}
        assert figure["score_details"]["uncertainty"]["num_samples"] == len(own)
        mean = sum(one["evaluation"]["score"] for one in own) / len(own)
        assert mean == pytest.approx(figure["score_details"]["score"])
    assert len({one["sample_id"] for one in samples}) == len(samples)


def test_inspect_s_log_of_a_group_numbers_its_documents_apart(group_log: HarnessLog) -> None:
    data = inspect_log(group_log)
    ids = [one["id"] for one in data["samples"]]
    assert ids == data["eval"]["dataset"]["sample_ids"]
    assert len(set(ids)) == len(ids) == group_log.record.summary.headline.num_samples
    assert {one["name"] for one in data["results"]["scores"]} == set(data["samples"][0]["scores"])


def test_the_hub_s_file_is_written_where_its_repository_wants_it(
    group: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as a whole; which model and data are on the Hub is told it."""
    data = {"configs": {name: {"dataset_path": "some/doubles"} for name in LEAVES}}
    monkeypatch.setattr(hub_eval_results, "read_json", lambda *_, **__: data)
    monkeypatch.setattr(hub_eval_results, "model_of", lambda _: "some/model")
    form = ("--format", "hub-eval-results", "--out", str(tmp_path / "out"))
    assert main(["export", *group, *form]) == 0
    (written,) = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert written.parts[-4:] == ("some", "model", ".eval_results", f"{GROUP}.yaml")
    [entry] = yaml.safe_load(written.read_text())
    assert entry["dataset"] == {"id": "some/doubles", "task_id": GROUP}
    assert 0 <= entry["value"] <= 100


# --- what a sample and a metric are ---------------------------------------------------------------


@pytest.mark.parametrize(("filtered", "extracted"), [("42", "42"), (["def f(): 1"], "def f(): 1")])
def test_an_answer_is_what_its_filter_made_of_it(filtered: object, extracted: str) -> None:
    """Tasks that run programs have a list of them."""
    sample = {
        "arguments": {"gen_args_0": {"arg_0": "asked", "arg_1": {}}},
        "resps": [["said"]],
        "filtered_resps": [filtered],
    }
    assert answer_of(sample) == Answer("asked", None, "said", extracted)


@pytest.mark.parametrize("metric", ["boxed_match", "prompt_level_strict_acc", "pass@1", "rouge1"])
def test_a_score_has_a_type_where_its_bounds_are_known(logs: list[HarnessLog], metric: str) -> None:
    """``every_eval_ever validate`` refuses a continuous score without them."""
    log = logs[0]
    figures = {f"{metric},none": 0.5, "sample_len": 3}
    told = replace(log, results=log.results | {"results": {log.record.task: figures}})
    [found] = every_eval(told, "own")["evaluation_results"]
    bounded = {"score_type", "min_score", "max_score"} <= set(found["metric_config"])
    assert bounded == (metric != "rouge1")
    assert ("score_type" in found["metric_config"]) == bounded
