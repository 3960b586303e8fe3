"""What a check found, and what to do about it. No torch, no harness."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from fdllm.errors import FdllmError, first_line
from fdllm.evaluate.hub_errors import without_token
from fdllm.record.paths import Layout
from fdllm.runs import Sweep


@dataclass(frozen=True)
class Finding:
    """One line of a check-up."""

    name: str  # what was looked at: ``task gsm8k``, ``disk``
    # ``ok``; ``warn``, it may go wrong or be slow; ``fail``, the runs cannot end well
    state: Literal["ok", "warn", "fail"]
    found: str  # what there is, in words
    remedy: str = ""  # what to do next; empty where it is ``ok``


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", found)


def warn(name: str, found: str, remedy: str) -> Finding:
    """It may go wrong, or be slow."""
    return Finding(name, "warn", found, remedy)


def fail(name: str, found: str, remedy: str) -> Finding:
    """The runs cannot end well."""
    return Finding(name, "fail", found, remedy)


@dataclass(frozen=True)
class Checkup:
    """What is to be computed, and where: all that a check-up needs to know."""

    root: Path  # the checkout
    layout: Layout  # where records, their copies and logs will lie
    sweep: Sweep  # tasks, model, device, data type and consent, as the runs will have them
    # ``local`` computes on this machine; ``slurm`` on a node that is not this one, so that a GPU
    # which is missing here is only worth a warning
    executor: Literal["local", "slurm"] = "local"
    # the partition that jobs are sent to, or several with commas between them; None is the site's
    # default
    partition: str | None = None
    clusters: str | None = None  # whose jobs they are; None is this machine's
    # the account that jobs are charged to, or several; None is the user's default
    account: str | None = None
    # the image that the runs will be inside of; None is the plain environment
    image: Path | None = None
    apptainer: str = "apptainer"  # the command that runs it
    binds: tuple[str, ...] = ()  # what is bound into it, as ``source[:destination[:options]]``
    # ``HF_HOME`` of the runs, where the site names one; None is this process's
    hf_home: Path | None = None
    places: tuple[Path, ...] = ()  # what the runs read and write, as it is named
    # hashes of the checkout's source files, as :func:`fdllm.doctor.remote.ask_node` tells a node
    source: Mapping[str, str] = field(default_factory=dict)


CHECKUP = TypeAdapter(Checkup)
FINDINGS = TypeAdapter(list[Finding])
Checker = Callable[[Checkup], Iterator[Finding]]


def run_checks(checks: Mapping[str, Checker], checkup: Checkup) -> list[Finding]:
    """What checks find, in their order; that one broke down is a finding of its name."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check(checkup)
        except FdllmError as error:
            said, _, remedy = str(error).partition("; ")
            found.append(fail(name, said, remedy or "mend that, then try again"))
        except Exception as error:  # noqa: BLE001 - a missing library, a damaged file: say which
            said = without_token(first_line(error, "no message"))
            remedy = (
                "install fdllm again under requirements.lock (nox, or a fresh image), then see "
                "whether this check passes"
            )
            found.append(fail(name, f"{type(error).__name__}: {said}", remedy))
    return found


def blocking(findings: Iterable[Finding]) -> list[Finding]:
    """Those that keep the runs from ending well."""
    return [finding for finding in findings if finding.state == "fail"]
