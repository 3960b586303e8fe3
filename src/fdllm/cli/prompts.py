"""``fdllm prompts``: what a run would send, before anything is spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from fdllm.cli.options import Selection, flag
from fdllm.cli.output import console, json_text, say
from fdllm.cli.request import read_request
from fdllm.errors import UsageError

if TYPE_CHECKING:
    from fdllm.evaluate.requests import EvalRequest
    from fdllm.runs import Run


@dataclass(frozen=True, kw_only=True)
class PromptsCommand(Selection):
    """What a run would send, without its model's weights."""

    json: bool = flag("print every prompt and its tokens as JSON", default=False)

    def run(self) -> int:
        """Build the prompts of each task's run, and show them."""
        if not self.task:
            raise UsageError("name what to look at: --task gsm8k, say, with --limit for fewer rows")
        request = read_request(self, weights=False)
        from fdllm.evaluate.preview import described, requests_of  # noqa: PLC0415 - the harness: seconds

        runs: dict[str, Run] = {}
        for run in request.runs:  # the cells of a task send the same
            runs.setdefault(run.task, run)
        built = [(run, requests_of(run)) for run in runs.values()]
        if self.json:
            entries = (described(one, run) for run, asked in built for one in asked)
            lines = (json_text(entry) for entry in entries)
            say("[\n" + ",\n".join(lines) + "\n]")
            return 0
        for run, asked in built:
            _show(run, asked)
        return 0


def _show(run: Run, asked: Sequence[EvalRequest]) -> None:
    table = Table(title=f"{run.task}: {len(asked)} prompts")
    for name in ("task", "documents", "prompt tokens", "answer tokens", "ends at"):
        table.add_column(name, justify="right" if name.endswith("s") else "left")
    for task, group in groupby(asked, key=lambda one: one.task):
        rows = list(group)
        lengths = sorted(len(one.tokens) for one in rows)
        table.add_row(
            task,
            str(len({one.doc_id for one in rows})),
            f"{lengths[0]} to {lengths[-1]}, median {median(lengths):g}",
            _answer(rows, run),
            ", ".join(map(repr, rows[0].until)) or "-",
        )
    console().print(table)
    first = asked[0]
    say(f"\nthe first, document {first.doc_id} of {first.task}:\n\n{first.prompt}")
    for one in asked:
        if one.target is not None and (one.task, one.doc_id) == (first.task, first.doc_id):
            say(f"  choice {one.index}: {one.target!r}, tokens {list(one.target_tokens)}")


def _answer(rows: Sequence[EvalRequest], run: Run) -> str:
    if rows[0].target is None:
        return f"up to {max(one.max_new_tokens for one in rows)}"
    lengths = [len(one.target_tokens) for one in rows]
    return f"{min(lengths)} to {max(lengths)}, scored by {run.evaluating.scoring}"
