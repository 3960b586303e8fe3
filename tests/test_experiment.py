"""Experiments are found by their whole name, checked strictly, and obey one contract."""

from __future__ import annotations

import dataclasses
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import fdllm
from fdllm.cli import main
from fdllm.core.config import StrategyConfig
from fdllm.core.guided_plans import GatePlan, ProbePlan, ScorePlan
from fdllm.core.reuse import AnyPlan, GuidedPlan, LayerPlan, LayerRun, Observation, ReuseStrategy
from fdllm.core.schedule import Phase, Step
from fdllm.core.subsets import subset_bounds
from fdllm.errors import FdllmError, UsageError
from fdllm.experiment import (
    create_experiment,
    list_experiments,
    load_experiment,
    load_strategy,
)
from fdllm.experiment.load import INSTALLED
from fdllm.experiment.settings import read_settings
from fdllm.record import identity
from fdllm.record.identity import PACKAGE
from fdllm.record.paths import find_root
from helpers import ROOT

CELLS = [
    (name, cell.name)
    for name in list_experiments(ROOT)
    for cell in load_experiment(name, ROOT).cells
]
SIZES = (12, 28, 36)


def make(root: Path, name: str, code: str, settings: str = "") -> None:
    folder = root / "experiments" / name
    folder.mkdir()
    (folder / "generation_functions.py").write_text(code)
    (folder / "experiment.toml").write_text(settings)


# --- the contract of every experiment's strategy --------------------------------------------------


def strategy_of(experiment: str, cell_name: str, n_layers: int) -> ReuseStrategy[Any]:
    study = load_experiment(experiment, ROOT)
    cell = study.cell(cell_name)
    return study.strategy(
        StrategyConfig(
            k=cell.k,
            subset=cell.subset,
            n_layers=n_layers,
            subset_size=study.settings.reuse.subset_size,
            params=study.params(cell),
        )
    )


def came_to(plan: AnyPlan, index: int) -> LayerPlan:
    """What a plan may come to; a guided one decides either way."""
    if isinstance(plan, ProbePlan):
        return plan.calm if index % 2 else plan.otherwise
    if isinstance(plan, GatePlan):
        return LayerPlan(plan.n_layers, reuse=(LayerRun(plan.first, plan.first + 1, "identity"),))
    if isinstance(plan, ScorePlan):
        part = tuple(dataclasses.replace(run, columns=(0, index)) for run in plan.runs[1:])
        return LayerPlan(plan.n_layers, store=plan.runs[:1], partial=part)
    return plan.whole if isinstance(plan, GuidedPlan) else plan


@pytest.mark.parametrize("n_layers", SIZES)
@pytest.mark.parametrize(("experiment", "cell"), CELLS)
def test_contract(experiment: str, cell: str, n_layers: int) -> None:
    strategy = strategy_of(experiment, cell, n_layers)
    assert dataclasses.is_dataclass(strategy)
    assert " at 0x" not in repr(strategy), "its text goes into fingerprints"
    assert strategy == strategy_of(experiment, cell, n_layers)
    assert hash(strategy) == hash(strategy_of(experiment, cell, n_layers))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(strategy, "anything", 99)  # noqa: B010 - the attribute is any
    allowed = set(strategy.layer_subset(n_layers))
    assert allowed <= set(range(1, n_layers)), "layer 0 is never reused"

    state = strategy.init(n_layers)
    stored: set[Any] = set()
    num_reused = 0
    for index in range(8):
        phase = Phase.DENOISE if index else Phase.REFRESH
        step = Step(phase, index, (0, 32) if index == 0 else (0, 8), first=index == 0)
        plan = strategy.plan(step, state)
        assert plan == strategy.plan(step, state), "plan must not change anything"
        hash(plan)
        done = came_to(plan, index)
        if isinstance(plan, GuidedPlan):
            assert {run.key for run in plan.whole.store} <= stored, "it may reuse all of them"
            assert done != plan.whole or {run.start for run in done.store} <= allowed
        assert done.num_computed + done.num_reused == done.n_layers == n_layers
        for run in (*done.reuse, *done.partial):
            assert index > 0, "a block's first forward has nothing to reuse"
            assert run.target == "identity" or run.key in stored, (
                "only what was stored can be reused"
            )
            assert set(range(run.start, run.stop)) <= allowed
        stored |= {run.key for run in done.store}
        num_reused += done.num_reused + len(done.partial)
        seen = Observation(done, {0: 0.5, 1: 0.99, 2: 0.1, 3: 0.2}, unmasked=(1,))
        state = strategy.observe(step, seen, state)
    if not strategy.reuses:
        assert num_reused == 0


@pytest.mark.parametrize("n_layers", SIZES)
def test_baseline_is_periodic_output_reuse(n_layers: int) -> None:
    for k in (1, 2, 3):
        for subset in ("first", "middle", "last"):
            start, stop = subset_bounds(subset, n_layers)
            strategy = load_strategy("00_baseline", k=k, subset=subset, n_layers=n_layers)
            assert strategy == fdllm.PeriodicReuse(k, start, stop, target="output")


def test_baseline_settings_are_the_published_ones_at_a_threshold_of_its_own() -> None:
    study = load_experiment("00_baseline", ROOT)
    decoding = study.decoding(study.cells[0])
    assert decoding == fdllm.Decoding(
        block_size=32, small_block_size=8, threshold=0.97, use_block_cache=True
    )
    asked = study.settings.evaluation
    assert (asked.num_fewshot, asked.batch_size, asked.chat_template) == (0, 1, True)
    assert len(study.cells) == 9


# --- found and loaded strictly --------------------------------------------------------------------


def test_unknown_experiment_lists_what_exists(root: Path) -> None:
    with pytest.raises(UsageError, match=r"'00_basline' \(did you mean '00_baseline'\?\)"):
        load_experiment("00_basline", root)


@pytest.mark.parametrize("name", ["00", "baseline", "_template", "../00_baseline", ""])
def test_no_name_falls_back_to_another(root: Path, name: str) -> None:
    with pytest.raises(UsageError, match="unknown experiment"):
        load_experiment(name, root)


def test_two_experiments_never_share_code(root: Path) -> None:
    code = "from fdllm import NoReuse, PeriodicReuse\ndef strategy(config):\n    return {}\n"
    make(root, "01_a", code.format("NoReuse()"))
    make(root, "02_b", code.format("PeriodicReuse(2, 1, 3)"))
    config = StrategyConfig(k=1, subset="first", n_layers=12)
    assert load_experiment("01_a", root).strategy(config) == fdllm.NoReuse()
    assert load_experiment("02_b", root).strategy(config) == fdllm.PeriodicReuse(2, 1, 3)
    assert load_experiment("01_a", root).strategy(config) == fdllm.NoReuse()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def strategy(config):\n    return 1 / 0\n", r"functions.py, line 2: ZeroDivisionError"),
        ("import nothing_of_this_name\n", r"functions.py, line 1: ModuleNotFoundError"),
        ("def strategy(config:\n", r"functions.py, line 1: .*never closed"),
        ("def strategy(config):\n    return None\n", r"returned NoneType; it must return"),
        ("x = 1\n", r"defines no function strategy\(config\)"),
    ],
)
def test_errors_in_the_code_name_file_and_line(root: Path, code: str, error: str) -> None:
    make(root, "01_broken", code)
    config = StrategyConfig(k=1, subset="first", n_layers=12)
    with pytest.raises(FdllmError, match=error) as caught:
        load_experiment("01_broken", root).strategy(config)
    assert "\n" not in str(caught.value)


def test_unmask_is_optional(root: Path) -> None:
    make(root, "01_a", "def unmask(confidence, threshold):\n    return [0]\n")
    own = load_experiment("01_a", root).unmask
    assert own is not None
    assert own([0.1], 0.9) == [0]
    assert load_experiment("00_baseline", root).unmask is None


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ("[decoding]\ntreshold = 1\n", r"\[decoding\]: unknown key 'treshold' \(did you mean"),
        ("[decodign]\n", r"unknown key 'decodign'.*decoding"),
        ("[grid]\nk = [0]\nsubset = ['all']\n", r"\[grid\].*subset.*'first', 'middle' or 'last'"),
        ("[decoding]\nthreshold = 2\n", r"threshold.*less than or equal to 1"),
        ("[decoding]\nsmall_block_size = 7\n", r"must divide"),
        ("[grid]\n[[config]]\nname='k3_last'\nk=3\nsubset='last'\n", r"two configs named k3_last"),
        ("[grid]\ndrafts=[]\n", r"\[grid\]: 'drafts'.*at least 1"),
        ("[grid]\ndrafts=3\n", r"\[grid\]: 'drafts'.*got 3"),
        ("[grid]\nlayers=[[1], [2]]\n", r"'k2_first_layers\[1\]' would name a folder"),
        ("[grid]\ndrafts=[2, 2]\n", r"two configs named k2_first_drafts2"),
        ("[[config]]\nname='x'\n[[config]]\nname='x'\n", r"two configs named x"),
        ("[[config]]\nname='../x'\n", r"it names a folder"),
        ("[[config]]\nname='timing'\n", r"the timing study's folder"),
        ("[[config]]\nname='k2_last'\nk=3\n", r"the name says k2_last"),
        ("not toml", r"cannot be read"),
        ("a = " + "[" * 5_000, r"cannot be read: it is nested too deep"),
        ("title = '\0'", r"cannot be read: Found invalid character"),
    ],
)
def test_settings_are_strict(tmp_path: Path, settings: str, error: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(settings)
    with pytest.raises(UsageError, match=error) as caught:
        read_settings(path)
    assert str(path) in str(caught.value)


def test_cells_may_have_decoding_and_parameters_of_their_own(root: Path) -> None:
    settings = (
        "[decoding]\nthreshold = 0.9\nsmall_block_size = 4\n[reuse]\nparams = {a = 1, b = 1}\n"
        "[[config]]\nname = 't0.70'\ndecoding = {threshold = 0.7}\n"
        "[[config]]\nname = 'k2_middle'\nk = 2\nsubset = 'middle'\nparams = {b = 2}\n"
    )
    make(root, "01_a", "", settings)
    study = load_experiment("01_a", root)
    low, reuse = study.cells
    assert study.decoding(low) == fdllm.Decoding(threshold=0.7, small_block_size=4)
    assert study.decoding(reuse) == fdllm.Decoding(threshold=0.9, small_block_size=4)
    assert study.params(reuse) == {"a": 1, "b": 2}


def test_a_grid_takes_any_parameter_and_setting(root: Path) -> None:
    settings = (
        "[grid]\nk = [1, 2]\nsubset = ['last']\nmost = [1, 0.5]\nrefresh = [true, false]\n"
        "layers = [[3, 4]]\n[grid.decoding]\nthreshold = [0.9, 0.97]\n[[config]]\nname = 'x'\n"
    )
    make(root, "01_a", "", settings)
    cells = {cell.name: cell for cell in load_experiment("01_a", root).cells}
    # k = 1 is the exact baseline: a threshold touches it, a parameter of the strategy does not.
    assert list(cells) == [
        "k1_last_threshold0.9", "k1_last_threshold0.97",
        *(
            f"k2_last_most{most}_refresh{refresh}_threshold{threshold}"
            for threshold in (0.9, 0.97) for most in (1, 0.5) for refresh in ("true", "false")
        ),
        "x",
    ]  # fmt: skip
    cell = cells["k2_last_most1_refreshfalse_threshold0.9"]
    assert (cell.k, cell.subset, cell.decoding) == (2, "last", {"threshold": 0.9})
    assert cell.params == {"most": 1, "refresh": False, "layers": [3, 4]}
    assert cells["k1_last_threshold0.9"].params == {}


def test_parameters_vary_at_k_1_where_the_grid_has_no_other_period(root: Path) -> None:
    make(root, "01_a", "", "[grid]\nk = [1]\nsubset = ['first']\ndrafts = [1, 3]\n")
    cells = load_experiment("01_a", root).cells
    assert {cell.name: cell.params for cell in cells} == {
        "k1_first_drafts1": {"drafts": 1},
        "k1_first_drafts3": {"drafts": 3},
    }


PARAMETERS = [
    (
        "PeriodicReuse",
        r"'kk' \(did you mean 'k'\?\); .* has k, start, stop, ",
    ),
    ("PeriodicReuse | NoReuse", r"unknown parameter 'kk'.*refresh_reuse$"),
    ("'PeriodicReuse'", r"unknown parameter 'kk'"),
    ("NoReuse", r"unknown parameter 'kk'; its strategy has none"),
    ("Drafting[int] | NoReuse", r"unknown parameter 'kk'; its strategy has drafts, drafter"),
]


@pytest.mark.parametrize(("returns", "error"), PARAMETERS)
def test_a_parameter_that_no_class_has_is_refused_with_those_it_has(
    root: Path, returns: str, error: str
) -> None:
    code = (
        "from fdllm import NoReuse, PeriodicReuse\nfrom fdllm.core.drafting import Drafting\n"
        "def strategy(config) -> {}:\n    return NoReuse()\n"
    )
    make(root, "01_a", code.format(returns))
    study = load_experiment("01_a", root)
    with pytest.raises(UsageError, match=error):
        study.strategy(StrategyConfig(k=2, subset="last", n_layers=12, params={"kk": 3}))


@pytest.mark.parametrize("returns", ["", " -> ReuseStrategy[int]", " -> 'Unknown'"])
def test_what_tells_of_no_class_reads_what_it_likes(root: Path, returns: str) -> None:
    code = (
        "from fdllm import PeriodicReuse, ReuseStrategy\n"
        f"def strategy(config){returns}:\n    return PeriodicReuse(config.params['kk'], 1, 3)\n"
    )
    make(root, "01_a", code)
    config = StrategyConfig(k=2, subset="last", n_layers=12, params={"kk": 3})
    assert load_experiment("01_a", root).strategy(config) == fdllm.PeriodicReuse(3, 1, 3)


def test_root_is_named_or_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FDLLM_ROOT", raising=False)
    assert find_root() == ROOT
    monkeypatch.setenv("FDLLM_ROOT", str(root))
    assert find_root() == root.resolve()
    monkeypatch.setenv("FDLLM_ROOT", str(root / "nowhere"))
    with pytest.raises(UsageError, match="FDLLM_ROOT"):
        find_root()


# --- new ------------------------------------------------------------------------------------------


def test_criteria_are_to_be_stated_anew(root: Path) -> None:
    settings = root / "experiments/00_baseline/experiment.toml"
    more = "[criteria.rival]\nk2_last = 'k2_first'\n[reuse]\nsubset_size = 3\n"
    settings.write_text(settings.read_text() + more)
    new = read_settings(create_experiment("next", root, "00_baseline") / "experiment.toml")
    assert (new.criteria, new.reuse.subset_size) == (None, 3)


def test_new_takes_the_next_number(root: Path) -> None:
    assert create_experiment("adaptive_skip", root).name == "01_adaptive_skip"
    assert create_experiment("05_threshold", root).name == "05_threshold"
    assert create_experiment("next", root).name == "06_next"
    assert list_experiments(root) == ["00_baseline", "01_adaptive_skip", "05_threshold", "06_next"]


def test_new_is_runnable_and_asks_for_a_proposal(root: Path) -> None:
    folder = create_experiment("adaptive_skip", root)
    study = load_experiment("01_adaptive_skip", root)
    assert study.strategy(StrategyConfig(k=2, subset="last", n_layers=12)).reuses
    assert study.settings.experiment.title == "Adaptive skip"
    proposal = (folder / "proposal.md").read_text()
    for word in ("Hypothesis", "Variables", "Success criteria", "01_adaptive_skip"):
        assert word in proposal


def test_new_from_another_copies_code_and_settings_only(root: Path) -> None:
    source = root / "experiments/00_baseline"
    (source / "results.md").write_text("old results")
    (source / "helper.py").write_text("x = 1\n")
    (source / "__pycache__").mkdir(exist_ok=True)
    folder = create_experiment("skip", root, "00_baseline")
    assert (folder / "helper.py").exists()
    assert not (folder / "__pycache__").exists()
    assert (folder / "generation_functions.py").read_text() == (
        source / "generation_functions.py"
    ).read_text()
    assert "old results" not in (folder / "results.md").read_text()
    assert "00_baseline" in (folder / "proposal.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("source", list_experiments(ROOT))
def test_whatever_exists_can_be_begun_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """The same grid, the criteria as comments; and it runs."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.setenv("FDLLM_ROOT", str(tmp_path))
    assert main(["new", "mine", "--from", source]) == 0
    [made] = set(list_experiments(tmp_path)) - set(list_experiments(ROOT))
    old, new = load_experiment(source, tmp_path), load_experiment(made, tmp_path)
    assert new.cells == old.cells
    assert new.settings.criteria is None
    assert "\n# [criteria]\n" in (new.folder / "experiment.toml").read_text()
    assert f"Builds on**: {source}" in (new.folder / "proposal.md").read_text()
    names = list(dict.fromkeys((new.cells[0].name, new.cells[-1].name)))
    asked = ["--experiment", new.name, "--model", "tiny", "--limit", "2", "--task", "tiny_choice"]
    assert main(["sweep", *asked, "--config", *names, "--timing", "0"]) == 0


@pytest.mark.parametrize("name", ["00_baseline", "00_other", "Bad Name", "../x", "", "01_"])
def test_new_refuses_what_exists_or_is_no_name(root: Path, name: str) -> None:
    before = sorted(p.name for p in (root / "experiments").iterdir())
    with pytest.raises(UsageError):
        create_experiment(name, root)
    assert sorted(p.name for p in (root / "experiments").iterdir()) == before


def test_new_from_an_unknown_experiment(root: Path) -> None:
    with pytest.raises(UsageError, match="unknown experiment '07_x'"):
        create_experiment("skip", root, "07_x")


def test_a_wheel_brings_the_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no checkout, an experiment begins in an empty folder."""
    with pytest.raises(UsageError, match="clone the repository"):
        create_experiment("first", tmp_path)
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    ((source, place),) = wheel["force-include"].items()
    assert place == INSTALLED.relative_to(PACKAGE.parent).as_posix()
    assert Path(place).name in vars(identity)["_OUTSIDE"]  # it changes no record
    monkeypatch.setattr("fdllm.experiment.load.INSTALLED", ROOT / source)
    folder = create_experiment("first", tmp_path)
    assert folder == tmp_path / "experiments/00_first"
    assert load_experiment("00_first", tmp_path).cells
