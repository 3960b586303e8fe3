"""Lines to the two streams: answers to standard output, everything about them to the other."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line of the answer."""
    sys.stdout.write(text + "\n")


def complain(text: str) -> None:
    """A line that is no part of the answer."""
    sys.stderr.write(text + "\n")
