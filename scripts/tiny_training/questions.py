"""Questions and answers; ``python scripts/tiny_training/questions.py`` writes the tasks' rows.

Every row is at most 64 tokens, two blocks. Rows that are held out (the test files and a
validation set) are fixed by their seeds, and no training row asks what they ask.

Both test files ask the same held-out sums. ``tiny_arithmetic`` has the answer written out;
``tiny_choice`` asks which of four last lines of its working is right. The first training, which the
sums' begins from, saw chains of plus and minus, and questions with lettered options
(:func:`choice_row`), which stayed at chance: to find the letter of a result is a look-up that a
model of this size had not learnt in the time it has.
"""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fdllm import strictjson, tiny
from fdllm.tiny.vocabulary import END_ID, encode, encode_prompt

TaskName = Literal["arithmetic", "choice", "sums"]
Stage = Literal["mixed", "chains", "sums"]
"""What a step's rows are drawn from: chains and lettered questions, chains alone, sums."""
Split = Literal["test", "validation"]

MAX_TOKENS = 64
NUM_ROWS: dict[TaskName, dict[Split, int]] = {
    "arithmetic": {"test": 250, "validation": 100},
    "choice": {"test": 250, "validation": 100},
    "sums": {"test": 1000, "validation": 182},
}
"""Rows that are held out."""
MAX_TOTAL = 199  # of a chain
MAX_SUM = 999
LETTERS = "ABCD"
NUM_CHOICES = 4
_SPACINGS = (1, 2, 9, 10, 11, 100)
_ARITHMETIC_SHARE = 0.6
_ONE_DIGIT_SHARE = 0.25
_LARGEST_TERM = 299
_LEFTMOST_SHARE = 0.7
_HELD_OUT_SEED = 20240501
_MET_AS_CHAINS: frozenset[str] = frozenset(
    re.findall(
        r"\S+",
        "6+4+23 3+47+7 9+9+36 24+68+16 7+94+7 91+95+7 66+1+9 26+89+3 21+38+21 2+4+21 "
        "2+8+61 1+7+55 58+8+6 8+26+14 95+4+2 89+3+3 5+1+2 75+4+5",
    )
)
"""Sums that were held out and that the chains trained on before them had asked for already."""


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

    Running totals stay within 0..199.
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


def _term(rng: random.Random) -> int:
    """One digit in a fifth of the cases, two in a half, otherwise three up to 299."""
    kind = rng.random()
    if kind < 0.2:  # noqa: PLR2004 - as the docstring says
        return rng.randint(1, 9)
    return rng.randint(10, 99) if kind < 0.7 else rng.randint(100, _LARGEST_TERM)  # noqa: PLR2004


def sum_row(rng: random.Random, num_terms: int) -> Row:
    """A sum whose terms are added in an order that the question does not give.

    Each next term is the leftmost of those left with probability 0.7, else any of them: what an
    answer's next line begins with is uncertain to the best of models, and everything behind it
    hangs on that choice. ``8+245+31`` may go ``8+31=39 / 39+245=284 / #### 284``. Totals stay
    within 0..999.
    """
    terms = [_term(rng) for _ in range(num_terms)]
    while sum(terms) > MAX_SUM:
        terms = [_term(rng) for _ in range(num_terms)]
    expression = "+".join(map(str, terms))
    left = [*terms]

    def take() -> int:
        return left.pop(0 if rng.random() < _LEFTMOST_SHARE else rng.randrange(len(left)))

    total = take()
    lines = []
    while left:
        term = take()
        lines.append(f"{total}+{term}={total + term}\n")
        total += term
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
class LastStep:
    """A held-out sum with four last lines of its working, one of them right."""

    question: str  # the user's turn
    choices: tuple[str, ...]  # last lines, such as ``253+31=284``; they differ in the result alone
    answer: int  # which one is right, from 0


def last_steps() -> list[LastStep]:
    """The rows of ``tiny_choice``: the sums of ``tiny_arithmetic``, always the same ones.

    The lines before, which the answer would have, are left out: the model must add what the
    question names, or what the line itself says. The four results are evenly spaced and the right
    one is any of them, so that they alone say nothing about which is right.
    """
    rng = random.Random(f"{_HELD_OUT_SEED}:last steps")
    rows = []
    for row in held_out("sums", "test"):
        left = row.answer.split("\n")[-2].split("=")[0]
        total = int(row.target)
        while True:
            spacing, place = rng.choice(_SPACINGS), rng.randrange(NUM_CHOICES)
            results = [total + spacing * (i - place) for i in range(NUM_CHOICES)]
            if min(results) >= 0 and max(results) <= MAX_SUM:
                break
        rng.shuffle(results)
        choices = tuple(f"{left}={value}" for value in results)
        rows.append(LastStep(row.question, choices, results.index(total)))
    return rows


def held_out(task: TaskName, split: Split) -> list[Row]:
    """The fixed rows of a split, always the same ones.

    Chains and sums have three or four terms. No two rows of a task, in either split, ask for the
    same expression, and no sum is one that a chain was trained on.
    """
    num = NUM_ROWS[task]["test"]
    rows = [row for row in _held_out(task) if row.expression not in _MET_AS_CHAINS]
    return rows[:num] if split == "test" else rows[num:]


@lru_cache(maxsize=3)
def _held_out(task: TaskName) -> tuple[Row, ...]:
    rng = random.Random(f"{_HELD_OUT_SEED}:{task}")
    num = sum(NUM_ROWS[task].values()) + (len(_MET_AS_CHAINS) if task == "sums" else 0)
    rows: dict[str, Row] = {}
    while len(rows) < num:
        if task == "choice":
            row = choice_row(rng)
        else:
            row = (sum_row if task == "sums" else arithmetic_row)(rng, rng.choice((3, 4)))
        rows.setdefault(row.expression, row)
    return tuple(rows.values())


@lru_cache(maxsize=3)
def _excluded(task: TaskName) -> frozenset[str]:
    return frozenset(row.expression for row in _held_out(task))


def training_row(rng: random.Random, stage: Stage) -> Row:
    """A row to train on: never the expression of a held-out row of the same task."""
    while True:
        task: TaskName
        if stage == "sums":
            task, row = "sums", sum_row(rng, rng.choices((2, 3, 4), (1, 4, 5))[0])
        elif stage == "chains" or rng.random() < _ARITHMETIC_SHARE:
            task, row = "arithmetic", arithmetic_row(rng, rng.choices((2, 3, 4), (2, 4, 4))[0])
        else:
            task, row = "choice", choice_row(rng)
        if row.expression not in _excluded(task):
            return row


def write_test_files(folder: Path) -> None:
    """Write ``<task>.jsonl`` into ``folder``, one row a line."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Row] | list[LastStep]] = {
        "arithmetic": held_out("sums", "test"),
        "choice": last_steps(),
    }
    for name, rows in files.items():
        lines = [strictjson.dumps(asdict(row)) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_test_files(tiny.TASKS)
