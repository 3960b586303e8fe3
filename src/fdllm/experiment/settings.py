"""The tables of ``experiment.toml``, checked; unknown keys raise and list the valid ones."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from fdllm.core.config import Decoding, Subset
from fdllm.criteria import Criteria
from fdllm.errors import UsageError
from fdllm.runs import Cell, Evaluating
from fdllm.spec import Spec, read_toml


class Title(Spec):
    """``[experiment]``: what it is called in reports."""

    title: str = ""


Values = Annotated[tuple[Any, ...], Field(min_length=1)]
"""What a grid tries of one parameter or setting."""


class Grid(Spec):
    """``[grid]``: every period by every subset, by every value of any other key.

    Any other key is a parameter of the strategy. A cell is ``k2_middle``, with ``_drafts3`` behind
    it for each parameter or setting that has several values. Where other periods stand beside it,
    k = 1 is the exact baseline, which no parameter touches: it is there once.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Values]

    k: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    subset: tuple[Subset, ...] = Field(("first", "middle", "last"), min_length=1)
    decoding: dict[str, Values] = Field(default_factory=dict)  # settings, each a list too

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Its configs, in the order of tables."""
        cells = []
        for k, subset, decoding in product(self.k, self.subset, _each(self.decoding)):
            exact = k == 1 and max(self.k) > 1
            for params in [{}] if exact else _each(self.__pydantic_extra__):
                given = (params, self.__pydantic_extra__), (decoding, self.decoding)
                suffix = "".join(
                    f"_{name}{str(value).lower() if isinstance(value, bool) else value}"
                    for chosen, tried in given
                    for name, value in chosen.items()
                    if len(tried[name]) > 1
                )
                both = {"params": params, "decoding": decoding}
                cells.append(Cell.of(k, subset, suffix).model_copy(update=both))
        return tuple(cells)


def _each(values: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Every choice of one value for each name."""
    return [dict(zip(values, choice, strict=True)) for choice in product(*values.values())]


class ReuseSettings(Spec):
    """``[reuse]``: size of the subsets, and parameters for the strategy."""

    subset_size: int | None = Field(None, ge=1)
    params: dict[str, Any] = Field(default_factory=dict)


class Settings(Spec):
    """The tables of ``experiment.toml``."""

    experiment: Title = Title()  # ``title``
    # every period by every subset, by every value of what else it names; None is none of them
    # where there are cells one by one
    grid: Grid | None = None
    config: tuple[Cell, ...] = ()  # cells one by one, behind the grid's
    decoding: Decoding = Decoding()  # see :class:`~fdllm.core.config.Decoding`
    evaluation: Evaluating = Evaluating()  # see :class:`~fdllm.runs.Evaluating`
    reuse: ReuseSettings = ReuseSettings()  # ``subset_size``, and ``params`` for the strategy
    criteria: Criteria | None = (
        None  # see :class:`~fdllm.criteria.Criteria`; None where nothing is judged
    )

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The configs, in the order of tables."""
        grid = self.grid or (None if self.config else Grid())
        return (*(grid.cells if grid else ()), *self.config)


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
    try:
        names = [cell.name for cell in settings.cells]
    except ValidationError as error:
        name = error.errors()[0]["input"]["name"]
        raise UsageError(
            f"{path}: [grid]: '{name}' would name a folder, which letters, digits and . _ + - can; "
            "give a value that takes others a [[config]] of its own"
        ) from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{path} has two configs named {', '.join(twice)}; names are folders")
    return settings
