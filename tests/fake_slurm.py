"""SLURM's commands as files: they keep a queue, and start nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_SBATCH = r"""
[ ! -e "$D/down" ] || { echo "sbatch: error: Unable to contact slurm controller" >&2; exit 1; }
for last; do :; done
if [ -e "$D/refuse" ] && [ "${last##*/}" = "$(cat "$D/refuse")" ]; then
    echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1
fi
n=$(( $(cat "$D/next" 2>/dev/null || echo 100) + 1 ))
echo "$n" >"$D/next"
printf '%s\n' "$@" >"$D/sbatch-$n"
range=$(sed -n 's/^#SBATCH --array=\([0-9-]*\).*/\1/p' "$last")
for i in $(seq "${range%-*}" "${range#*-}"); do
    echo "${n}_$i|PENDING|0:00|10:00||Priority" >>"$D/queue"
done
echo "$n"
"""
_SQUEUE = r"""
[ ! -e "$D/down" ] || { echo "slurm_load_jobs error: Unable to contact" >&2; exit 1; }
cat "$D/queue" 2>/dev/null || true
"""
_SCANCEL = r"""
for id; do sed -i "/^${id}_/d" "$D/queue"; done
"""
_SCONTROL = r"""
echo "$@" >>"$D/scontrol-asked"
[ "$1" != show ] || exit 1
"""
_TEXTS = {"sbatch": _SBATCH, "squeue": _SQUEUE, "scancel": _SCANCEL, "scontrol": _SCONTROL}


@dataclass(frozen=True)
class FakeSlurm:
    """A cluster that only keeps a queue.

    Attributes:
        folder: its files.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> FakeSlurm:
        """Put its commands into a folder."""
        folder.mkdir(parents=True)
        for name, text in _TEXTS.items():
            path = folder / name
            path.write_text(f"#!/bin/bash\nD='{folder}'\n{text}")
            path.chmod(0o755)
        return cls(folder)

    @property
    def path(self) -> str:
        """PATH with its commands in front."""
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def stop(self) -> None:
        """slurmctld is gone."""
        (self.folder / "down").touch()

    def refuse(self, script: str) -> None:
        """Take no script of this name."""
        (self.folder / "refuse").write_text(script)

    def queue(self) -> list[str]:
        """Ids of what waits."""
        path = self.folder / "queue"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition("|")[0] for line in lines]

    def empty(self) -> None:
        """Everything has ended."""
        (self.folder / "queue").unlink()

    def asked(self, job: str) -> list[str]:
        """The arguments of an ``sbatch``."""
        return (self.folder / f"sbatch-{job}").read_text().splitlines()

    def scontrol(self) -> list[str]:
        """What ``scontrol`` was asked."""
        path = self.folder / "scontrol-asked"
        return path.read_text().splitlines() if path.exists() else []
