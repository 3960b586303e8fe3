"""The commands. Each reads as a list of verbs."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

from fdllm.cli import show
from fdllm.cli.bench import run_bench
from fdllm.cli.compare import run_compare
from fdllm.cli.doctor import run_doctor
from fdllm.cli.execute import check_device, execute
from fdllm.cli.export import run_export
from fdllm.cli.grade import run_grade
from fdllm.cli.job import run_job
from fdllm.cli.output import say
from fdllm.cli.prefetch import run_prefetch
from fdllm.cli.prompts import run_prompts
from fdllm.cli.report import run_report
from fdllm.cli.request import read_request
from fdllm.cli.selftest import run_selftest
from fdllm.cli.slurm import choose_executor, run_slurm
from fdllm.cli.trace import run_trace
from fdllm.cli.watch import live_states, run_status, show_status
from fdllm.cli.work import choose_work, forced_configs, unfinished
from fdllm.errors import UsageError
from fdllm.experiment import create_experiment
from fdllm.record.paths import find_root

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def run_eval(args: Namespace) -> int:
    """One run."""
    if len(args.task or ()) != 1 or len(args.config or ()) != 1:
        raise UsageError(
            "one run needs one --task and one --config, for example --task gsm8k --config "
            "k2_middle; several are a sweep: fdllm sweep"
        )
    request = read_request(args)
    check_device(args.device)
    cells = request.states()
    work = choose_work(cells, force=[] if args.force else None)
    if not work:
        show.nothing_to_do(cells, as_json=args.json)
    outcomes = execute(request.planner, work, args)
    cells = request.states()
    show.cells(cells, as_json=args.json)
    return show.exit_code(cells, outcomes)


def run_sweep(args: Namespace) -> int:
    """A grid: only what is missing."""
    request = read_request(args, forced_configs(args.force))
    show.overlaps(request)
    cells = request.states()
    if args.status:
        show_status(live_states(request), as_json=args.json)
        show.elsewhere(request)
        return 0
    if choose_executor(args) == "slurm":
        return run_slurm(request, args)
    work = choose_work(cells, force=args.force)
    if args.dry_run:
        show.plan(cells, work, as_json=args.json)
        return 0
    check_device(args.device)
    if not work:
        show.nothing_to_do(cells, as_json=args.json)
    outcomes = execute(request.planner, work, args)
    cells = request.states()
    show.cells(cells, as_json=args.json)
    show.what_is_left(unfinished(cells), args)
    return show.exit_code(cells, outcomes)


def run_validate(args: Namespace) -> int:
    """The whole grid on the embedded model, small and offline."""
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    code = run_sweep(args)
    if not (args.status or args.dry_run or args.json):
        show.verdict(code)
    return code


def run_new(args: Namespace) -> int:
    """The next experiment."""
    root = find_root()
    folder = create_experiment(args.name, root, args.source)
    shown = folder.relative_to(root) if folder.is_relative_to(Path.cwd()) else folder
    say(
        f"made {shown}; next: write its proposal.md, edit generation_functions.py, then\n"
        f"  fdllm sweep --experiment {folder.name} --model tiny --limit 10"
    )
    return 0


COMMANDS: Mapping[str, Callable[[Namespace], int]] = {
    "eval": run_eval,
    "sweep": run_sweep,
    "validate": run_validate,
    "status": run_status,
    "compare": run_compare,
    "report": run_report,
    "new": run_new,
    "trace": run_trace,
    "prompts": run_prompts,
    "grade": run_grade,
    "export": run_export,
    "bench": run_bench,
    "doctor": run_doctor,
    "selftest": run_selftest,
    "prefetch": run_prefetch,
    "job": run_job,
}
