"""From a sweep to its runs, their places, and what identifies them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import fdllm
from fdllm.applicable import repeats
from fdllm.core.config import Estimator
from fdllm.errors import UsageError
from fdllm.plan import State
from fdllm.record.identity import model_identity
from fdllm.record.paths import Layout, TaskFolder, model_slug
from fdllm.runs import Cell, Evaluating, ModelChoice
from fdllm.task_facts import TaskFacts
from helpers import ROOT
from models import random_model, random_prompt
from stubs import make_planner, make_run, make_sweep

# --- runs ---------------------------------------------------------------------------------------


def test_a_sweep_is_tasks_by_the_grid(root: Path) -> None:
    runs = make_planner(root).runs(make_sweep(root, tasks=("tiny_arithmetic", "tiny_choice")))
    assert len(runs) == 18
    assert [run.cell.name for run in runs[:4]] == ["k1_first", "k1_middle", "k1_last", "k2_first"]
    assert runs[9].task == "tiny_choice"


def test_unknown_config_lists_the_grid_and_the_nearest(root: Path) -> None:
    with pytest.raises(UsageError, match=r"'k2_midle' \(did you mean 'k2_middle'\?\).*k3_last"):
        make_planner(root).runs(make_sweep(root, configs=("k2_midle",)))


def test_a_model_of_one_layer_has_no_layer_to_reuse(root: Path) -> None:
    (run, *_) = make_planner(root).runs(make_sweep(root))
    with pytest.raises(UsageError, match=r"config 'k1_first': 'n_layers': .* equal to 2; got 1"):
        make_planner(root).strategy(run, 1)


def test_first_token_runs_once(root: Path) -> None:
    once = Evaluating(scoring="first-token")
    sweep = make_sweep(root, tasks=("tiny_choice", "tiny_arithmetic"), evaluating=once)
    cells = [make_planner(root).state(run) for run in make_planner(root).runs(sweep)]
    assert [c.state for c in cells[:9]] == [State.PENDING] + [State.NOT_APPLICABLE] * 8
    assert cells[1].reason == "one forward, so reuse cannot act; k1_first stands for it"
    assert all(c.state is State.PENDING for c in cells[9:])


def applicable(root: Path, scoring: Estimator, experiment: str, *, letters: bool) -> list[str]:
    """Cells of an experiment of ours that a log-likelihood task would compute."""
    shutil.copytree(ROOT / "experiments", root / "experiments", dirs_exist_ok=True)
    scored = TaskFacts("loglikelihood", "", one_token=letters)
    planner = make_planner(root, lambda _: scored)
    sweep = make_sweep(root, tasks=("choice",), evaluating=Evaluating(scoring=scoring))
    runs = planner.runs(sweep.model_copy(update={"experiment": experiment}))
    cells = [planner.state(run) for run in runs]
    assert {cell.state for cell in cells} <= {State.PENDING, State.NOT_APPLICABLE}
    return [cell.run.cell.name for cell in cells if cell.state is State.PENDING]


NINE = [f"k{k}_{subset}" for k in (1, 2, 3) for subset in ("first", "middle", "last")]
TWINS = ["t0.97", "t0.97_again", "t0.97_once_more"]


@pytest.mark.parametrize(
    ("scoring", "letters", "cells"),
    [
        ("first-token", False, NINE[:1]),
        ("denoise", False, NINE),
        ("denoise", True, NINE),
        ("chain", False, NINE),
        ("chain", True, NINE[:1]),  # a letter is one REFRESH
    ],
)
def test_estimators_of_one_forward_run_once(
    root: Path, scoring: Estimator, letters: bool, cells: list[str]
) -> None:
    assert applicable(root, scoring, "00_baseline", letters=letters) == cells


@pytest.mark.parametrize("scoring", get_args(Estimator))
def test_cells_that_an_estimator_cannot_tell_apart_run_once(root: Path, scoring: Estimator) -> None:
    """No estimator reads the threshold: the baseline of the criteria stands, and its A/A twins."""
    assert applicable(root, scoring, "05_threshold", letters=False) == TWINS


def test_a_block_is_refreshed_once_in_scoring_so_reuse_there_is_no_cell_of_its_own(
    root: Path,
) -> None:
    trim = applicable(root, "denoise", "03_trim", letters=False)
    assert trim == [*NINE[:3], "trim_first", "trim_middle", "trim_last"]


@pytest.mark.parametrize(
    ("scoring", "setting", "read"),
    [
        ("denoise", {"scoring_steps": 3}, True),
        ("chain", {"scoring_steps": 3}, False),
        ("first-token", {"scoring_steps": 3}, False),
        ("first-token", {"end_token": 3}, True),
        ("denoise", {"end_token": 3}, False),
        *(
            (scoring, {"block_size": 8, "small_block_size": 8}, True)
            for scoring in get_args(Estimator)
        ),
        *(
            (scoring, setting, False)
            for scoring in get_args(Estimator)
            for setting in (
                {"small_block_size": 16},
                {"threshold": 0.5},
                {"use_block_cache": False},
                {"max_new_tokens": 9},
                {"temperature": 0.5},
                {"top_p": 0.5},
                {"seed": 1},
            )
        ),
    ],
)
def test_what_an_estimator_reads_changes_a_score_and_nothing_else_does(
    scoring: Estimator, setting: dict[str, Any], read: bool
) -> None:
    """The list of what makes a cell "not applicable", held against the scores themselves."""
    base, other = Cell(name="base"), Cell(name="other", decoding=setting)
    assert bool(repeats(other, [base, other], scoring)) != read
    model = random_model(1)
    pairs = [(random_prompt(i, 5 + i), random_prompt(i, 3)) for i in range(3)]
    plain = fdllm.Decoding(block_size=16, small_block_size=4, stop_token=2)
    values = [
        [score.loglikelihood for score in fdllm.score(model, pairs, scoring, decoding)]
        for decoding in (plain, plain.model_copy(update=setting))
    ]
    assert (values[0] != values[1]) == read


# --- places -------------------------------------------------------------------------------------


def test_layout_is_the_documented_one(root: Path) -> None:
    run = make_run(root, limit=10)
    own = run.model_copy(update={"model": ModelChoice(name="tiny")})
    paths = Layout.of(root).run(own)
    assert paths.summary == (
        root / "results/00_baseline/tiny_arithmetic_limit_10/k2_middle/summary.json"
    )
    assert paths.published.summary == (
        root / "artifacts/00_baseline/tiny_arithmetic_limit_10/k2_middle/summary.json"
    )
    assert paths.logs == root / "logs/00_baseline/tiny_arithmetic_limit_10/k2_middle"


def test_models_never_share_a_place(root: Path, tmp_path: Path) -> None:
    twin = tmp_path / "elsewhere" / "model"
    twin.mkdir(parents=True)
    names = ["tiny", str(root / "model"), str(twin), "org/name", "org/name-2", "a/org--name"]
    run = make_run(root)
    folders = {
        str(TaskFolder.of(run.model_copy(update={"model": ModelChoice(name=name)})))
        for name in names
    }
    assert len(folders) == len(names)
    assert len({model_slug(name) for name in names}) == len(names)


def test_another_results_folder_keeps_everything_inside(root: Path, tmp_path: Path) -> None:
    layout = Layout.of(root, tmp_path / "elsewhere")
    paths = layout.run(make_run(root))
    for path in (paths.folder, paths.artifacts, paths.logs):
        assert path.is_relative_to(tmp_path / "elsewhere")


# --- identity -----------------------------------------------------------------------------------


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x" * (1 << 20))
    choice = ModelChoice(name=str(tmp_path))
    before = model_identity(choice).name
    (entry,) = (tmp_path / "cache/fdllm").glob("*.json")
    (key,) = json.loads(entry.read_text())
    entry.write_text(json.dumps({key: "remembered"}))
    assert model_identity(choice).name != before
    weights.write_bytes(b"y" * (1 << 20))
    os.utime(weights, ns=(1, 1))
    changed = model_identity(choice).name
    assert changed != before
    assert len(json.loads(entry.read_text())) == 2


def test_model_that_is_neither_folder_nor_hub_id() -> None:
    with pytest.raises(UsageError, match="--model takes"):
        model_identity(ModelChoice(name="./nowhere"))


def test_planning_imports_nothing_heavy(root: Path) -> None:
    """Status must answer at once, on a login node too."""
    code = (
        "import sys; from fdllm.cli import main; "
        "code = main(['status', '--model', 'tiny', '--json']); "
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "FDLLM_ROOT": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["pending"] == 18
