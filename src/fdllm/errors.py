"""The two kinds of failure a user can meet, and the exit code each one means.

Every message says what was given, what is allowed and what to do next. Library code raises these
(or a subclass, or ``ValueError`` for a programming error); the command line turns them into one
line on standard error and never prints a traceback unless ``--debug`` asks for it.
"""

from __future__ import annotations


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
