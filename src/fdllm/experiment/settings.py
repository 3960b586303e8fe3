"""The tables of ``experiment.toml``, checked; unknown keys raise and list the valid ones."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from fdllm.core.config import Decoding, Subset
from fdllm.errors import UsageError
from fdllm.experiment.criteria import Criteria
from fdllm.runs import Cell, Evaluating
from fdllm.spec import Spec


class Title(Spec):
    """``[experiment]``: what it is called in reports."""

    title: str = ""


class Grid(Spec):
    """``[grid]``: every period by every subset."""

    k: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    subset: tuple[Subset, ...] = Field(("first", "middle", "last"), min_length=1)


class ReuseSettings(Spec):
    """``[reuse]``: size of the subsets, and parameters for the strategy."""

    subset_size: int | None = Field(None, ge=1)
    params: dict[str, Any] = Field(default_factory=dict)


class Settings(Spec):
    """The tables of ``experiment.toml``.

    Attributes:
        experiment: ``title``.
        grid: ``k`` and ``subset``: every period by every subset. Not beside ``config``.
        config: cells one by one.
        decoding: see :class:`~fdllm.core.config.Decoding`.
        evaluation: see :class:`~fdllm.runs.Evaluating`.
        reuse: ``subset_size``, and ``params`` for the strategy.
        criteria: see :class:`~fdllm.experiment.criteria.Criteria`; None where nothing is judged.
    """

    experiment: Title = Title()
    grid: Grid | None = None
    config: tuple[Cell, ...] = ()
    decoding: Decoding = Decoding()
    evaluation: Evaluating = Evaluating()
    reuse: ReuseSettings = ReuseSettings()
    criteria: Criteria | None = None


def read_settings(path: Path) -> Settings:
    """Read ``experiment.toml``.

    Raises:
        UsageError: absent, not TOML, an unknown key, a wrong value, or two cells of one name.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    kinds: Mapping[str, type[Spec]] = {
        "experiment": Title, "grid": Grid, "decoding": Decoding,
        "evaluation": Evaluating, "reuse": ReuseSettings, "criteria": Criteria,
    }  # fmt: skip
    parts: dict[str, Any] = {
        key: kinds[key].read(value, f"{path}: [{key}]")
        if key in kinds and isinstance(value, Mapping)
        else value
        for key, value in data.items()
    }
    if isinstance(data.get("config"), list):
        parts["config"] = tuple(Cell.read(c, f"{path}: [[config]]") for c in data["config"])
    settings = Settings.read(parts, str(path))
    if settings.grid and settings.config:
        raise UsageError(f"{path} has both [grid] and [[config]]; leave one")
    names = [cell.name for cell in settings.config]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{path} has two configs named {', '.join(twice)}; names are folders")
    return settings
