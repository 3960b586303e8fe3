"""Run evaluations in a process of their own, against a loopback Hub and a given cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import ROOT


@dataclass(frozen=True)
class Finished:
    """What a process found and printed."""

    found: list[dict[str, Any]]
    stdout: str
    stderr: str


def run_cases(
    cases: Sequence[Mapping[str, Any]],
    home: Path,
    *,
    endpoint: str | None,
    token: str | None = None,
    script: str = "case.py",
) -> Finished:
    """Evaluate ``cases``, see :mod:`hub.case`, with ``home`` as the clients' cache.

    Args:
        cases: one mapping of arguments each.
        home: ``HF_HOME``; an empty folder is a cold cache.
        endpoint: the Hub's address; None is offline.
        token: the user's token.
        script: what evaluates them.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "NLTK_")) and not name.lower().endswith("_proxy")
    }
    environment |= {
        "HF_HOME": str(home),
        "HOME": str(home),  # what the user's own home holds is no part of a test
        "PYTHONPATH": str(ROOT / "src"),
        # The models are tiny and the cores are few: threads would only wait for each other.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if endpoint is None:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    else:
        environment["HF_ENDPOINT"] = endpoint
    if token is not None:
        environment["HF_TOKEN"] = token
    home.mkdir(parents=True, exist_ok=True)
    out = home / "found.json"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), json.dumps(list(cases)), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Finished(json.loads(out.read_text(encoding="utf-8")), done.stdout, done.stderr)
