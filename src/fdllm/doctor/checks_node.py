"""What only the environment of a run can tell: versions, source, folders, and its tasks.

A task is instantiated as a run does it: documents, prompts, metric and what they import.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fdllm.doctor.checks_here import existing
from fdllm.doctor.findings import Checkup, Finding, fail, ok, warn
from fdllm.errors import FdllmError, few
from fdllm.evaluate.tasks import task_info
from fdllm.plain import one_line
from fdllm.record.identity import source_hashes
from fdllm.runs import Sweep

_SHOWN = 3


def versions(checkup: Checkup) -> Iterator[Finding]:
    """Whether every package has the version of the checkout's ``requirements.lock``."""
    try:
        text = (checkup.root / "requirements.lock").read_text(encoding="utf-8")
    except OSError:
        yield warn(
            "versions",
            "the checkout has no requirements.lock to compare with",
            "run from a whole checkout, or set FDLLM_ROOT to one",
        )
        return
    lines = [line.split("#")[0].split(";")[0].strip().rstrip("\\") for line in text.splitlines()]
    pins = [
        (name.strip(), pin.strip()) for name, _, pin in (s.partition("==") for s in lines) if pin
    ]
    ahead = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    wrong = [other for name, pinned in pins if (other := _other(name, pinned, ahead))]
    if any(f" from {one}" in text for text in wrong for one in ahead):
        yield fail(
            "versions",
            few(wrong, _SHOWN),
            "PYTHONPATH puts that ahead of this environment: unset it here, or in the lines of "
            "setup in fdllm.toml where a job's module sets it",
        )
    elif wrong:
        yield fail(
            "versions",
            few(wrong, _SHOWN),
            "pip install -c requirements.lock -e . in this environment, or build the image anew",
        )
    else:
        yield ok("versions", f"all {len(pins)} packages are at the locked version")


def _other(name: str, pinned: str, ahead: Sequence[str]) -> str:
    """What an import would load in the place of a locked package; empty where it is that one.

    In folders ``ahead`` of the environment a module may lie that says no version.
    """
    locked = f"(locked: {pinned})"
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return f"{name} not installed {locked}"
    place = Path(str(package.locate_file("")))
    # A local label (+cpu) is the kind of machine, not another release.
    here, _, _ = package.version.partition("+")
    if here != pinned.partition("+")[0]:
        return f"{name} {here} from {place} {locked}"
    for file in package.files or () if ahead else ():
        if len(file.parts) == len(("module", "file")) and file.name == "__init__.py":
            spec = find_spec(file.parts[0])
            origin = Path(spec.origin) if spec and spec.origin else place
            if any(origin.is_relative_to(one) for one in ahead if Path(one) != place):
                return f"{name} from {origin.parents[1]}, of whatever version {locked}"
    return ""


def source(checkup: Checkup) -> Iterator[Finding]:
    """Whether the code here is the checkout's."""
    here, checkout = source_hashes(), checkup.source
    differ = sorted(n for n in {*here, *checkout} if here.get(n) != checkout.get(n))
    if not differ:
        yield ok("source", f"the checkout's, {len(here)} files")
        return
    image = checkup.image is not None
    what = "the image was built from" if image else "this interpreter imports"
    yield fail(
        "source",
        f"{what} other code than the checkout's: {few(differ, _SHOWN)} differ, so "
        "its records would read stale here",
        "build the image from this checkout (nox -s container), or check out its commit"
        if image
        else "start the command from the environment of this checkout",
    )


def folders(checkup: Checkup) -> Iterator[Finding]:
    """Try them: permissions, quotas, read-only binds and missing locks all show only then."""
    layout = checkup.layout
    for folder in (layout.results, layout.artifacts, layout.logs):
        place, name = existing(folder), f"folder {folder.name}"
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"0" * 4096)
                unlocked = _try_lock(file.fileno())
        except OSError as error:
            yield fail(
                name,
                f"{place} cannot be written to ({error.strerror})",
                "make it writable, bind it into the image, or choose another folder with --results",
            )
            continue
        if unlocked and folder != layout.artifacts:  # where nobody locks
            yield fail(
                name,
                f"files in {place} cannot be locked ({unlocked}), so no run may write there",
                "choose a folder on another file system with --results, or ask the site to mount "
                "this one with flock",
            )
        else:
            yield ok(name, f"{folder} can be written to")


def _try_lock(file: int) -> str:
    """Why a file cannot be locked as a run's folder is; empty where it can."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def check_task(name: str, checkup: Checkup) -> Iterator[Finding]:
    """Load a task from the cache; where its programs may run, try their confinement out.

    Raises:
        FdllmError: the task's name is unknown.
    """
    try:
        yield ok(f"task {name}", f"{_load(name, checkup.sweep)}, from the cache")
    except FdllmError as error:
        said = str(error).partition("; ")[0].removeprefix(f"task '{name}' ")
        yield fail(f"task {name}", said, _remedy(name, str(error), checkup.sweep))
        return
    if (
        task_info(name, checkup.sweep.include).runs_code
        and checkup.sweep.code_execution != "refused"
    ):
        yield _sandbox(name, checkup.sweep)


def fetch_task(name: str, checkup: Checkup) -> Iterator[Finding]:
    """Load a task with the network, which leaves in the caches all that it takes.

    Raises:
        FdllmError: it cannot be had; the message says why, and what to do.
    """
    sys.stderr.write(one_line(f"task {name}: fetching what it needs") + "\n")
    yield ok(f"task {name}", _load(name, checkup.sweep))


def _load(name: str, sweep: Sweep) -> str:
    from fdllm.evaluate.documents import load_task, quiet  # noqa: PLC0415 - the harness: seconds

    with quiet():
        loaded = load_task(
            name, sweep.asked(name), code_execution=sweep.code_execution, include=sweep.include
        )
        rows = sum(len(leaf.eval_docs) for leaf in loaded.leaves.values())
    subtasks = f" of {len(loaded.leaves)} subtasks" if len(loaded.leaves) > 1 else ""
    return f"{rows} documents{subtasks}, prompts and metric"


def _remedy(name: str, said: str, sweep: Sweep) -> str:
    if task_info(name, sweep.include).dataset is not None and "not in the cache" in said:
        return f"where there is a network, with the same HF_HOME: fdllm prefetch --task {name}" + (
            " (gated: see the line on access)" if task_info(name, sweep.include).gated else ""
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
