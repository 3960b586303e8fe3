"""Configs are timed in turn on a run's own path, and answer as their records do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fdllm.core.row_task import RowTask
from fdllm.errors import FdllmError
from fdllm.evaluate.adapter import LoadedModel
from fdllm.evaluate.runner import Runner
from fdllm.evaluate.tasks import task_facts
from fdllm.plan import Planner, State
from fdllm.record.per_document import digest_of_answer
from fdllm.record.study import Conditions, read_study
from fdllm.report.records import Record, SampleKey
from fdllm.report.times import judge_pairs
from fdllm.runs import ModelChoice, Sweep
from fdllm.timing import conditions
from fdllm.timing.conditions import changes, read_conditions
from fdllm.timing.take_study import draw, take_study
from fdllm.timing.wanted import WantedStudy, keep_study, study_state, study_words, want_studies
from fdllm_bench.made_up_study import make_study
from stubs import Notes, change_code, made_up_study, make_planner, make_root, make_sweep

TINY = ModelChoice(name="tiny", device="cpu", dtype="float32")
NULL = dict.fromkeys(["k1_a", "k1_b", "k1_c", *(f"k2_{i}" for i in range(9))], 1.0)


def planner_of(root: Path) -> Planner:
    return make_planner(root, task_facts)


def tiny_sweep(root: Path, *tasks: str, **changes: Any) -> Sweep:
    return make_sweep(root, tasks=tasks, model=TINY, limit=3, **changes)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return LoadedModel.load(TINY, threads=1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, model: LoadedModel) -> Path:
    """A checkout with records of two configs on three documents of each task."""
    root = make_root(tmp_path_factory.mktemp("timed"))
    planner = planner_of(root)
    runner = Runner(planner, Notes(), lambda _: model)
    tasks = ("tiny_arithmetic", "tiny_choice")
    for run in planner.runs(tiny_sweep(root, *tasks, configs=("k1_first", "k2_last"))):
        assert runner.run(run).state is State.DONE
    return root


def wanted_of(root: Path, task: str, number: int = 2, repeats: int = 2) -> WantedStudy:
    sweep = tiny_sweep(root, task, configs=("k2_last",))
    [wanted] = want_studies(planner_of(root), sweep, number, repeats)
    return wanted


class Watching:
    """Notes the name of whoever's forwards begin."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def wrap(self, task: RowTask[Any]) -> RowTask[Any]:
        self.seen.append(self.name)
        return task


@pytest.mark.parametrize("task", ["tiny_arithmetic", "tiny_choice"])
def test_configs_take_turns_and_answer_as_their_records_say(
    recorded: Path, model: LoadedModel, task: str
) -> None:
    planner, wanted = planner_of(recorded), wanted_of(recorded, task)
    assert list(wanted.runs) == ["k1_first", "k1_middle", "k1_last", "k2_last"]
    seen: list[str] = []
    study = take_study(
        planner, model, wanted, hooks={name: Watching(name, seen) for name in wanted.runs}
    )
    per_answer = seen.count("k1_first") // (2 + 2 * 2)  # warm-ups, documents times repeats
    answers = seen[::per_answer] if task == "tiny_arithmetic" else []
    rounds = [answers[at : at + 4] for at in range(2 * 4, len(answers), 4)]
    assert all(sorted(one) == sorted(wanted.runs) for one in rounds)
    agrees = {name: one.agrees for name, one in study.configs.items()}
    assert agrees["k1_middle"] is None, "it has no record"
    for name in ("k1_first", "k2_last"):
        found = agrees[name]
        assert found is not None
        assert (found.compared, found.equal) == (2, 2)
    assert study.configs["k1_first"].answers == study.configs["k1_last"].answers
    assert [study.configs[name].reuses for name in wanted.runs] == [False, False, False, True]
    assert study.twins == ("k1_first", "k1_middle", "k1_last")
    assert (study.device, study.threads) != ("", None)
    assert len(study.conditions) == 3
    assert study.limit == 3


def test_another_text_than_the_records_fails_the_study(
    recorded: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another choice is a warning: log-likelihoods may differ in their last bits."""
    read = vars(Record)["texts"].func

    def changed(said: Any) -> Any:
        return "no" if isinstance(said, str) else [-1e9, *said]

    def other(record: Record) -> dict[SampleKey, dict[str, Any]]:
        texts = read(record)
        return {key: line | {"output": changed(line["output"])} for key, line in texts.items()}

    monkeypatch.setattr(Record, "texts", property(other))
    planner = planner_of(recorded)
    with pytest.raises(FdllmError, match="k1_first differ from the record's on 2 documents"):
        take_study(planner, model, wanted_of(recorded, "tiny_arithmetic"))
    study = take_study(planner, model, wanted_of(recorded, "tiny_choice"))
    assert any("k2_last differ from the record's" in warning for warning in study.warnings)
    found = study.configs["k2_last"].agrees
    assert found is not None
    assert found.equal == 0


def test_a_study_is_done_until_something_changes(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    planner, sweep = make_planner(root), make_sweep(root)
    [wanted] = want_studies(planner, sweep, 6)
    assert next(iter(wanted.runs)) == "k1_first"
    assert len(wanted.runs) == 9
    assert wanted.again is None
    assert study_state(planner, wanted).state is State.PENDING

    study = made_up_study(planner, wanted, 6)
    assert keep_study(planner, wanted, study) is None
    path, copy = planner.layout.timing(wanted.baseline)
    assert read_study(path) == read_study(copy) == study
    now = study_state(planner, wanted)
    assert study_words(now) == "timing: done, 6 documents"
    [less] = want_studies(planner, make_sweep(root, configs=("k2_last",)), 5)
    assert study_state(planner, less).state is State.DONE, "what stands holds more"
    for more, why in (({"number": 7}, "6 of 7 documents"), ({"repeats": 4}, "3 of 4 repeats")):
        [other] = want_studies(planner, sweep, **{"number": 6, **more})
        assert study_state(planner, other).reason == why

    aside = keep_study(planner, wanted, study)
    assert aside is not None
    assert read_study(aside / "study.json") == study
    change_code(root)
    changed = study_state(make_planner(root), wanted)
    assert (changed.state, changed.reason) == (State.STALE, "experiment of k1_first changed")
    path.write_text("{")
    assert study_state(planner, wanted).state is State.INVALID


def test_a_baseline_without_a_twin_is_timed_twice(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    settings = root / "experiments/00_baseline/experiment.toml"
    cells = 'name = "k1_first"', 'name = "k2_last"\nk = 2\nsubset = "last"'
    settings.write_text("\n".join(f"[[config]]\n{cell}" for cell in cells))
    [wanted] = want_studies(make_planner(root), make_sweep(root))
    assert list(wanted.runs) == ["k1_first", "k2_last", "k1_first_again"]
    assert wanted.again == "k1_first_again"
    assert wanted.number == 100
    [few] = want_studies(make_planner(root), make_sweep(root, limit=10))
    assert few.number == 10


def test_a_task_on_which_nothing_can_differ_has_no_study(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    tasks = ("tiny_arithmetic", "tiny_choice")
    sweep = make_sweep(root, tasks=tasks, flags={"scoring": "first-token"})
    [wanted] = want_studies(make_planner(root), sweep)
    assert wanted.baseline.task == "tiny_arithmetic"
    assert not want_studies(make_planner(root), make_sweep(root, configs=("k1_last",)))


def test_documents_are_drawn_once_and_for_all_and_each_leaf_has_its_share() -> None:
    documents = [("large", i) for i in range(80)] + [("small", i) for i in range(20)]
    drawn = draw(documents, 50)
    assert drawn == draw(documents, 50)
    assert len(set(drawn)) == 50
    assert 39 <= sum(leaf == "large" for leaf, _ in drawn) <= 41
    assert draw(documents, 10) == drawn[:10]
    assert sorted(draw(documents, 1000)) == sorted(documents)
    ids = [number for leaf, number in drawn if leaf == "large"]
    assert ids != sorted(ids)


def test_an_answer_is_its_text_or_its_choice() -> None:
    assert digest_of_answer("7") == digest_of_answer(["7"]) != digest_of_answer("8")
    assert digest_of_answer([-2.0, -1.0]) == digest_of_answer([-9.0, -1.5])
    assert digest_of_answer([-2.0, -1.0]) != digest_of_answer([-1.0, -2.0])
    assert len(digest_of_answer("7")) == 16


def test_conditions_are_what_the_machine_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(conditions, "_SENSORS", tmp_path)
    nothing = read_conditions(torch.device("cpu"), 1.0)
    assert (nothing.clock_mhz, nothing.temperature_c) == (None, None)
    (tmp_path / "cpuinfo").write_text("cpu MHz\t: 2000.0\nflags: x\ncpu MHz\t: 3000.0\n")
    for number, (kind, milli) in enumerate([("x86_pkg_temp", 61000), ("acpitz", 90000)]):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{milli}\n")
    found = read_conditions(torch.device("cpu"), 1.0)
    assert (found.clock_mhz, found.temperature_c) == (2500.0, 61.0)


def test_a_gpus_conditions_come_from_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="7"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_conditions(gpu, 0.0).clock_mhz is None, "no driver's program here"
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\n[ "$1" = --id=GPU-7 ] && echo "1410, [N/A]"\n')
    program.chmod(0o755)
    found = read_conditions(gpu, 0.0)
    assert (found.clock_mhz, found.temperature_c) == (1410.0, None)


def test_a_machine_that_changed_is_said() -> None:
    def at(clock: float | None, load: float) -> Conditions:
        return Conditions(at=0.0, clock_mhz=clock, load=load)

    assert changes([at(2000, 1.0), at(2100, 2.0), at(None, 1.5)], 2) == []
    assert changes([at(2000, 1.0), at(2300, 1.0)], 2) == ["the clock went from 2000 to 2300 MHz"]
    assert changes([at(None, 1.0), at(None, 3.5)], 2) == [
        "other programs took part of the machine: load 3.5 on 2 cores"
    ]


def test_on_a_drifting_machine_intervals_hold_and_nothing_false_is_claimed() -> None:
    """60 studies here; ``benchmarks/study_coverage.py`` takes as many as one likes."""
    chance = np.random.default_rng(5)
    found = [judge_pairs(make_study(NULL, chance)) for _ in range(60)]
    held = [pair.ratio.low <= 1 <= pair.ratio.high for one in found for pair in one.pairs]
    assert 0.93 <= np.mean(held) <= 0.97
    assert sum(any(pair.claim != "none" for pair in one.pairs) for one in found) <= 4


def test_a_tenth_more_time_is_found_on_a_drifting_machine() -> None:
    chance = np.random.default_rng(6)
    ratios = {"k1_a": 1.0, "k1_b": 1.0, "k1_c": 1.0, "k2": 1.1}
    found = [judge_pairs(make_study(ratios, chance))["k2"] for _ in range(20)]
    assert [pair.claim for pair in found] == ["slower"] * 20
    assert sum(pair.ratio.low <= 1.1 <= pair.ratio.high for pair in found) >= 17
