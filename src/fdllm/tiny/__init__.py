"""The embedded model: small, trained here, shipped inside the package. No torch at import."""

from __future__ import annotations

from pathlib import Path

FOLDER: Path = Path(__file__).resolve().parent / "weights"
"""Weights, configuration and tokenizer, as a checkpoint folder of the Hub's form."""

TASKS: Path = Path(__file__).resolve().parent / "tasks"
"""lm-eval task definitions with their fixed test rows, for ``TaskManager(include_path=...)``."""

TASK_NAMES: tuple[str, ...] = ("tiny_arithmetic", "tiny_choice")
"""The tasks in :data:`TASKS`."""
