"""Presets: the protocols of published evaluations, as settings. ``--preset NAME | FILE.toml``.

A preset stands over an experiment's own settings and under a cell's; a flag stands over all. It is
a TOML file with ``[decoding]`` and ``[evaluation]`` tables, and ``[tasks.NAME]`` with two of the
same names where a task differs. docs/protocol.md is their page.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fdllm.spec import Spec


class TaskPreset(Spec):
    """What a preset sets for one task, over what it sets for all.

    Attributes:
        decoding: keys of :class:`fdllm.core.config.Decoding`.
        evaluation: keys of :class:`fdllm.runs.Evaluating`.
    """

    decoding: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)


class Figures(Spec):
    """Published figures that a record of the whole protocol may stand beside.

    Attributes:
        model: the checkpoint they were measured on.
        percent: accuracy by task.
    """

    model: str
    percent: dict[str, float]


class Preset(Spec):
    """The protocol of an evaluation, as settings; read by :mod:`fdllm.presets.load`.

    Attributes:
        name: as ``--preset``, folders and tables have it.
        title: what it reproduces.
        dtype: data type that the evaluation was computed in; said, and not set.
        exceptions: where a run under it differs from that evaluation all the same.
        decoding: keys of :class:`fdllm.core.config.Decoding`, for every task.
        evaluation: keys of :class:`fdllm.runs.Evaluating`, for every task.
        tasks: what is otherwise, by task.
        figures: what was published for it; None where nothing was.
    """

    name: str
    title: str = ""
    dtype: str | None = None
    exceptions: tuple[str, ...] = ()
    decoding: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)
    tasks: dict[str, TaskPreset] = Field(default_factory=dict)
    figures: Figures | None = None

    def decoding_of(self, task: str | None) -> dict[str, Any]:
        """What it sets of the decoding of a task; None is what it sets for all."""
        return self.decoding | self.tasks.get(task or "", TaskPreset()).decoding

    def evaluation_of(self, task: str | None) -> dict[str, Any]:
        """What it sets of how a task is asked; None is what it sets for all."""
        return self.evaluation | self.tasks.get(task or "", TaskPreset()).evaluation
