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
    """What a preset sets: for one task, over what it sets for all."""

    # keys of :class:`fdllm.core.config.Decoding`
    decoding: dict[str, Any] = Field(default_factory=dict)
    # keys of :class:`fdllm.runs.Evaluating`
    evaluation: dict[str, Any] = Field(default_factory=dict)


class Figures(Spec):
    """Published figures that a record of the whole protocol may stand beside."""

    model: str  # the checkpoint they were measured on
    percent: dict[str, float]  # accuracy by task


class Preset(TaskPreset):
    """The protocol of an evaluation, as settings; read by :mod:`fdllm.presets.reader`."""

    name: str  # as ``--preset``, folders and tables have it
    title: str = ""  # what it reproduces
    dtype: str | None = None  # data type that the evaluation was computed in; said, and not set
    # where a run under it differs from that evaluation all the same
    exceptions: tuple[str, ...] = ()
    tasks: dict[str, TaskPreset] = Field(default_factory=dict)  # what is otherwise, by task
    figures: Figures | None = None  # what was published for it; None where nothing was

    def decoding_of(self, task: str | None) -> dict[str, Any]:
        """What it sets of the decoding of a task; None is what it sets for all."""
        return self.decoding | self.tasks.get(task or "", TaskPreset()).decoding

    def evaluation_of(self, task: str | None) -> dict[str, Any]:
        """What it sets of how a task is asked; None is what it sets for all."""
        return self.evaluation | self.tasks.get(task or "", TaskPreset()).evaluation
