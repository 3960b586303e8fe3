"""The fixed test rows, for the task files beside this one.

The harness imports this file by its path and calls the functions with a task's metadata. Reading
the rows here, and not through a path in the YAML, works wherever the package is installed, from
any working directory, offline, and leaves no dataset cache behind.
"""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset, DatasetDict


def arithmetic(**metadata: object) -> DatasetDict:  # noqa: ARG001 - the harness gives it
    """The rows of ``tiny_arithmetic``: expression, question, answer, target."""
    return _read("arithmetic")


def choice(**metadata: object) -> DatasetDict:  # noqa: ARG001 - the harness gives it
    """The rows of ``tiny_choice``: question, choices, answer."""
    return _read("choice")


def _read(name: str) -> DatasetDict:
    text = (Path(__file__).resolve().parent / f"{name}.jsonl").read_text(encoding="utf-8")
    return DatasetDict(test=Dataset.from_list([json.loads(line) for line in text.splitlines()]))
