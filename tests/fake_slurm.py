"""SLURM's commands as files: they keep a queue, and start nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_SBATCH = r"""
[ ! -e "$D/down" ] || { echo "sbatch: error: Unable to contact slurm controller" >&2; exit 1; }
for last; do case $last in
    --array=*) range=${last#--array=} range=${range%%%*} ;;
    --clusters=*) cluster=${last#--clusters=} cluster=${cluster%%,*} ;;
esac; done
if [ -e "$D/refuse" ] && [ "${last##*/}" = "$(cat "$D/refuse")" ]; then
    cat "$D/refusal" >&2; exit 1
fi
n=$(( $(cat "$D/next" 2>/dev/null || echo 100) + 1 ))
echo "$n" >"$D/next"
printf '%s\n' "$@" >"$D/sbatch-$n"
printenv | grep -E '^(SBATCH|SLURM|SQUEUE)_' >"$D/environment-$n"
for i in $(seq "${range%-*}" "${range#*-}"); do
    echo "${n}_$i|PENDING|0:00|10:00||Priority" >>"$D/queue${cluster:-}"
done
printf "$(cat "$D/answer" 2>/dev/null || echo '%s')\n" "$n${cluster:+;$cluster}"
"""
_SQUEUE = r"""
[ ! -e "$D/down" ] || { echo "slurm_load_jobs error: Unable to contact" >&2; exit 1; }
[ -z "${SQUEUE_STATES:-}" ] || exit 0
[ "$1" != -M ] || { cluster=$2; echo "CLUSTER: $cluster"; }
cat "$D/queue${cluster:-}" 2>/dev/null || true
"""
_SCANCEL = r"""
[ "$1" != -M ] || { cluster=$2; shift 2; }
for id; do sed -i "/^${id}_/d" "$D/queue${cluster:-}"; done
"""
_SCONTROL = r"""
echo "$@" >>"$D/scontrol-asked"
[ "$1" != -M ] || shift 2
[ "$1 $2" != "show config" ] || { cat "$D/config" 2>/dev/null; exit; }
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

    def refuse(self, script: str, said: str = "error: invalid partition specified: gpu") -> None:
        """Take no script of this name."""
        (self.folder / "refuse").write_text(script)
        (self.folder / "refusal").write_text(f"sbatch: {said}\n")

    def answer(self, text: str) -> None:
        """What ``sbatch`` prints; ``%s`` is the id, and without it none is named."""
        (self.folder / "answer").write_text(text)

    def config(self, text: str) -> None:
        """What ``scontrol show config`` prints."""
        (self.folder / "config").write_text(text)

    def environment(self, job: str) -> dict[str, str]:
        """The variables of SLURM that an ``sbatch`` was given."""
        lines = (self.folder / f"environment-{job}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def queue(self, cluster: str = "") -> list[str]:
        """Ids of what waits, on a cluster that was named or on this machine's."""
        path = self.folder / f"queue{cluster}"
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
