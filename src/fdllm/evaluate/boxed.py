r"""``boxed_match``: whether the answer in the last ``\boxed{}`` is the right one. No torch.

The published extraction of gsm8k reads the last number of a text, dots and all: ``$\boxed{18}$.``
and ``\boxed{18.00}`` count as wrong there. The prompt asks for a box, so it is looked at too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

METRIC = "boxed_match"

# A box with braces, one without, an escaped character (a brace, say), and braces.
_TOKEN = re.compile(r"\\boxed\s*\{|\\boxed +(?P<bare>[^\s{}$]+)|\\.|[{}]", re.DOTALL)
_WORDS = re.compile(
    r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}|(?<=\d)\s+[A-Za-z][A-Za-z .]{2,}$"
)
_MARKS = re.compile(r"\\[$%,!;: ]|[$%\s]|\^\{?\\circ\}?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_RATIO = re.compile(r"([+-]?)(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")
_LONGEST = 60  # characters of a number


class WholeText(str):
    """A text as the model wrote it, past the filters of a task."""

    __slots__ = ()


def whole_texts(replies: Sequence[Sequence[str]], _: object) -> list[WholeText]:
    """A filter that takes nothing away."""
    return [WholeText(row[0]) for row in replies]


def last_box(text: str) -> str | None:
    """What stands in the box that begins last and is closed; None without one."""
    opened: list[int] = []
    found: tuple[int, int] | None = None
    for token in _TOKEN.finditer(text):
        if token["bare"] is not None:
            found = token.span("bare")
        elif token[0].endswith("{") and len(token[0]) > 2:  # noqa: PLR2004 - not \{
            opened.append(token.end())
        elif token[0] == "{":
            opened.append(-1)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start >= 0 and (found is None or start > found[0]):
                found = (start, token.start())
    return None if found is None else text[slice(*found)]


def right_answer(solution: str) -> str:
    """The answer that a document's own solution gives: in its last box, or behind ``####``."""
    box = last_box(solution)
    return solution.rpartition("####")[2].strip() if box is None else box


def boxed_match(text: str, solution: str) -> bool:
    """Whether a text's last box holds the answer of a solution: the same number, or equal maths."""
    box = last_box(text)
    return box is not None and equal(right_answer(solution), box)


def equal(one: str, other: str) -> bool:
    """Whether two answers in LaTeX are one."""
    numbers = number_of(one), number_of(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if "".join(one.split()) == "".join(other.split()):
        return True
    from math_verify import parse, verify  # noqa: PLC0415 - seconds to import

    gold, answer = (parse(rf"\boxed{{{text}}}") for text in (one, other))
    return bool(verify(gold, answer))


def number_of(text: str) -> Fraction | None:
    """An answer as a number, its units, signs of money and separators of thousands apart."""
    bare = _WORDS.sub(_digits, text.strip())
    bare = _MARKS.sub("", bare.replace("{,}", ",")).rstrip(".")
    if _THOUSANDS.fullmatch(bare):
        bare = bare.replace(",", "")
    if len(bare) > _LONGEST:
        return None
    if _NUMBER.fullmatch(bare):
        return Fraction(bare)
    ratio = _RATIO.fullmatch(bare)
    if ratio is None:
        return None
    above, below = int(ratio[2] or ratio[4]), int(ratio[3] or ratio[5])
    return None if below == 0 else Fraction(-above if ratio[1] == "-" else above, below)


def _digits(words: re.Match[str]) -> str:
    """Words are left out; a number that was set as words stays."""
    return words[1] if words[1] and re.search(r"\d", words[1]) else ""
