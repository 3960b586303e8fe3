"""Reads presets, strictly: those of the package by name, others from a file of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fdllm.core.config import Decoding
from fdllm.errors import UsageError, did_you_mean
from fdllm.presets import Figures, Preset, TaskPreset
from fdllm.runs import Evaluating
from fdllm.spec import read_toml

FOLDER = Path(__file__).resolve().parent
BUILT_IN = ("published", "ancestor")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # part of a folder's name


def load_preset(given: str) -> Preset:
    """A preset by its name, or from a file of one's own.

    Raises:
        UsageError: there is none of that name, or the file cannot be read, holds an unknown key or
            a wrong value, or is named as a preset of the package is.
    """
    if given in BUILT_IN:
        return _read(FOLDER / f"{given}.toml", given)
    if not given.endswith(".toml"):
        raise UsageError(
            f"unknown preset '{given}'{did_you_mean(given, BUILT_IN)}; presets are "
            f"{', '.join(BUILT_IN)}, or a file of your own, for example ./mine.toml"
        )
    path = Path(given).expanduser()
    if path.stem in BUILT_IN or not _NAME.match(path.stem):
        raise UsageError(
            f"preset file '{given}': its name goes into folders of records; use letters, digits, "
            f"'.', '_' and '-', and none of {', '.join(BUILT_IN)}"
        )
    return _read(path, path.stem)


def _read(path: Path, name: str) -> Preset:
    data = read_toml(path, "preset ")
    if "name" in data:
        raise UsageError(f"preset {path}: unknown key 'name'; a preset is named as its file is")
    parts: dict[str, Any] = {**data, "name": name}
    if isinstance(data.get("tasks"), Mapping):
        parts["tasks"] = {
            task: TaskPreset.read(_table(table, where), where)
            for task, table in data["tasks"].items()
            for where in (f"preset {path}: [tasks.{task}]",)
        }
    if isinstance(data.get("figures"), Mapping):
        parts["figures"] = Figures.read(data["figures"], f"preset {path}: [figures]")
    preset = Preset.read(parts, f"preset {path}")
    for task in (None, *preset.tasks):
        of_task = "" if task is None else f"tasks.{task}."
        Decoding.read(preset.decoding_of(task), f"preset {path}: [{of_task}decoding]")
        asked = preset.evaluation_of(task)
        where = f"preset {path}: [{of_task}evaluation]"
        if "tasks" in asked:
            raise UsageError(f"{where}: 'tasks' belongs into experiment.toml, not into a preset")
        Evaluating.read(asked, where)
    return preset


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a table; got {value!r}")
    return value
