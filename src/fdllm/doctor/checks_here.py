"""Checks that need nothing but this machine: consent, disk, scheduler, image. No torch."""

from __future__ import annotations

import getpass
import shutil
from contextlib import suppress
from pathlib import Path

from fdllm.cluster.queue import SlurmError, run_command
from fdllm.doctor.findings import Checkup, Finding, fail, ok, warn
from fdllm.errors import UsageError
from fdllm.evaluate.humaneval import check_consent
from fdllm.evaluate.tasks import task_info

_GIB = 1 << 30
_TIGHT = 2 * _GIB
_FULL = _GIB // 4
_ANSWER_S = 20


def consent(checkup: Checkup) -> list[Finding]:
    """Whether the user agreed to run programs, for each task that does."""
    findings = []
    for name in checkup.sweep.tasks:
        info = task_info(name)
        if not info.runs_code:
            continue
        try:
            check_consent(info, checkup.sweep.code_execution)
        except UsageError:
            findings.append(
                fail(
                    f"consent {name}",
                    "its metric runs programs that the model writes, and nobody agreed to that",
                    "give --allow-code-execution (each program is confined), or leave the task out",
                )
            )
        else:
            findings.append(ok(f"consent {name}", "running its programs is agreed to"))
    return findings


def disk(checkup: Checkup) -> list[Finding]:
    """Room for records, on the file system that they will be written to."""
    place = existing(checkup.layout.results)
    free = shutil.disk_usage(place).free
    found = f"{free / _GIB:.1f} GiB free at {place}"
    if free < _FULL:
        return [
            fail(
                "disk",
                f"{found}; a sweep writes its samples and journals there",
                "make room, or choose another folder with --results",
            )
        ]
    if free < _TIGHT:
        return [warn("disk", found, "make room before a full benchmark, or use --results")]
    return [ok("disk", found)]


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def scheduler(checkup: Checkup) -> list[Finding]:
    """Whether the scheduler answers, and knows the partition and the account."""
    if checkup.executor != "slurm":
        return []
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return [
            fail(
                "scheduler",
                "there is no sbatch or no sinfo on the PATH",
                "log in to a node of the cluster (or load its slurm module), or use "
                "--executor local",
            )
        ]
    try:
        listed = run_command("sinfo", "--noheader", "--format=%R|%a|%D|%l", timeout_s=_ANSWER_S)
    except SlurmError as error:
        return [
            fail(
                "scheduler",
                f"sinfo does not answer ({error})",
                "slurmctld may be down: wait until sinfo answers, then try again",
            )
        ]
    lines = [line.split("|") for line in listed.splitlines() if "|" in line]
    partitions = {name: rest for name, *rest in lines}
    return [_partition(checkup.partition, partitions), *_account(checkup.account)]


def _partition(wanted: str | None, partitions: dict[str, list[str]]) -> Finding:
    names = ", ".join(sorted(partitions)) or "none"
    if wanted is None:
        told = ""
        with suppress(SlurmError):
            told = run_command("scontrol", "show", "partition", "--oneliner", timeout_s=_ANSWER_S)
        if "Default=YES" in told:
            return ok("partition", f"the site's default; there are {names}")
        return fail(
            "partition",
            f"none is named, and the site has no default; there are {names}",
            "name one: --partition NAME, or partition in fdllm.toml",
        )
    unknown = [name for name in wanted.split(",") if name not in partitions]
    if unknown:
        return fail(
            "partition",
            f"sinfo knows no partition '{unknown[0]}'; it lists {names}",
            "name one of these: --partition NAME, or partition in fdllm.toml",
        )
    down = [name for name in wanted.split(",") if partitions[name][0] != "up"]
    if down:
        return warn(
            "partition",
            f"partition '{down[0]}' is {partitions[down[0]][0]}: jobs would wait",
            f"ask the site when it is back, or name another of {names}",
        )
    return ok("partition", f"'{wanted}' is up")


def _account(wanted: str | None) -> list[Finding]:
    """Only where the site keeps accounts: without slurmdbd ``sacctmgr`` has no answer."""
    if wanted is None:
        return []
    unproven = warn(
        "account",
        f"'{wanted}' cannot be checked: sacctmgr is not there or does not answer",
        "submit one small run first (--limit 10): a wrong account is refused at submission",
    )
    if shutil.which("sacctmgr") is None:
        return [unproven]
    asked = ("show", "associations", f"user={getpass.getuser()}", "format=account")
    try:
        listed = run_command("sacctmgr", "--noheader", "--parsable2", *asked, timeout_s=_ANSWER_S)
    except SlurmError:
        return [unproven]
    accounts = sorted({line.strip() for line in listed.splitlines() if line.strip()})
    unknown = [name for name in wanted.split(",") if name not in accounts]
    if not unknown:
        return [ok("account", f"'{wanted}' is one of yours")]
    return [
        fail(
            "account",
            f"'{unknown[0]}' is none of your accounts; those are {', '.join(accounts) or 'none'}",
            "name one of them: account in fdllm.toml; or ask the site for access",
        )
    ]


def image_file(checkup: Checkup) -> list[Finding]:
    """Whether the image is there, and something to run it with."""
    image = checkup.image
    if image is None:
        return []
    if not image.is_file():
        return [
            fail(
                "image",
                f"there is no file {image}",
                "build it with 'nox -s container', or name another with --image",
            )
        ]
    if shutil.which("apptainer") is None:
        return [
            fail(
                "image",
                f"{image} is there, and no 'apptainer' on the PATH to run it",
                "load the site's apptainer module, or run without --image",
            )
        ]
    return [ok("image", f"{image}, {image.stat().st_size / _GIB:.1f} GiB")]
