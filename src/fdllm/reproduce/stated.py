"""Which figures a page states, in which sentence, and of which records (``findings.toml``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from pydantic import Field

from fdllm.errors import UsageError
from fdllm.experiment.load import FOLDER
from fdllm.outside import OutsideError, read_text
from fdllm.spec import Spec, read_toml

FINDINGS = "findings.toml"
_MOST = 1 << 22  # bytes of a page
NUMBER = re.compile(r"(?<![\w.,])[-+]?\d(?:[\d,]*\d)?(?:\.\d+)?(?!\w)")
_RANGE = re.compile(r" to |(?<=\d)[-\N{EN DASH}](?=\d)")
_WITH_INTERVAL = re.compile(r"(?P<value>\S+) \[(?P<low>\S+), (?P<high>\S+)\]")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:\d+\.|[-*]) )|\n(?=\|)")
_MARKER = re.compile(r"^\s*(?:\d+\.|[-*]) ")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])(?:\*\*)?\s+(?=[A-Z*\[`])")
# What holds digits and states no figure: code, targets of links, years, papers' numbers, and the
# parameters that name a config.
_NO_FIGURE = re.compile(
    r"`[^`]*`|\]\([^)]*\)|\b(?:19|20)\d\d\b|\b\d{4}\.\d{5}\b"
    r"|\b[a-z] ?= ?\d[\d.]*(?:(?:, (?:and )?| and )\d[\d.]*(?![\d.]* [%\w]))*"
)


class StatedFigure(Spec):
    """A figure in a sentence, and where it comes from."""

    # as the sentence has it: ``0.86``, ``0.88-0.89``, ``-1.4 [-3.4, +0.6]``, ``1, 2``
    expected: str
    field: str  # see :data:`fdllm.reproduce.found.FIELDS`
    # one, or several by ``*`` or with blanks between: listed figures are of one each, a range is
    # from the least to the most, a single figure is of all of them
    config: str
    task: str = ""  # where it is not the sentence's
    experiment: str = ""  # the same
    # EXPERIMENT/CONFIG: the figure is by how much it exceeds that config's
    beside: str = ""
    tolerance: float | None = Field(default=None, ge=0)  # the field's, where None

    @cached_property
    def is_range(self) -> bool:
        """Whether it is from the least to the most of several."""
        return not self.has_interval and bool(_RANGE.search(self.expected))

    @cached_property
    def has_interval(self) -> bool:
        """Whether an interval stands behind it."""
        return _WITH_INTERVAL.fullmatch(self.expected) is not None

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """What it states: one or several, the two ends of a range, or value, low and high."""
        parts = _RANGE.split(self.expected) if self.is_range else [self.expected]
        found = [one for part in parts for one in NUMBER.findall(part)]
        if not found:
            raise ValueError(f"expected = '{self.expected}' states no number")
        return tuple(float(one.replace(",", "")) for one in found)

    def with_numbers(self, numbers: tuple[float, ...]) -> str:
        """The same words with other numbers, as many, each with as many digits and its sign."""
        parts = _RANGE.split(self.expected) if self.is_range else [self.expected]
        between = _RANGE.findall(self.expected) if self.is_range else []
        left = iter(numbers)
        said = [NUMBER.sub(lambda one: _like(one[0], next(left)), part) for part in parts]
        return said[0] + "".join(f"{b}{part}" for b, part in zip(between, said[1:], strict=True))


class Statement(Spec):
    """A sentence, or a part of one, that states figures."""

    text: str  # as it stands in the page; line ends count as blanks
    experiment: str = ""  # of its figures
    task: str = ""  # the same
    figures: tuple[StatedFigure, ...] = ()
    why: str = ""  # where no record holds its figures: what they are, and where they stand


class Statements(Spec):
    """``experiments/findings.toml``: what ``fdllm reproduce`` holds a page to."""

    model: str  # of the records
    page: str  # beside it
    # by field: how far another machine's figure may lie off and the sentence holds all the same
    tolerance: Mapping[str, float]
    finding: tuple[Statement, ...]


def read_statements(root: Path) -> tuple[Statements, Path]:
    """The figures that are stated, and the page they stand in.

    Raises:
        UsageError: the file has another form, or a figure does not stand in its sentence.
    """
    path = root / FOLDER / FINDINGS
    found = Statements.read(read_toml(path), str(path))
    for one in found.finding:
        text = plain(one.text)
        if bool(one.figures) == bool(one.why):
            raise UsageError(f"{path}: '{text}' has figures, or why no record holds them; not both")
        for figure in one.figures:
            where = f"{path}: '{figure.expected}' of '{text}'"
            if plain(figure.expected) not in text:
                raise UsageError(f"{where} does not stand in it")
            if not (figure.experiment or one.experiment) or not (figure.task or one.task):
                raise UsageError(f"{where} has no experiment or no task")
            if not NUMBER.search(figure.expected):
                raise UsageError(f"{where} is no number")
    return found, path.parent / found.page


def read_page(path: Path) -> str:
    """The text of a page.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return read_text(path, most=_MOST)
    except OutsideError as error:
        raise UsageError(str(error)) from None


def plain(text: str) -> str:
    """The words alone: one blank where there are several, a line's end among them."""
    return " ".join(text.split())


def sentences(page: str) -> Iterator[str]:
    """Sentences of a page of Markdown, each in one line; a row of a table is one too."""
    for block in _BLOCK.split(_FENCE.sub("", page)):
        text = plain(_MARKER.sub("", block))
        if text and not text.startswith(("#", "![", "<!--")):
            yield from [text] if text.startswith("|") else _SENTENCE_ENDS.split(text)


def figures_of(sentence: str) -> list[str]:
    """The figures that a sentence states; what only names a config, a year or a paper is none."""
    return NUMBER.findall(_NO_FIGURE.sub(" ", sentence))


def uncovered(page: str, statements: Statements) -> list[str]:
    """Sentences of a page that state a figure which is in no statement."""
    known = [plain(one.text) for one in statements.finding]
    return [
        one
        for one in sentences(page)
        if figures_of(one) and not any(text in one or one in text for text in known)
    ]


def absent(page: str, statements: Statements) -> list[str]:
    """Texts of statements that the page does not have."""
    words = plain(page)
    return [text for one in statements.finding if (text := plain(one.text)) not in words]


def _like(written: str, number: float) -> str:
    """A number with as many digits as another, its commas and, where that has one, a sign."""
    digits = len(written.partition(".")[2])
    sign, comma = "+" if written[0] in "+-" else "", "," if "," in written else ""
    rounded = round(number, digits) or 0.0  # no -0.0
    return f"{rounded:{sign}{comma}.{digits}f}"
