"""What a machine is like at a moment, as far as it says: clock, load, temperature."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from fdllm.record.study import Conditions

_CPUINFO = Path("/proc/cpuinfo")
_SENSORS = Path("/sys/class/thermal")
_MHZ = re.compile(r"^cpu MHz\s*:\s*([\d.]+)", re.MULTILINE)
_OF_PROCESSOR = re.compile(r"pkg|cpu|core|soc", re.IGNORECASE)  # kinds of sensors
_PATIENCE_S = 10
_CLOCK_CHANGE = 0.10  # a share that is worth a warning


def read_conditions(device: torch.device, at: float) -> Conditions:
    """The conditions now, ``at`` seconds since the study began; what cannot be read is None.

    A GPU's come from ``nvidia-smi``; a processor's from ``/proc/cpuinfo`` (the mean over its cores)
    and ``/sys/class/thermal`` (the warmest sensor of the processor); load from ``getloadavg``.
    """
    clock, warmest = _of_gpu(device) if device.type == "cuda" else (_clock(), _temperature())
    return Conditions(at=round(at, 1), clock_mhz=clock, load=_load(), temperature_c=warmest)


def changes(moments: Sequence[Conditions], num_cores: int) -> list[str]:
    """What changed over the moments, or was loud from the start: warnings, a sentence each."""
    found = []
    clocks = [one.clock_mhz for one in moments if one.clock_mhz]
    if clocks and max(clocks) > (1 + _CLOCK_CHANGE) * min(clocks):
        found.append(f"the clock went from {min(clocks):.0f} to {max(clocks):.0f} MHz")
    loads = [one.load for one in moments if one.load is not None]
    if loads and max(loads) > num_cores:
        found.append(f"other programs took part of the machine: load {max(loads):.1f} on "
                     f"{num_cores} cores")  # fmt: skip
    return found


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _clock() -> float | None:
    try:
        clocks = [float(mhz) for mhz in _MHZ.findall(_CPUINFO.read_text(encoding="utf-8"))]
    except OSError:
        return None
    return round(fmean(clocks), 1) if clocks else None


def _temperature() -> float | None:
    found = []
    for zone in _SENSORS.glob("thermal_zone*"):
        try:
            kind = (zone / "type").read_text(encoding="utf-8")
            milli = float((zone / "temp").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if _OF_PROCESSOR.search(kind):
            found.append(milli / 1000)
    return max(found, default=None)


def _of_gpu(device: torch.device) -> tuple[float | None, float | None]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, None
    uuid = torch.cuda.get_device_properties(device).uuid
    query = ["--query-gpu=clocks.sm,temperature.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own program, no shell
            [program, f"--id=GPU-{uuid}", *query],
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATIENCE_S,
        )
        clock, warmth = done.stdout.split(",")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, None
    return _number(clock), _number(warmth)


def _number(text: str) -> float | None:
    """A number of ``nvidia-smi``, which says ``[N/A]`` where a card has none."""
    try:
        return float(text)
    except ValueError:
        return None
