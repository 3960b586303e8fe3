"""A record is a pure function of its journal: the same path, asked again, gives the same files."""

from __future__ import annotations

import json
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
from fdllm.runs import Run

TASKS = ("tiny_arithmetic", "tiny_choice")
Answers = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Path]]:
    """A run of each kind, on the embedded model, with the folder of its record."""
    flags = ["--model", "tiny", "--config", "k2_middle", "--limit", "3"]
    flags += ["--results", str(tmp_path_factory.mktemp("results"))]
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
