"""``[criteria]``: what would confirm an experiment, stated and locked before its first row."""

from __future__ import annotations

import hashlib
import json
from typing import Literal, Self

from pydantic import Field, model_validator

from fdllm.spec import Spec

_POINTS = 100  # a share's points
_SENTENCES = {
    "max_accuracy_drop": ("loses at most {:g} points of accuracy", _POINTS),
    "min_speedup": ("is at least {:g} times as fast", 1),
    "min_saved_share": ("makes at least {:g} % fewer layer calls than the baseline", _POINTS),
    "max_truncation_rise": ("truncates at most {:g} points more", _POINTS),
    "max_repetition_rise": ("repeats itself in at most {:g} points more", _POINTS),
}
FIGURES = tuple(_SENTENCES)
"""The keys of :class:`Criteria` that state a criterion; the others say where it applies."""
RISES = ("max_truncation_rise", "max_repetition_rise")
"""Those of them that only texts have."""
INTERVALS = ("max_accuracy_drop", "min_speedup", *RISES)
"""Those of them that a sample decides; the others are counted."""
ALPHA = 0.05
"""How often a verdict may be wrong."""


class Criteria(Spec):
    """``[criteria]``: the proposal's success criteria, decided before the first full run.

    What they do not name is not judged.

    A criterion with an interval is met where the whole 95 % interval is on its good side, missed
    where the whole interval is on its bad side, and open in between. Where any one of several
    configs may confirm, Holm's adjustment over them stands between "met" and "confirmed".
    """

    # the config that the others are compared with; None takes the grid's first one that reuses
    # nothing
    baseline: str | None = None
    # a config that must be matched instead: accuracy and time are judged against it, all that is
    # shown stays against the baseline. A table names one for each config: ``{k2_line = "k2"}``.
    rival: str | dict[str, str] | None = None
    # configs that may meet the criteria; empty is every one but the baseline and the rivals
    configs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()  # tasks they must be met on; empty is every task that has records
    # ``any`` config must meet them all, on every task, or ``all`` configs must
    require: Literal["any", "all"] = "any"
    # share of rows that may be lost: 0.02 is two points
    max_accuracy_drop: float | None = Field(None, ge=0.0, le=1.0)
    # share of rows that one side has right and the other wrong, as far as it is expected; by it the
    # rows are counted that ``max_accuracy_drop`` needs
    discordant_share: float = Field(0.10, gt=0.0, le=1.0)
    # the baseline's model time by the config's, by the timing study
    min_speedup: float | None = Field(None, gt=0.0)
    # share of the baseline's layer calls that is not made, on the same documents
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

    @model_validator(mode="after")
    def _rivals_can_act(self) -> Self:
        if self.rivals and self.max_accuracy_drop is None and self.min_speedup is None:
            raise ValueError(
                "[criteria] names a rival, and only max_accuracy_drop and min_speedup are judged "
                "against one; state one of them, or leave rival out"
            )
        return self

    @property
    def rivals(self) -> tuple[str, ...]:
        """The configs that others are judged against."""
        named = self.rival.values() if isinstance(self.rival, dict) else [self.rival]
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def rival_of(self, config: str) -> str | None:
        """Whom a config is judged against; None is the baseline."""
        named = self.rival.get(config) if isinstance(self.rival, dict) else self.rival
        return None if named == config else named

    @property
    def names(self) -> tuple[str, ...]:
        """Every config that is named, wherever."""
        judged = self.rival if isinstance(self.rival, dict) else ()
        base = () if self.baseline is None else (self.baseline,)
        return tuple(dict.fromkeys((*self.configs, *base, *judged, *self.rivals)))

    def levels(self, num_configs: int, num_tasks: int) -> tuple[float, float]:
        """Two-sided levels at which one cell's criterion counts as met, and as missed.

        A verdict is wrong in at most 5 % of experiments. One config of several may confirm, so they
        share (Bonferroni's share, with which Holm begins); its tasks do not, as it must meet all of
        them. One criterion missed on one task refutes a config, so these share; where all configs
        must meet the criteria, one config refutes the experiment, and they share too.
        """
        intervals = sum(getattr(self, name) is not None for name in INTERVALS)
        chances = max(1, num_tasks) * max(1, intervals)
        several = self.require == "any", self.require == "all"
        return (
            ALPHA / (max(1, num_configs) if several[0] else 1),
            ALPHA / chances / (max(1, num_configs) if several[1] else 1),
        )

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
        if isinstance(self.rival, dict):
            pairs = ", ".join(f"{config} against {other}" for config, other in self.rival.items())
            where += f" (accuracy and time of {pairs})"
        elif self.rival is not None:
            where += f" (accuracy and time against {self.rival})"
        return f"{who} {', and '.join(parts)}{where}"


NO_CRITERIA = "none"


def criteria_text(criteria: Criteria | None) -> str:
    """The table as canonical JSON, without keys at their defaults; ``none`` where there is none."""
    if criteria is None:
        return NO_CRITERIA
    return json.dumps(criteria.model_dump(mode="json", exclude_defaults=True), sort_keys=True)


def criteria_lock(text: str) -> str:
    """What stands for a text of :func:`criteria_text` in a record: 12 hex digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
