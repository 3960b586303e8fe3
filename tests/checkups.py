"""``fdllm`` in a process of its own, against a loopback Hub: its output, and what is beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdllm.doctor.findings import Checkup, Finding
from fdllm.record.paths import Layout
from fdllm.runs import Evaluating, ModelChoice, Sweep
from helpers import ROOT


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def findings(self) -> dict[str, dict[str, str]]:
        """Of ``--json``, by name."""
        return {finding["name"]: finding for finding in json.loads(self.out)["findings"]}


def environment_of(home: Path, **changes: str) -> dict[str, str]:
    """This process's environment without a word on the Hub, and ``home`` as the cache."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "FDLLM", "NLTK"))
        and not name.lower().endswith("_proxy")
    }
    return kept | {
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "200",
        **changes,
    }


def fdllm(*arguments: str, home: Path, **environment: str) -> Ended:
    """Run a command; ``HF_ENDPOINT``, ``HF_TOKEN``, … as keywords."""
    done = subprocess.run(
        [sys.executable, "-m", "fdllm.cli", *arguments],
        env=environment_of(home, **environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def checkup(command: str, *arguments: str, home: Path, **environment: Any) -> Ended:
    """``fdllm doctor`` or ``prefetch`` on the embedded model, as JSON."""
    flags = ("--json", "--model", "tiny", "--results", str(home / "results"))
    here = ("--executor", "local") if command == "doctor" else ()
    return fdllm(command, *flags, *here, *arguments, home=home, **environment)


def of(root: Path, *tasks: str, model: str = "tiny", revision: str | None = None) -> Checkup:
    """A check-up of runs on the embedded model, from the checkout at ``root``."""
    sweep = Sweep(
        experiment="00_baseline",
        tasks=tasks or ("tiny_choice",),
        model=ModelChoice(name=model, revision=revision),
        evaluating=Evaluating(),
    )
    return Checkup(root, Layout.of(root), sweep)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    """Findings by their name."""
    return {finding.name: finding for finding in findings}
