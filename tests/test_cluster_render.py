"""Job scripts: their whole text, what shells make of it, and what it does.

``python tests/test_cluster_render.py`` writes the texts of ``tests/scripts`` anew.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fdllm.cluster.cluster_config import ClusterConfig, Resources
from fdllm.cluster.render import ENDED_EARLY, PASSED_ON, Script, render
from helpers import a_shell_reads

GOLDEN = Path(__file__).parent / "scripts"
HOSTILE = "/data/a b'c\"d/$(touch x)/`id`/%A;é*"
PLAIN = Script(
    cluster=ClusterConfig(),
    name="fdllm-00_baseline-gsm8k",
    resources=Resources(gres="gpu:1", cpus=4),
    logs={0: Path("/lab/logs/k1_first"), 1: Path("/lab/logs/k2_middle")},
    ended=Path("/lab/logs/submissions/s/ended"),
    workdir=Path("/lab"),
    command=["/venv/bin/python", "-P", "-m", "fdllm.cli", "job", "/lab/map.json"],
    environment={"FDLLM_ROOT": "/lab", "HF_HUB_OFFLINE": "1"},
)
FULL = Script(
    cluster=ClusterConfig(
        image=Path(HOSTILE, "f.sif"), max_jobs=4, warn_s=60, setup=("module load apptainer",)
    ),
    name="fdllm 00/$(x)",
    resources=Resources(
        partition="gpu,long",
        account="lab@uni",
        qos="high",
        gres="gpu:a100:1",
        cpus=8,
        memory_gb=64,
        time_min=90,
        constraint="a100&ib",
        extra=("--exclude=node[7-9]", "--mail-type=END"),
    ),
    logs={3: Path(HOSTILE, "k1_first")},
    ended=Path(HOSTILE, "ended"),
    workdir=Path(HOSTILE),
    command=["apptainer", "exec", "--bind", HOSTILE, f"{HOSTILE}/f.sif", "fdllm", "job", HOSTILE],
    environment={"FDLLM_ROOT": HOSTILE},
)
SCRIPTS = {"plain": PLAIN, "full": FULL}


@dataclass(frozen=True)
class Stage:
    """A machine on which a script is played: no SLURM, but commands of its names.

    Attributes:
        folder: with hostile characters in its name.
    """

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def command(self, name: str, text: str) -> None:
        self.bin.mkdir(exist_ok=True)
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def script(self, script: Script) -> Path:
        path = self.folder / "job.sh"
        path.write_text(render(script))
        return path

    def start(self, script: Script, **more: str) -> subprocess.Popen[bytes]:
        own = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SLURM_ARRAY_TASK_ID": "1",
            "SLURM_ARRAY_JOB_ID": "12",
            "SLURM_JOB_ID": "14",
        }
        return subprocess.Popen(["bash", self.script(script)], env=os.environ | own | more)

    def play(self, script: Script, **more: str) -> int:
        return self.start(script, **more).wait(timeout=30)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    folder = tmp_path / "a b'c\"d $(touch x) `id` %A;é"
    folder.mkdir()
    stage = Stage(folder)
    stage.command("srun", f"printf '%s\\n' \"$@\" >'{tmp_path}/asked'; exit \"${{STATUS:-0}}\"")
    stage.command("scontrol", f"echo \"$@\" >>'{tmp_path}/scontrol'")
    return stage


def here(stage: Stage) -> Script:
    return replace(
        PLAIN,
        logs={1: stage.folder / "logs"},
        ended=stage.folder / "ended",
        workdir=stage.folder,
        command=["python", str(stage.folder / "map.json")],
        environment={"FDLLM_ROOT": str(stage.folder)},
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_whole_text(name: str) -> None:
    assert render(SCRIPTS[name]) == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_shell_reads_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    path.write_text(render(SCRIPTS[name]))
    a_shell_reads(path)


def test_nothing_of_a_path_stands_where_slurm_reads() -> None:
    options = [line for line in render(FULL).splitlines() if line.startswith("#SBATCH")]
    assert not any("/" in line or "$" in line for line in options)
    assert "#SBATCH --job-name=fdllm-00---x-" in options
    assert "#SBATCH --array=3%4" in options


def test_no_token_stands_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in render(FULL)
    assert "HF_TOKEN" in render(FULL)
    assert "HF_TOKEN" not in render(PLAIN)


def test_it_runs_and_logs_beside_its_run(stage: Stage, tmp_path: Path) -> None:
    assert stage.play(here(stage)) == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-3:] == ["python", str(stage.folder / "map.json"), "1"]
    assert "ended with 0" in stage.read("logs/slurm_12_1.log")
    assert stage.read("ended/1").split()[:3] == ["12_1", "0", "0"]
    assert not list(stage.folder.glob("x")), "a path was executed"
    assert not (tmp_path / "scontrol").exists()


def test_a_second_life_appends(stage: Stage) -> None:
    stage.play(here(stage))
    stage.play(here(stage), SLURM_RESTART_COUNT="1", STATUS="3")
    assert stage.read("logs/slurm_12_1.log").count("== job") == 2
    assert [line.split()[1:3] for line in stage.read("ended/1").splitlines()] == [
        ["0", "0"],
        ["1", "3"],
    ]


def test_the_setup_of_the_site_comes_first(stage: Stage, tmp_path: Path) -> None:
    script = replace(here(stage), cluster=ClusterConfig(setup=("export STATUS=4",)))
    assert stage.play(script) == 4
    assert (tmp_path / "asked").exists()
    failing = replace(here(stage), cluster=ClusterConfig(setup=("no-such-module load x",)))
    (tmp_path / "asked").unlink()
    assert stage.play(failing) == 127
    assert not (tmp_path / "asked").exists()
    assert "no-such-module" in stage.read("logs/slurm_12_1.log")


def test_ended_early_is_requeued(stage: Stage, tmp_path: Path) -> None:
    assert stage.play(here(stage), STATUS=str(ENDED_EARLY)) == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 14\n"


def test_ended_early_and_not_requeued_is_said(stage: Stage) -> None:
    stage.command("scontrol", "exit 1")
    assert stage.play(here(stage), STATUS=str(ENDED_EARLY)) == ENDED_EARLY
    assert "could not be requeued" in stage.read("logs/slurm_12_1.log")


def test_a_failure_is_not_requeued(stage: Stage, tmp_path: Path) -> None:
    assert stage.play(here(stage), STATUS="1") == 1
    assert not (tmp_path / "scontrol").exists()


def test_the_warning_reaches_the_step(stage: Stage, tmp_path: Path) -> None:
    stage.command(
        "srun",
        f"trap 'exit 9' USR1\ntouch '{tmp_path}/ready'\n"
        f"while [ ! -e ended/1.warned-0 ]; do sleep 0.05; done\nexit {ENDED_EARLY}",
    )
    job = stage.start(here(stage))
    _await(tmp_path / "ready")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 14\n"


def test_after_sigterm_it_stays_until_the_step_has_ended(stage: Stage, tmp_path: Path) -> None:
    stage.command(
        "srun",
        f"touch '{tmp_path}/ready'\nwhile [ ! -e '{tmp_path}/end' ]; do sleep 0.05; done\nexit 143",
    )
    job = stage.start(here(stage))
    _await(tmp_path / "ready")
    job.send_signal(signal.SIGTERM)
    log = stage.folder / "logs" / "slurm_12_1.log"
    _await_text(log, "== SIGTERM")
    assert job.poll() is None
    (tmp_path / "end").touch()
    assert job.wait(timeout=30) == 143
    assert stage.read("ended/1").split()[2] == "143"


@pytest.mark.parametrize(
    ("program", "prefixes"),
    [
        ("apptainer", ["APPTAINERENV_"]),
        ("singularity", ["SINGULARITYENV_"]),
        ("/opt/singularity-ce/4.1/bin/singularity", ["SINGULARITYENV_"]),
        ("/opt/site/run-image", ["APPTAINERENV_", "SINGULARITYENV_"]),
    ],
)
def test_the_token_goes_in_by_environment_alone(
    stage: Stage, tmp_path: Path, program: str, prefixes: list[str]
) -> None:
    stage.command("srun", f"printenv >'{tmp_path}/environment'; echo \"$@\" >'{tmp_path}/asked'")
    script = replace(here(stage), cluster=ClusterConfig(image=Path("f.sif"), apptainer=program))
    assert stage.play(script, HF_TOKEN="hf_secret") == 0  # noqa: S106 - of no account
    environment = (tmp_path / "environment").read_text().splitlines()
    for name, value in (("HF_TOKEN", "hf_secret"), ("FDLLM_ROOT", stage.folder)):
        found = {line for line in environment if f"ENV_{name}=" in line}
        assert found == {f"{prefix}{name}={value}" for prefix in prefixes}
    assert f"{prefixes[0]}SLURM_JOB_ID=14" in environment
    assert not any("ENV_HF_HOME" in line for line in environment)
    assert "hf_secret" not in (tmp_path / "asked").read_text()
    texts = [p.read_text() for p in stage.folder.rglob("*") if p.is_file()]
    assert not any("hf_secret" in text for text in texts)
    assert "HF_TOKEN" in PASSED_ON


def _await(path: Path) -> None:
    _await_text(path, "")


def _await_text(path: Path, text: str) -> None:
    end = time.monotonic() + 30
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, f"{path} does not say {text!r}"
        time.sleep(0.02)


if __name__ == "__main__":
    for title, one in SCRIPTS.items():
        (GOLDEN / f"{title}.sh").write_text(render(one))
