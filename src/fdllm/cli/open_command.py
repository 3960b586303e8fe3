"""``fdllm open``: a report in the browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from dataclasses import dataclass, replace
from pathlib import Path

from fdllm.cli.options import Command, flag
from fdllm.cli.output import say, say_json
from fdllm.cli.report import ReportCommand, page_of
from fdllm.cli.request import make_planner

_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


@dataclass(frozen=True, kw_only=True)
class OpenCommand(Command):
    """Open a report in the browser; where it is not written yet, it is written first."""

    experiment: str | None = flag(
        "whose report (the page over all experiments)",
        flags=("experiment",),
        nargs="?",
        metavar="EXPERIMENT",
    )
    model: str | None = flag("whose records, where the page is to be written", metavar="PATH_OR_ID")
    results: Path | None = flag("folder of the records (results/ of the checkout)", metavar="DIR")
    json: bool = flag("print the page's place as JSON, open nothing", default=False)

    def run(self) -> int:
        """Open the page, or name its place where there is no display."""
        options = ReportCommand(all=self.experiment is None, model=self.model, results=self.results)
        if self.experiment is not None:
            options = replace(options, experiment=self.experiment)
        page = page_of(make_planner(options), options)
        if self.json:
            say_json({"page": str(page)})
            return 0
        say(str(page))
        # Without a display a browser of the terminal would answer.
        if sys.platform in ("darwin", "win32") or any(map(os.environ.get, _DISPLAYS)):
            webbrowser.open(page.as_uri())
        return 0
