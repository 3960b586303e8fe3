"""Which finished records a command means that reads them and computes no run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fdllm.cli.options import Command, flag, number
from fdllm.presets.reader import load_preset
from fdllm.record.paths import Layout, TaskFolder, find_root, model_slug
from fdllm.report.records import record_folders
from fdllm.runs import home_model


@dataclass(frozen=True, kw_only=True)
class Recorded(Command):
    """Records of one limit, preset and model."""

    limit: int | None = flag(
        "records cut to N rows (uncut)", type=number(int, "a whole number", 0), metavar="N"
    )
    preset: str | None = flag(
        "records under this preset (those of the experiment's own)", metavar="P"
    )
    model: str | None = flag("(the only one that has records)", metavar="PATH_OR_ID")
    results: Path | None = flag("folder of the records (results/)", metavar="DIR")

    @property
    def layout(self) -> Layout:
        """Where records lie."""
        return Layout.of(find_root(), self.results)

    def fitting(self, experiment: str, task: str | None) -> list[dict[str, Path]]:
        """Records that fit: of each task folder, by config; None is every task."""
        model = self.model or os.environ.get("FDLLM_MODEL")
        preset = None if self.preset is None else load_preset(self.preset).name
        found: dict[str, dict[str, Path]] = {}
        for folder in record_folders(self.layout, experiment):
            place = TaskFolder.parse(folder.parent.name)
            if place is None:
                continue
            own = None if model is None or model == home_model(place.task) else model_slug(model)
            fits = (place.limit, place.preset) == (self.limit, preset)
            if fits and task in (None, place.task) and (model is None or place.model == own):
                found.setdefault(folder.parent.name, {})[folder.name] = folder
        return list(found.values())

    def nothing(self, experiment: str, task: str | None, what: str) -> str:
        """What was asked for and what there is."""
        place = self.layout.results / experiment
        folders = record_folders(self.layout, experiment)
        names = [Path(*self.layout.part(folder).parts[1:]).as_posix() for folder in folders]
        limit = "without a limit" if self.limit is None else f"of limit {self.limit}"
        if self.preset is not None:
            limit += f" under preset {self.preset}"
        of = "" if task is None else f" of {task}"
        shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")  # noqa: PLR2004 - a few lines
        return (
            f"no finished records{of} {limit}{what} in {place}; there are "
            f"{shown or 'none: sweep first'}"
        )
