"""``--until-decided`` on the embedded model: where runs end, and how they go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from command import Command
from fake_slurm import FakeSlurm
from fdllm.cli.main import main
from fdllm.cluster.submission import read_submission
from fdllm.criteria import Criteria
from fdllm.errors import UsageError
from fdllm.evaluate.adapter import LoadedModel
from fdllm.evaluate.attempt import RunOutcome
from fdllm.evaluate.runner import Runner
from fdllm.evaluate.tasks import task_facts
from fdllm.plan import Planner, State
from fdllm.record.journal import read_journal
from fdllm.record.summary import Summary, read_summary
from fdllm.release.choose import choose
from fdllm.report.compare import compare
from fdllm.report.figures import cell_figures
from fdllm.report.grid import mixtures
from fdllm.report.records import load_record
from fdllm.report.verdict import Judged, judge_cell
from fdllm.runs import ModelChoice, Run, Sweep
from fdllm.until_decided import until_decided
from stubs import Notes, make_planner, paths_of, without_times

LIMIT = 40


@cache
def embedded(choice: ModelChoice) -> LoadedModel:
    return LoadedModel.load(choice)


@dataclass
class Checkout:
    """A checkout whose criteria are decided within a few documents."""

    root: Path
    notes: Notes = field(default_factory=Notes)

    def planner(self) -> Planner:
        return make_planner(self.root, task_facts)

    def criteria(self, text: str) -> None:
        path = self.root / "experiments/00_baseline/experiment.toml"
        path.write_text(path.read_text().partition("[criteria]")[0] + f"[criteria]\n{text}\n")

    def sweep(self, task: str = "tiny_arithmetic", limit: int = LIMIT) -> Sweep:
        choice = ModelChoice(name="tiny", device="cpu", dtype="float32")
        return Sweep(experiment="00_baseline", tasks=(task,), model=choice, limit=limit)

    def run(
        self,
        config: str,
        *,
        until: bool = True,
        task: str = "tiny_arithmetic",
        go_on: Callable[[], bool] = lambda: True,
    ) -> RunOutcome:
        planner, sweep = self.planner(), self.sweep(task)
        run = planner.run(sweep, task, config)
        end = until_decided(planner, sweep, run, 1) if until else None
        return Runner(planner, self.notes, embedded, go_on).run(run, until=end)

    def state(self, config: str) -> Any:
        planner = self.planner()
        return planner.state(planner.run(self.sweep(), "tiny_arithmetic", config))

    def of(self, config: str, task: str = "tiny_arithmetic") -> Run:
        return self.planner().run(self.sweep(task), task, config)


@pytest.fixture
def checkout(root: Path) -> Checkout:
    made = Checkout(root)
    made.criteria("max_accuracy_drop = 0.9")
    return made


def summary_of(checkout: Checkout, config: str) -> Summary:
    return read_summary(paths_of(checkout.root, checkout.of(config)).summary)


def test_a_run_ends_where_its_criteria_are_decided_and_says_so(checkout: Checkout) -> None:
    assert checkout.run("k1_first").state is State.DONE, "the baseline is asked whole"
    outcome = checkout.run("k2_middle")
    assert outcome.state is State.DECIDED
    assert outcome.num_computed == 10
    summary = summary_of(checkout, "k2_middle")
    assert summary.decided is not None
    assert summary.decided.outcomes == {"max_accuracy_drop": "met"}
    assert (summary.decided.documents, summary.decided.of, summary.decided.saved) == (10, 40, 30)
    assert summary.fingerprint.fields["decided"].startswith("10 of 40, criteria ")  # type: ignore[union-attr]
    assert summary.headline.num_samples == 10
    now = checkout.state("k2_middle")
    assert (now.state, now.done, now.total) == (State.DECIDED, 10, 40)
    assert now.reason.startswith("10 of 40: max_accuracy_drop met; saved 30 rows")
    assert checkout.run("k2_middle").num_computed == 0, "it is settled"


def test_a_plain_sweep_completes_it_and_computes_only_what_is_missing(checkout: Checkout) -> None:
    checkout.run("k1_first")
    checkout.run("k2_middle")
    outcome = checkout.run("k2_middle", until=False)
    assert (outcome.state, outcome.num_computed) == (State.DONE, LIMIT - 10)
    whole = summary_of(checkout, "k2_middle")
    assert whole.decided is None
    assert "decided" not in whole.fingerprint.fields
    kept = paths_of(checkout.root, checkout.of("k2_middle")).samples.read_text()
    paths_of(checkout.root, checkout.of("k2_middle")).supersede()
    checkout.run("k2_middle", until=False)
    again = summary_of(checkout, "k2_middle")
    timed = {"throughput", "files"}
    one, other = without_times(whole), without_times(again)
    assert {k: v for k, v in one.items() if k not in timed} == {
        k: v for k, v in other.items() if k not in timed
    }
    fresh = paths_of(checkout.root, checkout.of("k2_middle")).samples.read_text()
    assert untimed(kept) == untimed(fresh)


def untimed(samples: str) -> list[dict[str, Any]]:
    return [json.loads(line) | {"seconds": 0} for line in samples.splitlines()]


def test_edited_criteria_go_on_with_what_is_answered(checkout: Checkout) -> None:
    checkout.run("k1_first")
    checkout.run("k2_middle")
    checkout.criteria("max_accuracy_drop = 0.5")
    now = checkout.state("k2_middle")
    assert (now.state, now.done, now.total) == (State.PARTIAL, 10, LIMIT)
    assert "by criteria that have changed since" in now.reason
    outcome = checkout.run("k2_middle")
    assert outcome.state is State.DECIDED
    assert outcome.num_computed < 30
    assert summary_of(checkout, "k2_middle").decided is not None


def test_what_cannot_be_decided_is_asked_whole(checkout: Checkout) -> None:
    checkout.criteria("max_accuracy_drop = 0.0")
    checkout.run("k1_first")
    outcome = checkout.run("k2_middle")
    assert (outcome.state, outcome.num_computed) == (State.DONE, LIMIT)
    assert summary_of(checkout, "k2_middle").decided is None


def test_without_the_baselines_answers_nothing_is_decided(checkout: Checkout) -> None:
    outcome = checkout.run("k2_middle")
    assert (outcome.state, outcome.num_computed) == (State.DONE, LIMIT)


def test_a_baseline_at_work_is_read_from_its_journal(checkout: Checkout) -> None:
    """As where both are tasks of one array: it takes the documents in the same order."""
    asked = iter(range(25))
    outcome = checkout.run("k1_first", go_on=lambda: next(asked, None) is not None)
    assert outcome.state is State.PARTIAL
    answered = len(read_journal(paths_of(checkout.root, checkout.of("k1_first")).journal).entries)
    assert 10 <= answered < LIMIT
    assert checkout.run("k2_middle").state is State.DECIDED


def test_a_run_that_is_ended_early_goes_on_from_there(checkout: Checkout) -> None:
    checkout.criteria("max_accuracy_drop = 0.5")
    checkout.run("k1_first")
    asked = iter(range(6))
    assert (
        checkout.run("k2_middle", go_on=lambda: next(asked, None) is not None).state
        is State.PARTIAL
    )
    now = checkout.state("k2_middle")
    assert 0 < now.done < 10
    assert now.total == LIMIT
    outcome = checkout.run("k2_middle")
    assert outcome.state is State.DECIDED
    decided = summary_of(checkout, "k2_middle").decided
    assert decided is not None
    assert outcome.num_computed == decided.documents - now.done


def test_choices_end_too(checkout: Checkout) -> None:
    checkout.run("k1_first", task="tiny_choice")
    outcome = checkout.run("k2_middle", task="tiny_choice")
    assert outcome.state is State.DECIDED
    assert outcome.summary is not None
    assert outcome.summary.num_requests == 4 * outcome.summary.headline.num_samples
    now = checkout.planner().state(checkout.of("k2_middle", "tiny_choice"))
    assert now.total == 4 * LIMIT


def test_a_decided_record_stands_in_a_table_beside_whole_ones(checkout: Checkout) -> None:
    """Compared on the documents that both have."""
    checkout.run("k1_first")
    checkout.run("k2_middle")
    base, cell = (
        load_record(paths_of(checkout.root, checkout.of(name)).folder)
        for name in ("k1_first", "k2_middle")
    )
    assert mixtures([base, cell]) == []
    (remark,) = choose([[checkout.state("k2_middle")]], frozenset()).remarks
    assert "is decided: 10 of 40" in remark, "a release says so too"
    found = compare(base, cell)
    assert found.n == 10
    task = Judged("tiny_arithmetic", smoke=False, cells=())
    judged = judge_cell(Criteria(max_accuracy_drop=0.02), task, cell_figures(cell), found)
    assert found.difference.low < -0.02, "ten documents exclude no such loss by an interval"
    assert judged.outcome == "met", "the rule that ended it decides, not an interval behind it"
    assert "10 of 40" in judged.findings[0].text


def test_criteria_that_no_accuracy_run_decides_are_refused(checkout: Checkout) -> None:
    checkout.criteria("min_speedup = 1.1")
    with pytest.raises(UsageError, match=r"no accuracy run can decide the criteria of '00_base"):
        checkout.run("k2_middle")


def test_verdicts_share_the_errors_over_cells_and_tasks(checkout: Checkout) -> None:
    planner, sweep = checkout.planner(), checkout.sweep()
    run = planner.run(sweep, "tiny_arithmetic", "k2_middle")
    assert until_decided(planner, sweep, run, 2).sharing == 2 * 6  # k2 and k3, three subsets each
    checkout.criteria('max_accuracy_drop = 0.02\nconfigs = ["k2_first", "k2_last"]')
    assert until_decided(checkout.planner(), sweep, run, 2).sharing == 2 * 2
    assert until_decided(checkout.planner(), sweep, run, 2).against.cell.name == "k1_first"


# --- the commands -------------------------------------------------------------------------------

SWEEP = ("sweep", "--task", "tiny_arithmetic", "--until-decided")


def test_what_the_others_are_judged_against_is_swept_too_and_first(fdllm: Command) -> None:
    settings = fdllm.root / "experiments/00_baseline/experiment.toml"
    text = settings.read_text()
    settings.write_text(text.replace("[criteria]", '[criteria]\nbaseline = "k1_last"'))
    chosen = ("--config", "k2_first", "k2_middle", "--timing", "0")
    assert fdllm(*SWEEP, *chosen, "--dry-run") == 0
    assert "k1_last too: the others are judged against it" in fdllm.err
    assert fdllm.out.count("run  00_baseline") == 3
    assert fdllm(*SWEEP, *chosen) == 0
    assert "[1/3] 00_baseline / tiny_arithmetic / k1_last" in fdllm.err
    assert set(fdllm.cells(*SWEEP[1:3], "--config", "k1_last", "k2_first").values()) == {"done"}


def test_runs_that_are_split_cannot_end_together(fdllm: Command) -> None:
    assert fdllm(*SWEEP, "--executor", "slurm", "--shards", "2") == 2
    assert "shards of one do not see each other's answers" in fdllm.err


def test_an_array_knows_where_its_runs_end(
    fdllm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", FakeSlurm.make(tmp_path / "bin").path)
    queue = ("--executor", "slurm", "--no-doctor", "--timing", "0")
    assert fdllm(*SWEEP, *queue, "--config", "k1_first", "k2_last") == 0, fdllm.err
    (folder,) = fdllm.root.glob("logs/*/*/submissions/*")
    made = read_submission(folder)
    assert [one.run.cell.name for one in made.assignments] == ["k1_first", "k2_last"]
    ends = [one.until for one in made.assignments]
    assert [end and end.against.cell.name for end in ends] == ["k1_first"] * 2
    assert fdllm.raw("job", str(made.map), "1") == 0, fdllm.err


def test_what_is_decided_is_told_apart_wherever_cells_are_counted(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.run("k1_first")
    checkout.run("k2_middle")
    monkeypatch.setenv("FDLLM_ROOT", str(checkout.root))
    asked = ["--task", "tiny_arithmetic", "--model", "tiny", "--limit", str(LIMIT)]
    asked += ["--dtype", "float32", "--config", "k1_first", "k2_middle"]
    assert main(["status", *asked]) == 0
    out = capsys.readouterr().out
    assert "decided" in out
    assert "10 of 40" in out
    assert "1 of 2 done, 1 decided, which saved 30 rows" in out
    assert main(["sweep", *asked, "--until-decided", "--dry-run"]) == 0
    assert "would run 0 of 2" in capsys.readouterr().out
    assert main(["sweep", *asked, "--dry-run"]) == 0
    assert "k2_middle: goes on to the last row: 10 of 40" in capsys.readouterr().out
    assert main(["report", "--check", *asked]) == 0, "its figures are those of its documents"
