"""What editors, notebooks and file systems leave beside code is none of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fdllm import tiny
from fdllm.errors import FdllmError
from fdllm.evaluate.tasks import definition_hash
from fdllm.experiment import create_experiment, list_experiments, load_experiment
from fdllm.record import identity
from fdllm.record.identity import PACKAGE, source_hashes
from fdllm.release.files import copy_pages
from helpers import ROOT

HIDDEN = (
    "._{}",
    ".#{}",
    ".nfs0000000012345678{}",
    ".{}.swp",
    "{}~",
    "#{}#",
    ".ipynb_checkpoints/{}",
    "__pycache__/{}",
)
NEW = (("next", None), ("last", "00_baseline"))


def litter(folder: Path, *names: str) -> None:
    """Leave all of it beside files of these names; an editor's lock is a link to nowhere."""
    for name in names:
        for pattern in HIDDEN:
            path = folder / pattern.format(name)
            path.parent.mkdir(exist_ok=True)
            if path.name.startswith(".#"):
                path.symlink_to("someone@login1.4242:1764000000")
            else:
                path.write_bytes(b"\x00\x05\x16\x07\xff")


def test_an_experiment_stays_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "experiments"
    for name in ("00_baseline", "_template"):
        shutil.copytree(ROOT / "experiments" / name, folder / name)
    before = load_experiment("00_baseline", tmp_path).code
    litter(folder, "01_other", "generation_functions.py")
    for name in ("00_baseline", "_template"):
        litter(folder / name, "generation_functions.py", "experiment.toml")
    assert load_experiment("00_baseline", tmp_path).code == before
    assert list_experiments(tmp_path) == ["00_baseline"]
    copy_pages(folder / "00_baseline", tmp_path / "release", {})
    made = [create_experiment(name, tmp_path, source) for name, source in NEW]
    for place in (*made, tmp_path / "release"):
        names = {path.name for path in place.iterdir()} - {"__pycache__"}
        assert names == {
            *("experiment.toml", "generation_functions.py"),
            *("proposal.md", "results.md", "tasks.md"),
        }


def test_no_record_is_stale_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fdllm"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("weights"))
    monkeypatch.setattr(identity, "PACKAGE", package)
    monkeypatch.setattr(tiny, "TASKS", package / "tiny/tasks")

    def hashes() -> tuple[dict[str, str], list[str]]:
        return source_hashes.__wrapped__(), [definition_hash(name) for name in tiny.TASK_NAMES]

    before = hashes()
    litter(package / "core", "engine.py")
    litter(package / "fast", "kernels.c")
    litter(package / "tiny/tasks", "tiny_choice.yaml", "rows.py")
    assert hashes() == before


def test_code_that_is_a_link_to_nowhere_is_named_with_its_target(tmp_path: Path) -> None:
    place = tmp_path / "experiments/00_baseline"
    shutil.copytree(ROOT / "experiments/00_baseline", place)
    (place / "helper.py").symlink_to("/scratch/gone/helper.py")
    with pytest.raises(FdllmError, match=r"helper\.py is no file, a link to /scratch/gone/helper"):
        _ = load_experiment("00_baseline", tmp_path).code
