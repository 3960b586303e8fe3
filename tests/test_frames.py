"""Records as data frames: columns, types, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import fdllm
from fdllm.errors import FdllmError, UsageError
from fdllm.report.frames import RESULT_COLUMNS, SAMPLE_COLUMNS
from stubs import METRIC, NUM_DOCS, NUM_LAYERS, do_sweep, make_root, make_sweep

CONFIGS = ("k1_first", "k2_middle")
TASKS = ("tiny_arithmetic", "tiny_choice")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_root(tmp_path_factory.mktemp("frames"))
    do_sweep(folder, make_sweep(folder, tasks=TASKS, configs=CONFIGS))
    do_sweep(folder, make_sweep(folder, tasks=TASKS[:1], configs=CONFIGS[:1], limit=3))
    return folder


def types(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(kind) for name, kind in frame.dtypes.items()}


def test_one_row_a_cell(root: Path) -> None:
    frame = fdllm.results(root=root)
    assert types(frame) == dict(RESULT_COLUMNS)
    assert len(frame) == 5
    assert frame["limit"].isna().sum() == 4
    cell = frame[
        (frame.task == "tiny_arithmetic") & (frame.config == "k2_middle") & frame.limit.isna()
    ].iloc[0]
    assert (cell.k, cell.subset, cell.n_layers) == (2, "middle", NUM_LAYERS)
    assert cell.metric == METRIC["tiny_arithmetic"]
    assert cell.num_samples == NUM_DOCS
    assert cell.value == cell.num_correct / cell.num_samples
    assert cell.reused > 0
    assert cell.saved_share == cell.reused / (cell.computed + cell.reused)
    assert pd.isna(cell.estimator)
    assert pd.isna(cell.scored_tokens)
    assert Path(cell.folder).is_dir()


def test_scores_have_their_own_columns(root: Path) -> None:
    frame = fdllm.results("00_baseline", "tiny_choice", root=root)
    assert set(frame.estimator) == {"denoise"}
    assert frame.tokens.isna().all()
    assert (frame.scored_tokens > 0).all()
    assert frame.truncation_rate.isna().all()


def test_one_row_a_sample(root: Path) -> None:
    frame = fdllm.samples(root=root, task="tiny_choice", config="k2_middle")
    assert types(frame) == {**SAMPLE_COLUMNS, METRIC["tiny_choice"]: "float64"}
    assert list(frame.doc_id) == list(range(NUM_DOCS))
    assert (frame.value == frame[METRIC["tiny_choice"]]).all()
    assert isinstance(frame.output[0], list)
    assert frame.forwards.gt(0).all()
    assert frame.reused.gt(0).all()


def test_samples_of_several_tasks(root: Path) -> None:
    frame = fdllm.samples(root=root)
    assert len(frame) == 5 * NUM_DOCS
    assert frame[METRIC["tiny_choice"]].notna().sum() == 2 * NUM_DOCS
    mean = frame.groupby(["task", "config"]).value.mean()
    assert mean["tiny_choice", "k1_first"] == pytest.approx(2 / 5)


def test_a_folder_of_records_will_do(root: Path) -> None:
    whole = fdllm.results(root=root)
    assert whole.equals(fdllm.results(root=str(root / "results")))


def test_limits_are_chosen(root: Path) -> None:
    assert list(fdllm.results(root=root, limit=3).limit) == [3]
    empty = fdllm.results(root=root, limit=7)
    assert empty.empty
    assert types(empty) == dict(RESULT_COLUMNS)


def test_names_that_are_not_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="00_baseline"):
        fdllm.results("00_baselin", root=root)
    with pytest.raises(UsageError, match="there are tiny_arithmetic, tiny_choice"):
        fdllm.results(task="gsm8k", root=root)
    with pytest.raises(UsageError, match="no record of config 'k3_last'"):
        fdllm.samples(config="k3_last", root=root)
    with pytest.raises(UsageError, match="no records in"):
        fdllm.results(root=tmp_path / "nowhere")


def test_broken_records_are_errors(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    place = copy / "results/00_baseline/tiny_choice@x/k1_first"
    place.mkdir(parents=True)
    (place / "summary.json").write_text("{}")
    with pytest.raises(FdllmError, match="summary.json"):
        fdllm.results(root=copy)
