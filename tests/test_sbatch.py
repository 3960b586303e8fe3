"""The scripts of ``sbatch/``: every command line of their manual does what it says there."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fdllm.cli import main
from fdllm.evaluate.tasks import TASKS
from fdllm.experiment import load_experiment
from fdllm.presets.reader import load_preset
from helpers import ROOT, a_shell_reads

SCRIPTS = sorted((ROOT / "sbatch").glob("*.sh"))
# As the manual prints them, and what it says of each.
MANUAL = {
    "bash sbatch/run.sh --status": "0 of 9 done",
    "bash sbatch/run.sh --limit 10": "would run 9 of 9",
    "bash sbatch/run.sh": "gsm8k / k3_last: not run yet",
    "bash sbatch/run.sh --experiment 01_adaptive_skip": "01_adaptive_skip / gsm8k",
    "bash sbatch/run.sh --experiment 01_adaptive_skip --limit 10": "(limit 10)",
    "bash sbatch/run.sh --task mmlu": "would run 9 of 9",
    "bash sbatch/run.sh --task mmlu --limit 10": "mmlu (limit 10) / k1_first",
    "bash sbatch/run.sh --dry-run": "nothing was run",
    "bash sbatch/run.sh --force": "k2_middle: forced",
    "bash sbatch/run.sh --force k2_middle": "gsm8k / k2_middle: forced",
    "bash sbatch/run.sh --task mmlu --force k1_first k2_middle k3_last": "would run 3 of 3",
    "bash sbatch/run.sh --status --experiment 01_adaptive_skip": "01_adaptive_skip / gsm8k",
    "sbatch sbatch/baseline.sh --task gsm8k": "gsm8k (preset published) / k1_first: not run yet",
    "sbatch sbatch/baseline.sh --task gsm8k --limit 10": "would run 1 of 1",
    "sbatch sbatch/baseline.sh": "00_baseline / ifeval (preset published) / k1_first",
    "bash sbatch/local.sh --task gsm8k --limit 10": "would run 9 of 9",
}


def bash(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def asked(command: str, folder: Path, **environment: str) -> list[str]:
    """What a command line of the manual asks of ``fdllm``; ``sbatch`` runs a copy, as SLURM's."""
    (folder / "bin").mkdir()
    fake = folder / "bin" / "fdllm"
    fake.write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" >'{folder}/asked'\n")
    fake.chmod(0o755)
    how, script, *arguments = shlex.split(command)
    if how == "sbatch":
        copy = folder / "spool"
        copy.mkdir()
        script = str(shutil.copy(ROOT / script, copy / "slurm_script"))
        environment |= {"SLURM_SUBMIT_DIR": str(ROOT)}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = bash(script, *arguments, PATH=path, **environment)
    assert done.returncode == 0, done.stderr
    return (folder / "asked").read_text().splitlines()


@pytest.fixture(autouse=True)
def _no_model_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FDLLM_MODEL", raising=False)


@pytest.mark.parametrize("command", MANUAL)
def test_the_manual(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = asked(command, tmp_path)
    look = [] if {"--status", "--dry-run"} & set(arguments) else ["--dry-run"]
    results = ["--results", str(tmp_path / "results")]
    assert main([*arguments, *look, *results]) == 0
    assert MANUAL[command] in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_the_help_names_every_task_and_config(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "fdllm").write_text('#!/bin/bash\necho "flags of $*"\n')
    (tmp_path / "bin" / "fdllm").chmod(0o755)
    done = bash("sbatch/run.sh", "--help", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 0
    words = set(done.stdout.split())
    assert set(TASKS) <= words
    assert {cell.name for cell in load_experiment("00_baseline", ROOT).cells} <= words
    assert "flags of sweep --task gsm8k --help" in done.stdout


def test_the_baseline_is_what_its_manual_says() -> None:
    experiment, preset = load_experiment("00_baseline", ROOT), load_preset("published")
    decoding = experiment.decoding(experiment.cell("k1_first"), 512, preset, "gsm8k")
    assert (decoding.threshold, decoding.use_block_cache) == (1.0, False)
    assert experiment.cell("k1_first").k == 1


def test_local_stays_here(tmp_path: Path) -> None:
    assert asked("bash sbatch/local.sh --task gsm8k", tmp_path) == [
        *("sweep", "--executor", "local", "--task", "gsm8k")
    ]


def test_without_a_task_it_is_gsm8k_unless_a_model_is_named(tmp_path: Path) -> None:
    for number, (more, environment, task) in enumerate(
        [
            ("", {}, ["--task", "gsm8k"]),
            ("--model tiny", {}, []),
            ("--task=mmlu", {}, []),
            ("", {"FDLLM_MODEL": "tiny"}, []),
        ]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        found = asked(f"bash sbatch/run.sh {more}", place, **environment)
        assert found == ["sweep", *task, *more.split()]


def test_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    command = """bash sbatch/run.sh --results "a b'c" --task 'x*' ''"""
    assert asked(command, tmp_path) == ["sweep", "--results", "a b'c", "--task", "x*", ""]


def test_submitted_from_elsewhere_it_says_where_to(tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "sbatch" / "baseline.sh", tmp_path / "slurm_script")
    done = bash(script, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "submit it from the checkout" in done.stderr


def test_without_fdllm_it_says_how_to_get_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sbatch", tmp_path / "sbatch")
    done = bash(str(tmp_path / "sbatch" / "run.sh"), PATH="/usr/bin:/bin")
    assert done.returncode == 2
    assert "nox -s validate" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_reads_it(script: Path) -> None:
    assert len(SCRIPTS) == 4
    assert os.access(script, os.X_OK)
    a_shell_reads(script)
