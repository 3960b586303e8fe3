"""The two kinds of failure a user can meet, and the exit code each one means.

Every message says what was given, what is allowed and what to do next. Library code raises these
(or a subclass, or ``ValueError`` for a programming error); the command line turns them into one
line on standard error and never prints a traceback unless ``--debug`` asks for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FdllmError(Exception):
    """The work could not be done: a file is broken, a guard fired, a disk is full.

    Exit code 1.
    """

    exit_code = 1


class UsageError(FdllmError):
    """What was asked for does not exist or makes no sense: a name, a flag value, a path.

    Exit code 2.
    """

    exit_code = 2


class MissingError(FdllmError):
    """A model or a task's documents cannot be had: no other run that needs them can be computed."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` with the nearest known name; empty where none is near."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def few(found: Sequence[object], most: int, between: str = ", ") -> str:
    """The first of many, and how many more: ``a, b and 3 more``."""
    shown = between.join(map(str, found[:most]))
    return shown + (f" and {len(found) - most} more" if len(found) > most else "")


def first_line(said: object, otherwise: str = "") -> str:
    """The first line of what an error or a program says.

    Args:
        said: an error, or a text.
        otherwise: what to say where it says nothing.
    """
    return next(iter(str(said).strip().splitlines()), otherwise)
