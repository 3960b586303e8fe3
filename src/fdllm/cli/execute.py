"""Does the chosen runs on this machine, one after the other, and says how each one ends."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from fdllm.cli.progress import GridProgress
from fdllm.cli.work import Work
from fdllm.cluster.signals import terminable
from fdllm.evaluate.humaneval import check_consent
from fdllm.evaluate.runner import Outcome, Runner, Worker
from fdllm.evaluate.tasks import task_info
from fdllm.plan import Planner, State
from fdllm.runs import ModelChoice


def load_machine(choice: ModelChoice, threads: int | None) -> Worker:
    """Load a checkpoint; torch and the harness come in here, where something is computed."""
    from fdllm.evaluate.machine import Machine  # noqa: PLC0415

    return Machine.load(choice, threads)


def check_device(device: str) -> None:
    """A device that was asked for by name must be there, also where there is nothing to compute.

    Raises:
        UsageError: it is none, or not on this machine.
    """
    if device not in ("auto", "cpu"):
        from fdllm.core.checkpoint import resolve_device  # noqa: PLC0415 - torch: only where asked

        resolve_device(device)


def execute(planner: Planner, work: Sequence[Work], threads: int | None) -> list[Outcome]:
    """Compute ``work``; what is computed is durable at every moment.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; what is left is said first.
        UsageError: a run executes what the model writes, and nobody agreed to that.
        FdllmError: no run can be computed: the model cannot be loaded, say.
    """
    for one in work:
        check_consent(task_info(one.cell.run.task), one.cell.run.code_execution)
    if not work:
        return []
    console = Console(stderr=True)
    outcomes: list[Outcome] = []
    with terminable(), GridProgress(len(work), console) as watch:
        runner = Runner(planner, watch, lambda choice: load_machine(choice, threads))
        try:
            for one in work:
                outcomes.append(runner.run(one.cell.run, force=one.force))
                watch.end(outcomes[-1])
        except KeyboardInterrupt:
            done = sum(outcome.state is State.DONE for outcome in outcomes)
            kept = _kept(planner, work[len(outcomes) :])
            watch.note(
                f"interrupted: {done} of {len(work)} runs done{kept}; the same command goes on here"
            )
            raise
    return outcomes


def _kept(planner: Planner, rest: Sequence[Work]) -> str:
    """What the run in flight leaves behind."""
    if not rest:
        return ""
    now = planner.state(rest[0].cell.run)
    return f", {now.reason} of {now.run.cell.name} kept" if now.done else ""
