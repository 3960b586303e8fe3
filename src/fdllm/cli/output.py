r"""Lines to the two streams: answers to standard output, everything about them to the other.

A stream shows what its encoding has. A bare node's is ASCII, or Latin-1: there a sign is one of
ASCII's, and another letter is written as JSON writes it, ``\u00e9``.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from fdllm import strictjson
from fdllm.plain import shown

_SIGNS = {
    **dict(zip("×·–—−✓✗▶◐◆█▒░□", "x.---+x>o*#+-_", strict=True)),  # noqa: RUF001
    "…": "...",
    "²": "^2",
}
_HANDLER = "fdllm.as_ascii"


def say(text: str) -> None:
    """A line of the answer."""
    sys.stdout.write(shown(text) + "\n")


def say_json(data: Any) -> None:  # noqa: ANN401 - any JSON value
    """The answer for programs."""
    say(json_text(data, indent=2))


def json_text(data: Any, *, indent: int | None = None) -> str:  # noqa: ANN401 - any JSON value
    """JSON for standard output; programs read the same from it in any encoding."""
    text = strictjson.dumps(data, indent=indent)
    if (sys.stdout.encoding or "utf").lower().startswith("utf"):
        return text
    return re.sub(r"[^\x00-\x7f]", lambda found: _escaped(found[0]), text)


def complain(text: str) -> None:
    """A line that is no part of the answer."""
    sys.stderr.write(shown(text) + "\n")


class _Console(Console):
    """Obeys nothing that stands in a text: no escape, no markup, no name of an emoji."""

    def __init__(self, *, width: int | None, stderr: bool) -> None:
        super().__init__(width=width, stderr=stderr, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **words: Any) -> None:  # noqa: ANN401 - as rich has it
        """As rich does; a word that is longer than a line, a path say, is left whole."""
        super().print(*objects, **{"crop": False, **words})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        # Ahead of where its lines are folded; what is drawn otherwise is seen to below.
        if isinstance(renderable, Text) and renderable.plain != (plain := shown(renderable.plain)):
            renderable = renderable.blank_copy(plain)
        options = options or self.options
        if isinstance(renderable, Text) and not options.overflow:  # in no column of a table
            whole = renderable.copy()
            whole.overflow = "ignore"
            renderable = Text("\n", overflow="ignore", end=whole.end).join(
                whole.wrap(self, options.max_width)
            )
        for one in super().render(renderable, options):
            yield one if one.control else one._replace(text=shown(one.text))


def console(at_least: int = 150, *, stderr: bool = False) -> Console:
    """A stream for tables and bars; a log, which folds nothing, is ``at_least`` so many columns."""
    found = _Console(width=None, stderr=stderr)
    return found if found.is_terminal else _Console(width=max(at_least, found.width), stderr=stderr)


def show_every_character() -> None:
    """Let both streams take what their encoding lacks."""
    codecs.register_error(_HANDLER, _as_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _as_ascii(error: UnicodeError) -> tuple[str, int]:
    """What stands for the characters that a stream cannot take, as ``codecs`` asks for it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_SIGNS.get(one) or _escaped(one) for one in lacking), error.end


def _escaped(character: str) -> str:
    return json.dumps(character, allow_nan=False)[1:-1]
