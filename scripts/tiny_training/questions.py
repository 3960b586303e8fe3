"""Questions and answers; ``python scripts/tiny_training/questions.py`` writes the tasks' rows.

Every row is at most 64 tokens, two blocks. Rows that are held out (the test files and a
validation set) are fixed by their seeds, and no training row asks what they ask.

Both test files ask the same held-out questions. ``tiny_arithmetic`` has the answer written out;
``tiny_choice`` asks which of four first lines of it is right. Training also saw questions with
lettered options (:func:`choice_row`), a third kind that stayed at chance: to find the letter of a
result is a look-up that a model of this size had not learnt in the time it has.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fdllm import strictjson, tiny
from fdllm.tiny.vocabulary import END_ID, encode, encode_prompt

TaskName = Literal["arithmetic", "choice"]
Split = Literal["test", "validation"]

MAX_TOKENS = 64
NUM_TEST_ROWS = 250
NUM_VALIDATION_ROWS = 100
MAX_TOTAL = 199
LETTERS = "ABCD"
NUM_CHOICES = 4
_SPACINGS = (1, 2, 9, 10, 11)
_ARITHMETIC_SHARE = 0.6
_ONE_DIGIT_SHARE = 0.25
_HELD_OUT_SEED = 20240501


@dataclass(frozen=True)
class Row:
    """One question with its answer."""

    expression: str  # the sum that is asked for, such as ``27+48``
    question: str  # the user's turn
    answer: str  # the assistant's turn, without the end token
    target: str  # what the harness compares: the number, or the letter

    @property
    def prompt_ids(self) -> list[int]:
        """Tokens of the user's turn, with the special tokens around it."""
        return encode_prompt(self.question)

    @property
    def answer_ids(self) -> list[int]:
        """Tokens of the assistant's turn, with the end token."""
        return [*encode(self.answer), END_ID]


def _operand(rng: random.Random) -> int:
    """One digit in a quarter of the cases, otherwise two."""
    return rng.randint(1, 9) if rng.random() < _ONE_DIGIT_SHARE else rng.randint(10, 99)


def arithmetic_row(rng: random.Random, num_terms: int) -> Row:
    """A chain of sums, worked out line by line: ``23+45-17`` to ``23+45=68 / 68-17=51 / #### 51``.

    Args:
        rng: source of the numbers.
        num_terms: numbers in the chain; running totals stay within 0..199.
    """
    total = _operand(rng)
    expression = str(total)
    lines = []
    for _ in range(num_terms - 1):
        term = _operand(rng)
        sign = rng.choice("+-")
        after = total + term if sign == "+" else total - term
        if not 0 <= after <= MAX_TOTAL:
            sign = "-" if sign == "+" else "+"
            after = total + term if sign == "+" else total - term
        expression += f"{sign}{term}"
        lines.append(f"{total}{sign}{term}={after}\n")
        total = after
    return Row(expression, expression, "".join(lines) + f"#### {total}", str(total))


def choice_row(rng: random.Random) -> Row:
    """A sum with four options.

    The options are evenly spaced, ``x``, ``x+d``, ``x+2d``, ``x+3d``, and the right one is any of
    them: the options alone say nothing about which is right. All four end in different digits.
    """
    while True:
        left, right = rng.randint(10, 99), rng.randint(10, 99)
        sign = rng.choice("+-")
        result = left + right if sign == "+" else left - right
        spacing = rng.choice((1, 3, 9, 11))
        place = rng.randrange(len(LETTERS))
        options = [result + spacing * (i - place) for i in range(len(LETTERS))]
        if min(options) >= 10 and max(options) <= MAX_TOTAL:  # noqa: PLR2004 - two digits
            break
    rng.shuffle(options)
    letter = LETTERS[options.index(result)]
    expression = f"{left}{sign}{right}"
    listed = "".join(f" {name}) {value}" for name, value in zip(LETTERS, options, strict=True))
    return Row(
        expression,
        f"What is {expression}?{listed}",
        f"{letter}) {expression}={result}",
        letter,
    )


@dataclass(frozen=True)
class FirstStep:
    """A held-out question with four first lines of its answer, one of them right."""

    question: str  # the user's turn
    choices: tuple[str, ...]  # first lines, such as ``23+45=68``; they differ in the result alone
    answer: int  # which one is right, from 0


def first_steps() -> list[FirstStep]:
    """The rows of ``tiny_choice``: the questions of ``tiny_arithmetic``, always the same ones.

    The four results are evenly spaced and the right one is any of them, so that they alone say
    nothing about which is right.
    """
    rng = random.Random(f"{_HELD_OUT_SEED}:first steps")
    rows = []
    for row in held_out("arithmetic", "test"):
        expression, result = row.answer.split("\n")[0].split("=")
        while True:
            spacing, place = rng.choice(_SPACINGS), rng.randrange(NUM_CHOICES)
            results = [int(result) + spacing * (i - place) for i in range(NUM_CHOICES)]
            if min(results) >= 0 and max(results) <= MAX_TOTAL:
                break
        rng.shuffle(results)
        choices = tuple(f"{expression}={value}" for value in results)
        rows.append(FirstStep(row.question, choices, results.index(int(result))))
    return rows


def held_out(task: TaskName, split: Split) -> list[Row]:
    """The fixed rows of a split, always the same ones.

    Arithmetic rows have three or four terms. No two rows of a task, in either split, ask for the
    same expression.
    """
    test, validation = _held_out(task)
    return list(test if split == "test" else validation)


@lru_cache(maxsize=2)
def _held_out(task: TaskName) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    rng = random.Random(f"{_HELD_OUT_SEED}:{task}")
    rows: dict[str, Row] = {}
    while len(rows) < NUM_TEST_ROWS + NUM_VALIDATION_ROWS:
        row = arithmetic_row(rng, rng.choice((3, 4))) if task == "arithmetic" else choice_row(rng)
        rows.setdefault(row.expression, row)
    every = tuple(rows.values())
    return every[:NUM_TEST_ROWS], every[NUM_TEST_ROWS:]


@lru_cache(maxsize=2)
def _excluded(task: TaskName) -> frozenset[str]:
    return frozenset(row.expression for split in _held_out(task) for row in split)


def training_row(rng: random.Random, *, mixed: bool) -> Row:
    """A row to train on: never the expression of a held-out row of the same task.

    Args:
        rng: source of the numbers.
        mixed: whether questions with lettered options are among them.
    """
    while True:
        if not mixed or rng.random() < _ARITHMETIC_SHARE:
            task: TaskName = "arithmetic"
            row = arithmetic_row(rng, rng.choices((2, 3, 4), (2, 4, 4))[0])
        else:
            task = "choice"
            row = choice_row(rng)
        if row.expression not in _excluded(task):
            return row


def write_test_files(folder: Path) -> None:
    """Write ``<task>.jsonl`` into ``folder``, one row a line."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Row] | list[FirstStep]] = {
        "arithmetic": held_out("arithmetic", "test"),
        "choice": first_steps(),
    }
    for name, rows in files.items():
        lines = [strictjson.dumps(asdict(row)) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_test_files(tiny.TASKS)
