"""A task, instantiated as a run does it: documents, prompts, metric and what they import."""

from __future__ import annotations

from fdllm.doctor.findings import Finding, fail, ok
from fdllm.errors import FdllmError
from fdllm.evaluate.tasks import task_info
from fdllm.runs import Sweep


def check_task(name: str, sweep: Sweep) -> list[Finding]:
    """Load a task from the cache; where its programs may run, try their confinement out.

    Raises:
        FdllmError: the task's name is unknown.
    """
    try:
        found = [ok(f"task {name}", f"{_load(name, sweep)}, from the cache")]
    except FdllmError as error:
        said = str(error).partition("; ")[0].removeprefix(f"task '{name}' ")
        return [fail(f"task {name}", said, _remedy(name, str(error)))]
    if task_info(name).runs_code and sweep.code_execution != "refused":
        found.append(_sandbox(name, sweep))
    return found


def fetch_task(name: str, sweep: Sweep) -> list[Finding]:
    """Load a task with the network, which leaves in the caches all that it takes.

    Raises:
        FdllmError: it cannot be had; the message says why, and what to do.
    """
    return [ok(f"task {name}", _load(name, sweep))]


def _load(name: str, sweep: Sweep) -> str:
    from fdllm.evaluate.documents import load_task  # noqa: PLC0415 - the harness: seconds
    from fdllm.evaluate.harness import quiet  # noqa: PLC0415

    with quiet():
        loaded = load_task(name, sweep.asked(name), code_execution=sweep.code_execution)
        rows = sum(len(leaf.eval_docs) for leaf in loaded.leaves.values())
    subtasks = f" of {len(loaded.leaves)} subtasks" if len(loaded.leaves) > 1 else ""
    return f"{rows} documents{subtasks}, prompts and metric"


def _remedy(name: str, said: str) -> str:
    if task_info(name).dataset is not None and "not in the cache" in said:
        return f"where there is a network, with the same HF_HOME: fdllm prefetch --task {name}" + (
            " (gated: see the line on access)" if task_info(name).gated else ""
        )
    return said.partition("; ")[2] or f"fdllm prefetch --task {name}, then try again"


def _sandbox(name: str, sweep: Sweep) -> Finding:
    from fdllm.evaluate.humaneval import prove  # noqa: PLC0415
    from fdllm.sandbox.confinement import Sandbox  # noqa: PLC0415

    sandbox = Sandbox(sweep.code_execution)
    try:
        prove(sandbox)
    except FdllmError as error:
        found, _, remedy = str(error).partition("; ")
        return fail(f"sandbox {name}", found, remedy or "score this task on another machine")
    return ok(f"sandbox {name}", f"programs are confined here ({sandbox.isolation})")
