"""``fdllm new``: the next experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fdllm.cli.options import Command, flag
from fdllm.cli.output import say
from fdllm.experiment import create_experiment
from fdllm.record.paths import find_root


@dataclass(frozen=True, kw_only=True)
class NewCommand(Command):
    """Begin an experiment from the template or from another one."""

    name: str = flag("adaptive_skip, or with its number in front", flags=("name",), metavar="NAME")
    source: str | None = flag("copy its code and settings", flags=("--from",), metavar="NAME")

    def run(self) -> int:
        """Make the folder, and say what comes next."""
        root = find_root()
        folder = create_experiment(self.name, root, self.source)
        shown = folder.relative_to(root) if folder.is_relative_to(Path.cwd()) else folder
        say(
            f"made {shown}; next: write its proposal.md and, in experiment.toml, [criteria], edit "
            "generation_functions.py, then\n"
            f"  fdllm sweep --experiment {folder.name} --model tiny --limit 10"
        )
        return 0
