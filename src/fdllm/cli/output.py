"""Lines to the two streams: answers to standard output, everything about them to the other."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from fdllm.plain import shown


def say(text: str) -> None:
    """A line of the answer."""
    sys.stdout.write(shown(text) + "\n")


def complain(text: str) -> None:
    """A line that is no part of the answer."""
    sys.stderr.write(shown(text) + "\n")


class _Console(Console):
    """Obeys nothing that stands in a text: no escape, no markup, no name of an emoji."""

    def __init__(self, *, width: int | None, stderr: bool) -> None:
        super().__init__(width=width, stderr=stderr, markup=False, emoji=False, highlight=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for one in super().render(renderable, options):
            yield one if one.control else one._replace(text=shown(one.text))


def console(at_least: int = 150, *, stderr: bool = False) -> Console:
    """A stream for tables and bars; a log, which folds nothing, is ``at_least`` so many columns."""
    found = _Console(width=None, stderr=stderr)
    return found if found.is_terminal else _Console(width=max(at_least, found.width), stderr=stderr)
