"""Where a record comes from: information for people, no part of an identity.

Named facts only. The environment is never copied as a whole, so no token can end up here.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fdllm.record.identity import installed
from fdllm.record.image import own_image_digest

_PACKAGES = (
    "datasets",
    "fdllm",
    "huggingface-hub",
    "lm-eval",
    "numpy",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
_WRITTEN = ("artifacts/**", "experiments/*/results.md")  # in git, and written by runs and reports


def session(**facts: str | int | None) -> dict[str, Any]:
    """Who computes from now on: machine, versions, commit, time.

    Args:
        facts: what only the caller knows: ``accelerator``, ``device``, ``dtype``, ``threads``, ….
    """
    accelerator, threads = facts.get("accelerator"), facts.get("threads")
    machine = f"{cpu_name()}, {threads} threads" if accelerator is None else str(accelerator)
    return {
        "started": utc_now(),
        "machine": machine,
        "host": socket.gethostname(),
        "cpu": cpu_name(),
        "cpus": usable_cpus(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "packages": versions(),
        "git": git_state(Path(__file__).resolve().parent),
        "image_sha256": own_image_digest(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        **facts,
    }


def utc_now() -> str:
    """UTC time, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Installed versions, local labels included."""
    return {name: installed(name, "not installed") for name in _PACKAGES}


def cpu_name() -> str:
    """The processor's name, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds the source, and whether it has changes; else None.

    Information only: identity goes by content. What runs and reports write themselves is no change:
    the second record of a grid would be "with changes" for the copy of the first.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        source = ["--", ":(top)", *(f":(top,exclude,glob){written}" for written in _WRITTEN)]
        dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no", *source))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": dirty}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    return done.stdout.strip()


def usable_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
