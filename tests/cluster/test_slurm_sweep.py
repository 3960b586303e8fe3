"""The nine configs of the baseline through a real SLURM, on the model that ships with the package.

The same tests run in the plain environment and in the image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.checkout import BASELINE, DONE, GRID, Checkout
from cluster.slurm import Slurm, wait_until


@pytest.fixture(scope="module")
def local(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The same sweep in one process, without SLURM."""
    place = tmp_path_factory.mktemp("local") / "root"
    checkout = Checkout(place, slurm, executor=("--executor", "local"))
    checkout.sweep(experiment=BASELINE)
    return checkout


@pytest.fixture(scope="module")
def swept(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The nine configs, submitted."""
    checkout = Checkout(tmp_path_factory.mktemp("swept") / "root", slurm)
    checkout.sweep(experiment=BASELINE)
    assert set(checkout.states(BASELINE).values()) <= {"queued", "running", "done"}
    assert len(slurm.queue()) > 0
    checkout.settle(BASELINE)
    return checkout


def test_nine_done_cells_from_one_array(swept: Checkout) -> None:
    assert swept.states(BASELINE) == DONE
    assert swept.submitted() == 1
    jobs = set()
    for config in GRID:
        summary = json.loads((swept.folder(config, BASELINE) / "summary.json").read_text())
        (session,) = summary["provenance"]["sessions"]
        jobs.add(session["slurm_job_id"])
        place = (
            swept.root / "logs" / swept.folder(config, BASELINE).relative_to(swept.root / "results")
        )
        assert len(list(place.glob("slurm_*.log"))) == 1, config
    assert len(jobs) == 9, "each array task has a job of its own"


def test_the_records_are_those_of_a_local_sweep(swept: Checkout, local: Checkout) -> None:
    for config in GRID:
        assert swept.record(config, BASELINE) == local.record(config, BASELINE)


def test_submitting_again_submits_nothing(swept: Checkout) -> None:
    before = swept.submitted()
    assert "nothing to do" in swept.sweep(experiment=BASELINE)
    assert not swept.slurm.queue()
    assert swept.submitted() == before


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """Put a file back as it was."""
    kept = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(kept)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("config", "spoil", "says"),
    [("k2_first", Path.unlink, "record"), ("k3_last", cut, "summary.json")],
)
def test_a_summary_that_is_gone_or_cut_is_made_again_from_what_was_kept(
    swept: Checkout, config: str, spoil: Callable[[Path], None], says: str
) -> None:
    summary = swept.folder(config, BASELINE) / "summary.json"
    before = swept.record(config, BASELINE)
    spoil(summary)
    cells = swept.cells(BASELINE)
    assert {name for name, cell in cells.items() if cell["state"] != "done"} == {config}
    assert summary.exists() == (cells[config]["state"] == "invalid")
    assert says in cells[config]["reason"]
    swept.sweep(experiment=BASELINE)
    assert len(swept.slurm.queue()) <= 1
    swept.settle(BASELINE)
    assert swept.record(config, BASELINE) == before
    assert len(swept.lives(config, BASELINE)) == 1 or spoil is cut, "nothing was computed again"


def test_a_timing_study_is_a_job_of_its_own(swept: Checkout) -> None:
    """Here behind records that stand; behind an array see tests/test_cluster_submission.py."""
    said = swept.sweep("--timing", "6", "--config", "k2_last", experiment=BASELINE)
    assert "the timing study" in said
    again = swept.sweep("--timing", "6", "--config", "k2_last", experiment=BASELINE)
    assert "nothing to do" in again
    wait_until(lambda: not swept.slurm.queue(), 120, swept.logs)
    told = swept.fdllm("status", *swept.chosen(BASELINE))
    assert "timing: done, 6 documents" in told
    (path,) = swept.root.glob(f"results/{BASELINE}/*/timing/study.json")
    found = json.loads(path.read_text())["configs"]
    assert {name: one["agrees"]["equal"] for name, one in found.items()} == dict.fromkeys(GRID, 6)


def test_edited_code_is_stale_and_the_file_is_named(swept: Checkout) -> None:
    code = swept.root / "experiments" / BASELINE / "generation_functions.py"
    with restored(code):
        code.write_text(code.read_text() + "\nNEW = 1\n")
        cells = swept.cells(BASELINE)
        assert {cell["state"] for cell in cells.values()} == {"stale"}
        for cell in cells.values():
            assert f"experiments/{BASELINE}/generation_functions.py" in cell["reason"]
    assert swept.states(BASELINE) == DONE


def test_status_joins_the_queue(checkout: Checkout) -> None:
    checkout.hold()
    checkout.sweep("--max-jobs", "1")
    checkout.await_held()
    (job,) = checkout.slurm.running()
    cells = checkout.cells()
    (running,) = [cell for cell in cells.values() if cell["state"] == "running"]
    (queued,) = [cell for cell in cells.values() if cell["state"] == "queued"]
    assert running["job"]["job_id"] == job
    assert running["job"]["node"] == os.uname().nodename
    assert 2 <= running["done"] < running["total"] == 10
    assert queued["job"]["job_id"].split("_")[0] == job.split("_")[0]
    text = checkout.fdllm("status", *checkout.chosen("90_slow"))
    assert job in text
    assert f"{running['done']} of 10" in text
    assert "nothing to do" in checkout.sweep(), "what is queued or runs is not submitted again"
    assert len(checkout.slurm.queue()) == 2
    checkout.release()
    wait_until(lambda: not checkout.slurm.queue(), 120, checkout.logs)
    assert set(checkout.states().values()) == {"done"}
