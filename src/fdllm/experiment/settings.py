"""The tables of ``experiment.toml``, checked; unknown keys raise and list the valid ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fdllm.core.config import Decoding, Subset
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


_POINTS = 100  # a share's points
_SENTENCES = {
    "max_accuracy_drop": ("loses at most {:g} points of accuracy", _POINTS),
    "min_speedup": ("is at least {:g} times as fast", 1),
    "min_saved_share": ("saves at least {:g} % of the layer calls", _POINTS),
    "max_truncation_rise": ("truncates at most {:g} points more", _POINTS),
    "max_repetition_rise": ("repeats itself in at most {:g} points more", _POINTS),
}
FIGURES = tuple(_SENTENCES)
"""The keys of :class:`Criteria` that state a criterion; the others say where it applies."""


class Criteria(Spec):
    """``[criteria]``: the proposal's success criteria, decided before the first full run.

    What they do not name is not judged.

    A criterion with an interval is met where the whole 95 % interval is on its good side, missed
    where the whole interval is on its bad side, and open in between.
    """

    # the config that the others are compared with; None takes the grid's first one that reuses
    # nothing
    baseline: str | None = None
    # configs that may meet the criteria; empty is every one but the baseline
    configs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()  # tasks they must be met on; empty is every task that has records
    # ``any`` config must meet them all, on every task, or ``all`` configs must
    require: Literal["any", "all"] = "any"
    # share of rows that may be lost: 0.02 is two points
    max_accuracy_drop: float | None = Field(None, ge=0.0, le=1.0)
    # the baseline's model time by the config's, on the same documents
    min_speedup: float | None = Field(None, gt=0.0)
    # share of layer calls that is not computed
    min_saved_share: float | None = Field(None, ge=0.0, le=1.0)
    # by how much the share of truncated answers may rise
    max_truncation_rise: float | None = Field(None, ge=0.0, le=1.0)
    # by how much the share of repetitive answers may rise
    max_repetition_rise: float | None = Field(None, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _states_something(self) -> Self:
        if all(getattr(self, name) is None for name in FIGURES):
            raise ValueError(f"[criteria] states none; give at least one of {', '.join(FIGURES)}")
        return self

    @property
    def words(self) -> str:
        """The criteria in a sentence."""
        parts = [
            sentence.format(scale * getattr(self, name))
            for name, (sentence, scale) in _SENTENCES.items()
            if getattr(self, name) is not None
        ]
        who = "at least one config" if self.require == "any" else "every config"
        if self.configs:
            who += f" of {', '.join(self.configs)}"
        where = f" on {', '.join(self.tasks)}" if self.tasks else " on every task"
        return f"{who} {', and '.join(parts)}{where}"


class Settings(Spec):
    """The tables of ``experiment.toml``."""

    experiment: Title = Title()  # ``title``
    # ``k`` and ``subset``: every period by every subset. Not beside ``config``.
    grid: Grid | None = None
    config: tuple[Cell, ...] = ()  # cells one by one
    decoding: Decoding = Decoding()  # see :class:`~fdllm.core.config.Decoding`
    evaluation: Evaluating = Evaluating()  # see :class:`~fdllm.runs.Evaluating`
    reuse: ReuseSettings = ReuseSettings()  # ``subset_size``, and ``params`` for the strategy
    criteria: Criteria | None = None  # see :class:`Criteria`; None where nothing is judged


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
