"""How a process is asked to end: Ctrl-C, SIGTERM, and a scheduler's warning ahead of its limit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

WARNING = signal.SIGUSR1
"""What SLURM sends a job script ahead of the time limit."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def _raise(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated` inside the block."""
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def warned(note: Path | None = None) -> Iterator[Callable[[], bool]]:
    """The warning signal is kept inside the block instead of ending the process.

    Args:
        note: a file that warns too, once it exists. SLURM gives a signal to every process of a
            step, and the one that mounts a container's image would die of it.

    Yields:
        What says whether to go on: True until the signal or the file arrives. It is the ``go_on``
        of :class:`fdllm.evaluate.runner.Runner`, which then finishes what is in flight.
    """
    arrived: list[int] = []
    before = signal.signal(WARNING, lambda number, _: arrived.append(number))
    try:
        yield lambda: not arrived and (note is None or not note.exists())
    finally:
        signal.signal(WARNING, before)
