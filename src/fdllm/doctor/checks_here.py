"""Checks that need nothing but this machine: consent, disk, scheduler, image. No torch."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from fdllm.cluster.queue import SlurmError, run_command
from fdllm.cluster.visible import dead_links
from fdllm.doctor.findings import Checkup, Finding, fail, ok, warn
from fdllm.errors import UsageError
from fdllm.evaluate.humaneval import check_consent
from fdllm.evaluate.tasks import task_facts, task_info
from fdllm.plan import Planner
from fdllm.report.terms import before, check_criteria

_GIB = 1 << 30
_TIGHT = 2 * _GIB
_FULL = _GIB // 4
_ANSWER_S = 20


def consent(checkup: Checkup) -> Iterator[Finding]:
    """Whether the user agreed to run programs, for each task that does."""
    for task in checkup.sweep.tasks:
        if not task_info(task, checkup.sweep.include).runs_code:
            continue
        name = f"consent {task}"
        try:
            check_consent(task_info(task, checkup.sweep.include), checkup.sweep.code_execution)
            yield ok(name, "running its programs is agreed to")
        except UsageError:
            yield fail(
                name,
                "its metric runs programs that the model writes, and nobody agreed to that",
                "give --allow-code-execution (each program is confined), or leave the task out",
            )


def disk(checkup: Checkup) -> Iterator[Finding]:
    """Room for records, on the file system that they will be written to."""
    place = existing(checkup.layout.results)
    free = shutil.disk_usage(place).free
    found = f"{free / _GIB:.1f} GiB free at {place}"
    if free < _FULL:
        yield fail(
            "disk",
            f"{found}; a sweep writes its samples and journals there",
            "make room, or choose another folder with --results",
        )
    elif free < _TIGHT:
        yield warn("disk", found, "make room before a full benchmark, or use --results")
    else:
        yield ok("disk", found)


def links(checkup: Checkup) -> Iterator[Finding]:
    """Whether every link on the way to what the runs read and write leads somewhere."""
    for link, target in dead_links(checkup.places).items():
        yield fail(
            f"link {link.name}",
            f"{link} is a link to {target}, which is not there",
            "make that folder (scratch may have been cleaned), or let the link lead elsewhere",
        )


def criteria(checkup: Checkup) -> Iterator[Finding]:
    """Whether each task has the rows that the experiment's criteria need to be decided.

    Raises:
        UsageError: the criteria name what is not there, or what cannot meet them.
    """
    planner = Planner(
        checkup.root, checkup.layout, partial(task_facts, include=checkup.sweep.include)
    )
    stated = planner.experiment(checkup.sweep.experiment).settings.criteria
    if stated is None or checkup.sweep.limit is not None:
        return
    check_criteria(planner, checkup.sweep)
    why_not = before(planner, checkup.sweep)
    for task in checkup.sweep.tasks:
        if task in why_not:
            yield warn(
                f"criteria {task}",
                f"it takes no part in the verdict: {why_not[task]}",
                "the run goes ahead all the same; [criteria] is stated before its first row "
                "(docs/extending.md 3)",
            )
    if not why_not:
        yield ok("criteria", stated.words)


def existing(path: Path) -> Path:
    """The path behind all links, or the nearest folder above it that exists."""
    path = Path(os.path.realpath(path))
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def scheduler(checkup: Checkup) -> Iterator[Finding]:
    """Whether the scheduler answers, and knows the partition and the account."""
    if checkup.executor != "slurm":
        return
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        yield fail(
            "scheduler",
            "there is no sbatch or no sinfo on the PATH",
            "log in to a node of the cluster (or load its slurm module), or use --executor local",
        )
        return
    try:
        asked = ("sinfo", "--noheader", "--format=%R|%a|%D|%l")
        listed = run_command(*asked, cluster=checkup.clusters, timeout_s=_ANSWER_S)
    except SlurmError as error:
        yield fail(
            "scheduler",
            f"sinfo does not answer ({error})",
            "slurmctld may be down: wait until sinfo answers, then try again",
        )
        return
    lines = [line.split("|") for line in listed.splitlines() if "|" in line]
    yield _partition(checkup, {name: state for name, state, *_ in lines})
    if checkup.account is not None:
        yield _account(checkup.account)


def _partition(checkup: Checkup, states: dict[str, str]) -> Finding:
    wanted = checkup.partition
    names = ", ".join(sorted(states)) or "none"
    name_one = "name one: --partition NAME, or partition in fdllm.toml"
    if wanted is None:
        told = ""
        with suppress(SlurmError):
            asked = ("scontrol", "show", "partition", "--oneliner")
            told = run_command(*asked, cluster=checkup.clusters, timeout_s=_ANSWER_S)
        if "Default=YES" in told:
            return ok("partition", f"the site's default; there are {names}")
        found = f"none is named, and the site has no default; there are {names}"
        return fail("partition", found, name_one)
    for name in wanted.split(","):
        if name not in states:
            found = f"sinfo knows no partition '{name}'; it lists {names}"
            return fail("partition", found, name_one)
    for name in wanted.split(","):
        if states[name] != "up":
            return warn(
                "partition",
                f"partition '{name}' is {states[name]}: jobs would wait",
                f"ask the site when it is back, or name another of {names}",
            )
    return ok("partition", f"'{wanted}' is up")


def _account(wanted: str) -> Finding:
    """Only where the site keeps accounts: without slurmdbd ``sacctmgr`` has no answer."""
    asked = ("show", "associations", f"user={getpass.getuser()}", "format=account")
    try:
        listed = run_command("sacctmgr", "--noheader", "--parsable2", *asked, timeout_s=_ANSWER_S)
    except SlurmError:
        return warn(
            "account",
            f"'{wanted}' cannot be checked: sacctmgr is not there or does not answer",
            "submit one small run first (--limit 10): a wrong account is refused at submission",
        )
    accounts = sorted({line.strip() for line in listed.splitlines() if line.strip()})
    for name in wanted.split(","):
        if name not in accounts:
            return fail(
                "account",
                f"'{name}' is none of your accounts; those are {', '.join(accounts) or 'none'}",
                "name one of them: account in fdllm.toml; or ask the site for access",
            )
    return ok("account", f"'{wanted}' is one of yours")


def image(checkup: Checkup) -> Iterator[Finding]:
    """Whether the image is there, and something to run it with."""
    path = checkup.image
    if path is None:
        return
    if not path.is_file():
        yield fail(
            "image",
            f"there is no file {path}",
            "build it with 'nox -s container', or name another with --image",
        )
    elif shutil.which(checkup.apptainer) is None:
        where = "" if "/" in checkup.apptainer else " on the PATH"
        yield fail(
            "image",
            f"{path} is there, and no '{checkup.apptainer}'{where} to run it",
            'load the site\'s module, name its command in fdllm.toml (apptainer = "singularity", '
            "or a path), or run without an image",
        )
    else:
        yield ok("image", f"{path}, {path.stat().st_size / _GIB:.1f} GiB")
