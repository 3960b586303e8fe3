"""The scripts of ``sbatch/`` as their manual has them, in front of a real SLURM, check-up included.

The manual's benchmarks need a model of 15 GB; the task and model that ship with the package stand
in, everything else is as printed.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from cluster.checkout import FDLLM, LIMIT, TASK, Checkout
from cluster.slurm import Slurm
from helpers import ROOT

CONFIG = "k2_middle"
SMALL = ("--task", TASK, "--limit", str(LIMIT), "--config", CONFIG)


@pytest.fixture(scope="module")
def site(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with the scripts, as a person has it; `fdllm` is on the PATH."""
    root = tmp_path_factory.mktemp("site") / "fdllm"
    path = f"{FDLLM.parent}:/usr/local/bin:/usr/bin:/bin"
    checkout = Checkout(root, slurm, environment={"PATH": path})
    shutil.copytree(ROOT / "sbatch", root / "sbatch")
    shutil.copy(ROOT / "requirements.lock", root)
    return checkout


def type_in(site: Checkout, *words: str) -> str:
    """What a command line prints, both streams."""
    done = subprocess.run(
        words,
        cwd=site.root,
        env={name: v for name, v in site.variables().items() if name != "FDLLM_ROOT"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, f"$ {' '.join(words)}\n{done.stdout}"
    return done.stdout


def test_run_sh(site: Checkout) -> None:
    assert "--experiment" in type_in(site, "bash", "sbatch/run.sh", "--help")
    assert "pending" in type_in(site, "bash", "sbatch/run.sh", "--status", *SMALL)
    dry = type_in(site, "bash", "sbatch/run.sh", "--dry-run", *SMALL)
    assert "#SBATCH --array=0" in dry
    assert not site.slurm.queue()
    said = type_in(site, "bash", "sbatch/run.sh", *SMALL)
    assert "executor: slurm (sbatch is there" in said
    site.slurm.end_of_queue()
    assert "1 of 1 done" in type_in(site, "bash", "sbatch/run.sh", "--status", *SMALL), site.logs()
    assert "nothing to do" in type_in(site, "bash", "sbatch/run.sh", *SMALL)


def test_force_computes_it_again_and_keeps_the_old_record(site: Checkout) -> None:
    folder = site.folder(CONFIG, "00_baseline")
    small = ("--task", TASK, "--limit", str(LIMIT))
    before = (folder / "summary.json").read_bytes()
    type_in(site, "bash", "sbatch/run.sh", *small, "--force", CONFIG)
    site.slurm.end_of_queue()
    assert site.states("00_baseline")[CONFIG] == "done", site.logs()
    assert (folder / "summary.json").read_bytes() != before
    kept = list(folder.parent.glob(f".superseded/{CONFIG}-*/summary.json"))
    assert [path.read_bytes() for path in kept] == [before]


def test_baseline_sh_through_sbatch(site: Checkout) -> None:
    type_in(site, "sbatch", "sbatch/baseline.sh", "--task", TASK, "--limit", str(LIMIT))
    site.slurm.end_of_queue()
    summaries = list(site.root.glob("results/00_baseline/*+published*/k1_first/summary.json"))
    log = "\n".join(path.read_text() for path in site.root.glob("slurm_baseline_*.log"))
    assert len(summaries) == 1, log + site.logs()


def test_local_sh(site: Checkout) -> None:
    said = type_in(site, "bash", "sbatch/local.sh", "--results", "elsewhere", *SMALL)
    assert "1 of 1 done" in said
    assert not site.slurm.queue()
    assert list((site.root / "elsewhere").glob(f"00_baseline/*/{CONFIG}/summary.json"))
