r"""Text that somebody else wrote, as people are shown it: it acts on nothing and hides nothing.

What a model says, what a tensor, a file or a config is called, what a library's error holds: a
terminal would obey the escapes in it, and a reader would not see what turns it round or has no
width. Such characters are written the way JSON writes them, ``\u001b``, so that a JSON text stays
the same data.
"""

from __future__ import annotations

import json
import re
import unicodedata

# Control, format (bidirectional, zero width, tags), lone surrogates, private and unassigned ones,
# and the separators that end a line in some places and not in others.
_ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u3164", "\uffa0"}  # but letters
# What a page of Markdown would read as its own: a bracket is where a link's target follows it.
_MARKS = re.compile(r"\\(?=[!-/:-@\[-`{-~])|[`*|~]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[:])")


class _Forms(dict[int, str]):
    """How each character is shown, by its number; made as they are met."""

    def __init__(self, kept: str) -> None:
        super().__init__({ord(one): one for one in kept})

    def __missing__(self, number: int) -> str:
        one = chr(number)
        acts = one in _BLANK or unicodedata.category(one) in _ACTING
        self[number] = json.dumps(one, allow_nan=False)[1:-1] if acts else one
        return self[number]


_LINES, _ONE_LINE = _Forms("\n\t"), _Forms("")


def shown(text: str) -> str:
    """A text of any number of lines, with what it would do to a terminal or a page to be seen."""
    return text if text.isascii() and text.isprintable() else text.translate(_LINES)


def one_line(text: str) -> str:
    """The same of a text that is to be a line: its ends of lines and tabs are seen too."""
    return text.translate(_ONE_LINE)


def escaped(text: str) -> str:
    """A line inside a page of Markdown: no code, table, HTML or link begins or ends in it."""
    return _MARKS.sub(r"\\\g<0>", one_line(text))


def in_code(text: str) -> str:
    """A line between backticks, which it must not end."""
    return one_line(text).replace("`", "'")
