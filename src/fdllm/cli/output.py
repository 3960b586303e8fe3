"""Lines to the two streams: answers to standard output, everything about them to the other."""

from __future__ import annotations

import sys

from rich.console import Console


def say(text: str) -> None:
    """A line of the answer."""
    sys.stdout.write(text + "\n")


def complain(text: str) -> None:
    """A line that is no part of the answer."""
    sys.stderr.write(text + "\n")


def console(at_least: int = 150) -> Console:
    """Standard output for tables; a log, which folds nothing, is ``at_least`` so many columns."""
    found = Console()
    return found if found.is_terminal else Console(width=max(at_least, found.width))
