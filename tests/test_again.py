"""A record is a pure function of its journal: the same path, asked again, gives the same files."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from fdllm.cli import main
from fdllm.cli.report import ReportCommand
from fdllm.cli.request import read_request
from fdllm.errors import FdllmError
from fdllm.evaluate.again import evaluate_again, prepare
from fdllm.record.journal import read_journal
from fdllm.record.summary import describe_file
from fdllm.runs import Run
from made_up import tamper

TASKS = ("tiny_arithmetic", "tiny_choice")
Answers = dict[str, dict[str, Any]]


FLAGS = ("--model", "tiny", "--config", "k2_middle", "--limit", "3")


def check(results: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Differences of ``fdllm report --check``, as ``file: place``."""
    flags = (*FLAGS, "--task", *TASKS, "--results", str(results))
    capsys.readouterr()
    code = main(["report", "--check", "--json", *flags])
    found = json.loads(capsys.readouterr().out)
    assert code == bool(found["differences"])
    assert not [note for note in found["notes"] if "not asked again" in note]
    return [f"{Path(one['where']).name}: {one['figure']}" for one in found["differences"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Path]]:
    """A run of each kind, on the embedded model, with the folder of its record."""
    flags = [*FLAGS, "--results", str(tmp_path_factory.mktemp("results"))]
    for task in TASKS:
        assert main(["eval", "--task", task, *flags]) == 0
    parser = ArgumentParser()
    ReportCommand.add_flags(parser)
    request = read_request(ReportCommand.read(parser.parse_args([*flags, "--task", *TASKS])))
    return {run.task: (run, request.planner.layout.run(run).folder) for run in request.runs}


@pytest.mark.parametrize("task", TASKS)
def test_samples_results_and_answers_follow_from_the_journal(
    runs: dict[str, tuple[Run, Path]], task: str
) -> None:
    run, folder = runs[task]
    entries = read_journal(folder / "journal.jsonl").entries
    found, follows = evaluate_again(*prepare(run), entries)
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert found.samples == [json.loads(line) for line in lines]
    assert found.results == json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert follows.keys() == entries.keys()
    assert all(entries[key] | facts == entries[key] for key, facts in follows.items())
    part, _ = evaluate_again(*prepare(run), entries, {task: {1}})
    assert part.samples == found.samples[1:2]


def test_a_forged_answer_gives_another_sample(runs: dict[str, tuple[Run, Path]]) -> None:
    run, folder = runs["tiny_arithmetic"]
    entries: Answers = deepcopy(read_journal(folder / "journal.jsonl").entries)
    key, first = next((key, one) for key, one in entries.items() if one["doc_id"] == 0)
    first["text"] = "#### 1"
    found, follows = evaluate_again(*prepare(run), entries)
    assert found.samples[0]["metrics"] == {"exact_match,strict-match": 0.0}
    assert follows[key]["text"] != first["text"]
    assert follows[key]["num_tokens"] == first["num_tokens"]
    del entries[key]
    with pytest.raises(FdllmError, match="document 0: no answer to what is asked"):
        evaluate_again(*prepare(run), entries)


@pytest.mark.parametrize(
    ("task", "field", "value", "found"),
    [
        (TASKS[0], "target", "7", "samples.jsonl: row 0 of tiny_arithmetic.target"),
        (TASKS[0], "filtered", {}, "samples.jsonl: row 0 of tiny_arithmetic.filtered"),
        (TASKS[1], "target", 3, "samples.jsonl: row 0 of tiny_choice.target"),
    ],
)
def test_the_check_asks_and_grades_again(
    runs: dict[str, tuple[Run, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    field: str,
    value: Any,
    found: str,
) -> None:
    """A forged target or filter stands nowhere else; the hash is brought along."""
    results = tmp_path / "results"
    shutil.copytree(runs[task][1].parents[2], results)
    assert check(results, capsys) == []
    samples = results / runs[task][1].relative_to(runs[task][1].parents[2]) / "samples.jsonl"
    tamper(samples, 0, **{field: value})
    for summary in results.rglob(f"{samples.parent.parent.name}/k2_middle/summary.json"):
        data = json.loads(summary.read_text())
        data["files"]["samples.jsonl"] = describe_file(samples, 3).model_dump()
        summary.write_text(json.dumps(data))
    assert any(one.startswith(found) for one in check(results, capsys))
