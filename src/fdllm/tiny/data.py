"""Questions and answers of the two tasks; ``python -m fdllm.tiny.data`` writes the test files.

Every row is at most 64 tokens, two blocks. Rows that are held out (the test files and a
validation set) are fixed by their seeds, and no training row asks what they ask.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fdllm import tiny
from fdllm.tiny.vocabulary import END_ID, encode, encode_prompt

TaskName = Literal["arithmetic", "choice"]
Split = Literal["test", "validation"]

MAX_TOKENS = 64
NUM_TEST_ROWS = 250
NUM_VALIDATION_ROWS = 100
MAX_TOTAL = 199
LETTERS = "ABCD"
_ARITHMETIC_SHARE = 0.55
_ONE_DIGIT_SHARE = 0.25
_HELD_OUT_SEED = 20240501


@dataclass(frozen=True)
class Row:
    """One question with its answer.

    Attributes:
        expression: the sum that is asked for, such as ``27+48``.
        question: the user's turn.
        answer: the assistant's turn, without the end token.
        target: what the harness compares: the number, or the letter.
    """

    expression: str
    question: str
    answer: str
    target: str

    @property
    def is_choice(self) -> bool:
        """Whether the row asks for one of four options."""
        return self.target in LETTERS

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
    The answer is the letter, then the sum, then the option as the question has it: ``27+48`` with
    ``98A, 97B, 75C or 96D`` is answered ``C 27+48=75C``.
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
    named = [f"{value}{name}" for name, value in zip(LETTERS, options, strict=True)]
    return Row(
        expression,
        f"What is {expression}: {', '.join(named[:-1])} or {named[-1]}?",
        f"{letter} {expression}={result}{letter}",
        letter,
    )


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


def training_row(rng: random.Random) -> Row:
    """A row to train on: never the expression of a held-out row of the same task."""
    while True:
        if rng.random() < _ARITHMETIC_SHARE:
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
    tasks: tuple[TaskName, ...] = ("arithmetic", "choice")
    for task in tasks:
        lines = [json.dumps(asdict(row)) + "\n" for row in held_out(task, "test")]
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_test_files(tiny.TASKS)
