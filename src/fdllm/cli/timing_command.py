"""``fdllm timing``: how much time does a config take, in one study of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fdllm.cli import studies, sweep
from fdllm.cli.options import Placed, Selection, flag
from fdllm.cli.output import say, say_json
from fdllm.cli.pace import check_pace
from fdllm.cli.request import read_request
from fdllm.errors import UsageError
from fdllm.record.study import Study
from fdllm.timing.wanted import DOCUMENTS, REPEATS, want_studies


@dataclass(frozen=True, kw_only=True)
class TimingCommand(Placed, Selection):
    """How much time each config takes: a study in which they answer in turn."""

    docs: int | None = flag(
        f"documents, drawn at random ({DOCUMENTS}, or the limit)", group="what", metavar="N"
    )
    repeats: int = flag(
        f"times that each config answers a document ({REPEATS})",
        default=REPEATS,
        group="what",
        metavar="R",
    )
    json: bool = flag("print the pairs as JSON", default=False)

    def run(self) -> int:
        """Take each task's study, and show it; no record is needed.

        Raises:
            UsageError: no config of the tasks could differ from the baseline.
        """
        request = read_request(self)
        wanted = want_studies(request.planner, request.sweep, self.docs, self.repeats)
        if not wanted:
            raise UsageError(
                f"nothing to time: no config asked for of {request.sweep.experiment} can take "
                f"another time than its baseline on {', '.join(request.sweep.tasks)}; fdllm status "
                "says why each is not applicable"
            )

        for one in wanted:
            check_pace(request, [*one.runs.values()] * one.repeats, one.number)
        load = cache(lambda choice: sweep.load_model(choice, self.threads))
        taken = list[Study]()
        for one in wanted:
            taken.append(studies.take(request.planner, one, load))
            if not self.json:
                studies.print_study(taken[-1])
                say(f"kept in {request.planner.layout.timing(one.baseline)[0]}\n")
        if self.json:
            say_json(studies.as_dict(taken))
        return 0
