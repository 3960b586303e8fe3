"""The scripts of this folder's SLURM do what their help says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cluster.slurm import REQUIRE, SCRIPT, Slurm, own_cluster, require_or_skip, wait_until


def test_the_script_explains_itself_and_refuses_what_it_does_not_know() -> None:
    told = subprocess.run(
        ["bash", str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    )
    assert "export SLURM_CONF=" in told.stdout
    for wrong in ([], ["restart"], ["start", "--prot", "1"], ["start", "--port"]):
        done = subprocess.run(["bash", str(SCRIPT), *wrong], capture_output=True, check=False)
        assert done.returncode == 2
        assert b"usage:" in done.stderr


def test_an_array_runs_and_its_throttle_holds(slurm: Slurm, tmp_path: Path) -> None:
    job = tmp_path / "job.sh"
    job.write_text(
        "#!/bin/bash\nsrun --quiet true && echo began; sleep 0.5; "
        f"squeue --noheader --states=RUNNING | wc -l >>'{tmp_path}/at-once'\n"
    )
    said = slurm.ask("sbatch", "--array=0-2%1", f"--output={tmp_path}/%A_%a.log", str(job))
    number = said.split()[-1]
    assert set(slurm.queue()) == {f"{number}_{index}" for index in range(3)}
    slurm.end_of_queue()
    assert (tmp_path / "at-once").read_text().split() == ["1"] * 3
    for index in range(3):
        assert "began" in (tmp_path / f"{number}_{index}.log").read_text()


def test_two_clusters_side_by_side(slurm: Slurm) -> None:
    with own_cluster() as other:
        other.ask("sbatch", "--output=/dev/null", "--wrap", "sleep 60")
        wait_until(other.running, 30, lambda: other.ask("squeue", "-l"))
        assert slurm.queue() == {}
        daemons = [int(path.read_text()) for path in other.folder.glob("*.pid")]
        assert len(daemons) == 3
    assert not [pid for pid in daemons if Path(f"/proc/{pid}").exists()]
    assert slurm.queue() == {}, "the other one still answers"


def test_the_queue_survives_slurmctld(slurm: Slurm) -> None:
    slurm.ask("sbatch", "--output=/dev/null", "--wrap", "sleep 60")
    wait_until(slurm.running, 30, lambda: slurm.ask("squeue", "-l"))
    before = slurm.queue()
    slurm.stop_controller()
    slurm.start()
    assert slurm.queue() == before
    slurm.ask("scancel", *before)
    slurm.end_of_queue()


def test_without_a_cluster_it_is_skipped_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no SLURM"):
        require_or_skip("no SLURM")
    monkeypatch.setenv(REQUIRE, "1")
    with pytest.raises(pytest.fail.Exception, match="forbids skipping"):
        require_or_skip("no SLURM")
