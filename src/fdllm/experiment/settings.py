"""The tables of ``experiment.toml``, checked; unknown keys raise and list the valid ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from fdllm.core.config import Decoding, Subset
from fdllm.criteria import Criteria
from fdllm.errors import UsageError
from fdllm.runs import Cell, Evaluating
from fdllm.spec import Spec, read_toml


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
    """The tables of ``experiment.toml``."""

    experiment: Title = Title()  # ``title``
    # ``k`` and ``subset``: every period by every subset. Not beside ``config``.
    grid: Grid | None = None
    config: tuple[Cell, ...] = ()  # cells one by one
    decoding: Decoding = Decoding()  # see :class:`~fdllm.core.config.Decoding`
    evaluation: Evaluating = Evaluating()  # see :class:`~fdllm.runs.Evaluating`
    reuse: ReuseSettings = ReuseSettings()  # ``subset_size``, and ``params`` for the strategy
    criteria: Criteria | None = (
        None  # see :class:`~fdllm.criteria.Criteria`; None where nothing is judged
    )


def read_settings(path: Path) -> Settings:
    """Read ``experiment.toml``.

    Raises:
        UsageError: absent, not TOML, an unknown key, a wrong value, or two cells of one name.
    """
    data = read_toml(path)
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
