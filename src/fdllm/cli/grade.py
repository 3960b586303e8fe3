"""``fdllm grade``: anyone's answers, by the filters and metrics of a run."""

from __future__ import annotations

import argparse
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from fdllm import strictjson
from fdllm.cli.output import say
from fdllm.cli.request import read_request
from fdllm.errors import UsageError


def grade_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that only ``grade`` has."""
    parser.add_argument(
        "--answers",
        required=True,
        metavar="FILE",
        help='a line a document: {"doc_id": 0, "text": "..."}, and "task" (the subtask) where the '
        "task is a group; documents without an answer are left out",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_grade(args: Namespace) -> int:
    """Grade a file; no model is loaded."""
    if len(args.task or ()) != 1:
        raise UsageError("answers belong to one task: --task gsm8k --answers FILE, say")
    request = read_request(args, weights=False)
    from fdllm.evaluate.grading import grade  # noqa: PLC0415 - the harness: seconds

    run = request.planner.runs(request.sweep)[0]
    found = grade(run, Path(args.answers).expanduser())
    if args.json:
        say(strictjson.dumps(asdict(found), indent=2))
        return 0
    say(f"{run.task}: {found.metric} {found.value:.4f} over {found.num_samples} documents")
    for name, value in found.metrics.items():
        if name != found.metric:
            say(f"  {name} {value:.4f}")
    return 0
