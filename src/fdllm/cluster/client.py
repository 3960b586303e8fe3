"""The one place that starts SLURM's commands."""

from __future__ import annotations

import os
import subprocess

from fdllm.errors import FdllmError

_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")


class SlurmError(FdllmError):
    """One of SLURM's commands fails, or does not answer."""


def run_command(*command: str, timeout_s: float = 60) -> str:
    """What one of SLURM's commands prints.

    Args:
        command: its name, found on the PATH, and its arguments.
        timeout_s: seconds that it may take.

    Raises:
        SlurmError: it fails, with its own words, or does not end.
    """
    try:
        done = subprocess.run(  # noqa: S603 - one of SLURM's, no shell
            command,
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {timeout_s:.0f} s") from None
    except OSError as error:
        raise SlurmError(f"{command[0]} did not answer: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SlurmError(f"{command[0]}: {said}")
    return done.stdout


def _environment() -> dict[str, str]:
    """The shell's, without what a job that calls would hand down of itself."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(("SLURM_", "SLURMD_", "SRUN_"))
    }
