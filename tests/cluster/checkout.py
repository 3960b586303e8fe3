"""A checkout of its own for each test, the command in it, and what its runs have left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.slurm import Slurm, wait_until
from helpers import ROOT

FDLLM = Path(sys.executable).parent / "fdllm"
BASELINE = "00_baseline"
GRID = tuple(f"k{k}_{subset}" for k in (1, 2, 3) for subset in ("first", "middle", "last"))
DONE = dict.fromkeys(GRID, "done")
SLOW = "90_slow"
TASK = "tiny_arithmetic"
LIMIT = 10
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# A model that a test can stop in the middle of a sample: what is written into the files `pause`
# and `hold` is no part of the code, so that a slowed run has the same fingerprint as a fast one.
SLOW_CODE = '''\
"""The baseline, with a brake that a test can pull, and a note of each block that is begun."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import LayerPlan
from fdllm.core.reuse import PeriodicReuse
from fdllm.core.schedule import Step

ROOT = Path(__file__).parents[2]
BEGUN = []


@dataclass(frozen=True)
class Slow(PeriodicReuse):
    """As PeriodicReuse."""

    def init(self, n_layers: int) -> int:
        """A block begins."""
        BEGUN.append(0)
        with (ROOT / f"begun-k{self.k}").open("a") as file:
            file.write(f"{os.getpid()}\\\\n")
        return super().init(n_layers)

    def plan(self, step: Step, state: int) -> LayerPlan:
        """A forward is planned, as slowly as the file says, and not while it is held."""
        time.sleep(float((ROOT / "pause").read_text()))
        while len(BEGUN) > self.held_from():
            (ROOT / "held").touch()
            time.sleep(0.02)
        return super().plan(step, state)

    @staticmethod
    def held_from() -> float:
        """Blocks that may begin before the brake holds."""
        try:
            return int((ROOT / "hold").read_text() or 0)
        except OSError:
            return float("inf")


def strategy(config: StrategyConfig) -> Slow:
    """The strategy of one config of the grid."""
    start, stop = config.bounds
    return Slow(config.k, start, stop)
'''.replace("\\\\n", "\\n")
SLOW_SETTINGS = """\
[experiment]
title = "The baseline with a brake"

[grid]
k = [1, 2]
subset = ["middle"]

[decoding]
threshold = 0.95

[evaluation]
batch_size = 1
"""


@dataclass(frozen=True)
class Checkout:
    """A checkout whose runs go to a SLURM.

    Attributes:
        root: its folder.
        slurm: the cluster.
        executor: flags that every submission gets.
    """

    root: Path
    slurm: Slurm
    executor: tuple[str, ...] = ("--executor", "slurm", "--no-doctor")
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        folder = self.root / "experiments"
        if folder.exists():
            return
        shutil.copytree(ROOT / "experiments" / "00_baseline", folder / "00_baseline")
        (folder / SLOW).mkdir()
        (folder / SLOW / "generation_functions.py").write_text(SLOW_CODE)
        (folder / SLOW / "experiment.toml").write_text(SLOW_SETTINGS)
        self.pause(0)
        self.site()

    def site(self, *, top: str = "", resources: str = "") -> None:
        """Write the site file: one processor a job, so that two run at once, and lines besides."""
        text = f"{top}\n\n[resources]\ncpus = 1\n{resources}\n"
        (self.root / "fdllm.toml").write_text(text)

    # --- the command ----------------------------------------------------------------------------

    def variables(self) -> dict[str, str]:
        """The environment of whoever works in it."""
        without = ("SLURM_", "FDLLM_EXECUTOR")  # which tests/conftest.py sets for other tests
        kept = {name: v for name, v in os.environ.items() if not name.startswith(without)}
        own = {"FDLLM_ROOT": str(self.root), "OMP_NUM_THREADS": "1"}
        return kept | OFFLINE | own | self.slurm.environment | self.environment

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a command."""
        return subprocess.Popen(
            [str(FDLLM), *arguments],
            cwd=self.root,
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fdllm(self, *arguments: str, code: int | None = 0) -> str:
        """Run a command to its end; what it printed, both streams."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=120)
        said = f"$ fdllm {' '.join(arguments)}\n{out}{err}"
        assert code is None or process.returncode == code, f"exit {process.returncode}: {said}"
        return said

    def sweep(self, *arguments: str, experiment: str = SLOW, code: int | None = 0) -> str:
        """Submit what is missing of an experiment; timing studies only where one says so."""
        without = () if "--timing" in arguments else ("--timing", "0")
        flags = (*self.chosen(experiment), *self.executor, *arguments, *without)
        return self.fdllm("sweep", *flags, code=code)

    def submitted(self) -> int:
        """How often anything was handed to the queue."""
        return len(list((self.root / "logs").rglob("jobs.json")))

    @staticmethod
    def chosen(experiment: str) -> tuple[str, ...]:
        """The flags that name the runs of these tests."""
        return ("--experiment", experiment, "--task", TASK, "--limit", str(LIMIT))

    def cells(self, experiment: str = SLOW) -> dict[str, dict[str, Any]]:
        """What ``fdllm status --json`` says of each config."""
        with self.start("status", "--json", *self.chosen(experiment)) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return {cell["config"]: cell for cell in json.loads(out)["cells"]}

    def states(self, experiment: str = SLOW) -> dict[str, str]:
        """State by config."""
        return {name: cell["state"] for name, cell in self.cells(experiment).items()}

    def settle(self, experiment: str = SLOW) -> None:
        """Wait for the queue's end; then every cell must be done."""
        self.slurm.end_of_queue()
        cells = self.cells(experiment)
        assert {cell["state"] for cell in cells.values()} == {"done"}, (cells, self.logs())

    # --- the brake ------------------------------------------------------------------------------

    def pause(self, seconds: float) -> None:
        """How long each forward waits from now on."""
        temporary = self.root / ".pause"
        temporary.write_text(str(seconds))
        temporary.rename(self.root / "pause")

    def hold(self, blocks: int = 8) -> None:
        """Hold each process once it has begun that many blocks: in the middle of a sample."""
        (self.root / "held").unlink(missing_ok=True)
        (self.root / "hold").write_text(str(blocks))

    def await_held(self) -> None:
        """Wait until a process is held, with answers behind it and a sample begun."""
        what = f"a job is held; {self.root}"
        wait_until(
            (self.root / "held").exists,
            120,
            lambda: f"{what}\n{self.slurm.ask('squeue', '-l')}\n{self.logs()}",
        )

    def release(self) -> None:
        """Let them go on."""
        (self.root / "hold").unlink()

    # --- what is left ---------------------------------------------------------------------------

    def folder(self, config: str, experiment: str = SLOW) -> Path:
        """A config's results."""
        return self.root / "results" / experiment / f"{TASK}_limit_{LIMIT}" / config

    def logs(self) -> str:
        """The end of every log, for a failure's message."""
        paths = sorted((self.root / "logs").rglob("*.log"))
        return "\n".join(f"--- {p}\n{p.read_text(errors='replace')[-3000:]}" for p in paths)

    def record(self, config: str, experiment: str = SLOW) -> dict[str, Any]:
        """All of a record that an undisturbed run and a disturbed one must share."""
        folder = self.folder(config, experiment)
        summary = json.loads((folder / "summary.json").read_text())
        for name in ("provenance", "peak_memory", "throughput", "files"):
            del summary[name]
        lines = (folder / "samples.jsonl").read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        for sample in samples:
            del sample["seconds"]
        results = json.loads((folder / "results.json").read_text())["results"]
        return {"summary": summary, "samples": samples, "results": results}

    def lives(self, config: str, experiment: str = SLOW) -> list[list[str]]:
        """Samples that each process kept, in order: one list a session of the journal."""
        lives: list[list[str]] = []
        for line in self._journal(config, experiment):
            if "session" in line:
                lives.append([])
            elif "key" in line:
                lives[-1].append(line["key"])
        return lives

    def kept(self, config: str, experiment: str = SLOW) -> int:
        """Answers on the disk."""
        return sum(len(life) for life in self.lives(config, experiment))

    def begun(self, config: str) -> list[int]:
        """Blocks that each process has begun, in the order of the processes."""
        path = self.root / f"begun-{config.partition('_')[0]}"
        counts: dict[str, int] = {}
        for pid in path.read_text().split() if path.exists() else ():
            counts[pid] = counts.get(pid, 0) + 1
        return list(counts.values())

    def _journal(self, config: str, experiment: str) -> Iterator[dict[str, Any]]:
        path = self.folder(config, experiment) / "journal.jsonl"
        whole = path.read_text().split("\n")[:-1] if path.exists() else []
        return (json.loads(line) for line in whole)
