"""Records as data frames: columns, types, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import fdllm
from fdllm.errors import FdllmError, UsageError
from fdllm.report.frames import RESULT_COLUMNS, SAMPLE_COLUMNS
from helpers import ROOT
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
    frame = fdllm.results(root=root, pool=True)
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
    assert len(frame) == 4 * NUM_DOCS
    assert frame[METRIC["tiny_choice"]].notna().sum() == 2 * NUM_DOCS
    mean = frame.groupby(["task", "config"]).value.mean()
    assert mean["tiny_choice", "k1_first"] == pytest.approx(2 / 5)


def test_a_folder_of_records_will_do(root: Path) -> None:
    whole = fdllm.results(root=root)
    assert whole.equals(fdllm.results(root=str(root / "results")))


def test_limits_are_chosen(root: Path) -> None:
    assert list(fdllm.results(root=root, limit=3).limit) == [3]
    assert fdllm.samples(root=root).limit.isna().all()
    with pytest.raises(UsageError, match=r"of limit '7'; there are those of limit=3, limit=None"):
        fdllm.results(root=root, limit=7)


def test_what_is_not_there_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    empty = fdllm.results(root=tmp_path)
    assert empty.empty
    assert types(empty) == dict(RESULT_COLUMNS)


@pytest.mark.parametrize(
    ("folder", "changes", "sentence"),
    [
        (
            "00_baseline/tiny_arithmetic@other/k1_first",
            {"model": "other"},
            "records of tiny_arithmetic are of 2 models",
        ),
        (
            "01_example/tiny_arithmetic/k1_first",
            {"experiment": "01_example"},
            "has 2 experiments (00_baseline, 01_example)",
        ),
    ],
)
def test_nothing_is_pooled_unasked(
    root: Path, tmp_path: Path, folder: str, changes: dict[str, Any], sentence: str
) -> None:
    (first,) = (root / "results").glob("00_baseline/tiny_arithmetic@*/k1_first")
    copy, (name, other) = tmp_path / "copy", next(iter(changes.items()))
    shutil.copytree(root / "results", copy / "results")
    shutil.copytree(first, copy / "results" / folder)
    summary = copy / "results" / folder / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | changes))
    for read in (fdllm.results, fdllm.samples):
        with pytest.raises(UsageError, match=re.escape(sentence)) as caught:
            read(root=copy)
        assert f"{name}=..." in str(caught.value)
        assert "pool=True" in str(caught.value)
        assert set(read(root=copy, **{name: other})[name]) == {other}
        assert other in set(read(root=copy, pool=True)[name])


def test_presets_are_chosen(root: Path, tmp_path: Path) -> None:
    (first,) = (root / "results").glob("00_baseline/tiny_arithmetic@*")
    at = tmp_path / "results/00_baseline"
    shutil.copytree(first, at / first.name)
    shutil.copytree(first / "k1_first", at / "tiny_arithmetic+mine" / "k1_first")
    assert len(fdllm.results(root=tmp_path)) == 2
    [folder] = fdllm.results(root=tmp_path, preset="mine").folder
    assert Path(folder).parent.name == "tiny_arithmetic+mine"


@pytest.mark.parametrize("page", ["README.md", "docs/records.md"])
def test_the_example_gives_a_configs_mean(
    page: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a smoke test whose rows would move it."""
    monkeypatch.setenv("FDLLM_ROOT", str(root))
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (example,) = (block for block in blocks if "fdllm.samples(" in block)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - our own page
    means = names["samples"].groupby("config").value.mean()
    cells = fdllm.results("00_baseline", "tiny_arithmetic", root).set_index("config")
    assert means.to_dict() == pytest.approx(cells.value.to_dict())


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
