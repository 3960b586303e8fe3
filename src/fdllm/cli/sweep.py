"""``fdllm eval``, ``sweep`` and ``validate``: runs, on this machine or through the queue."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from dataclasses import dataclass

from fdllm.caches import OFFLINE
from fdllm.cli import show
from fdllm.cli.execute import check_device, execute
from fdllm.cli.options import Computing, flag
from fdllm.cli.request import read_request
from fdllm.cli.slurm import SweepOptions, choose_executor, run_slurm
from fdllm.cli.watch import live_states, show_status
from fdllm.cli.work import choose_work
from fdllm.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Computing):
    """What ``eval`` is given besides its run."""

    force: bool = flag("compute it anew; the old record is kept aside", default=False)
    json: bool = flag("print the cell as JSON", default=False)


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(SweepOptions):
    """What ``validate`` is given: those of ``sweep``, for ten rows on the embedded model."""

    @classmethod
    def add_flags(cls, parser: ArgumentParser) -> None:
        """The same flags with other defaults."""
        super().add_flags(parser)
        parser.set_defaults(model="tiny", limit=10, executor="local")


def run_eval(options: EvalOptions) -> int:
    """One run."""
    if len(options.task or ()) != 1 or len(options.config or ()) != 1:
        raise UsageError(
            "one run needs one --task and one --config, for example --task gsm8k --config "
            "k2_middle; several are a sweep: fdllm sweep"
        )
    request = read_request(options)
    check_device(options.device)
    cells = request.states()
    work = choose_work(cells, force=() if options.force else None)
    if not work:
        show.nothing_to_do(cells, as_json=options.json)
    outcomes = execute(request.planner, work, options.threads)
    cells = request.states()
    show.cells(cells, as_json=options.json)
    return show.exit_code(cells, outcomes)


def run_sweep(options: SweepOptions) -> int:
    """A grid: only what is missing."""
    # Configs named behind --force are the selection where there is no --config.
    request = read_request(options, options.force or ())
    show.overlaps(request)
    cells = request.states()
    if options.status:
        show_status(live_states(request), as_json=options.json)
        show.elsewhere(request)
        return 0
    if choose_executor(options) == "slurm":
        return run_slurm(request, options)
    work = choose_work(cells, force=options.force)
    if options.dry_run:
        show.plan(cells, work, as_json=options.json)
        return 0
    check_device(options.device)
    if not work:
        show.nothing_to_do(cells, as_json=options.json)
    outcomes = execute(request.planner, work, options.threads)
    cells = request.states()
    show.cells(cells, as_json=options.json)
    if not options.json:
        show.what_is_left(cells)
    return show.exit_code(cells, outcomes)


def run_validate(options: SweepOptions) -> int:
    """The whole grid on the embedded model, small and offline."""
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    code = run_sweep(options)
    if not (options.status or options.dry_run or options.json):
        show.verdict(code)
    return code
