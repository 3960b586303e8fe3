"""``[criteria]`` of ``experiment.toml``: the proposal's success criteria, as a report reads them.

They are decided before the first full run. What they do not name is not judged.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fdllm.spec import Spec

FIGURES = (
    "max_accuracy_drop",
    "min_speedup",
    "min_saved_share",
    "max_truncation_rise",
    "max_repetition_rise",
)
"""The keys that state a criterion; the others say where it applies."""


class Criteria(Spec):
    """What would count as success.

    A criterion with an interval is met where the whole 95 % interval is on its good side, missed
    where the whole interval is on its bad side, and open in between.

    Attributes:
        baseline: the config that the others are compared with; None takes the grid's first one
            that reuses nothing.
        configs: configs that may meet the criteria; empty is every one but the baseline.
        tasks: tasks they must be met on; empty is every task that has records.
        require: ``any`` config must meet them all, on every task, or ``all`` configs must.
        max_accuracy_drop: share of rows that may be lost: 0.02 is two points.
        min_speedup: the baseline's model time by the config's, on the same documents.
        min_saved_share: share of layer calls that is not computed.
        max_truncation_rise: by how much the share of truncated answers may rise.
        max_repetition_rise: by how much the share of repetitive answers may rise.
    """

    baseline: str | None = None
    configs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    require: Literal["any", "all"] = "any"
    max_accuracy_drop: float | None = Field(None, ge=0.0, le=1.0)
    min_speedup: float | None = Field(None, gt=0.0)
    min_saved_share: float | None = Field(None, ge=0.0, le=1.0)
    max_truncation_rise: float | None = Field(None, ge=0.0, le=1.0)
    max_repetition_rise: float | None = Field(None, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _states_something(self) -> Self:
        if all(getattr(self, name) is None for name in FIGURES):
            raise ValueError(f"[criteria] states none; give at least one of {', '.join(FIGURES)}")
        return self

    @property
    def words(self) -> str:
        """The criteria in a sentence."""
        parts = []
        if self.max_accuracy_drop is not None:
            parts.append(f"loses at most {100 * self.max_accuracy_drop:g} points of accuracy")
        if self.min_speedup is not None:
            parts.append(f"is at least {self.min_speedup:g} times as fast")
        if self.min_saved_share is not None:
            parts.append(f"saves at least {100 * self.min_saved_share:g} % of the layer calls")
        if self.max_truncation_rise is not None:
            parts.append(f"truncates at most {100 * self.max_truncation_rise:g} points more")
        if self.max_repetition_rise is not None:
            parts.append(
                f"repeats itself in at most {100 * self.max_repetition_rise:g} points more"
            )
        who = "at least one config" if self.require == "any" else "every config"
        if self.configs:
            who += f" of {', '.join(self.configs)}"
        where = f" on {', '.join(self.tasks)}" if self.tasks else " on every task"
        return f"{who} {', and '.join(parts)}{where}"
