"""What a check found, and what to do about it. No torch, no harness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fdllm.record.paths import Layout
from fdllm.runs import Sweep

Standing = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of a check-up.

    Attributes:
        name: what was looked at: ``task gsm8k``, ``disk``.
        state: ``ok``; ``warn``, it may go wrong or be slow; ``fail``, the runs cannot end well.
        found: what there is, in words.
        remedy: what to do next; empty where it is ``ok``.
    """

    name: str
    state: Standing
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Finding:
        """From its JSON form.

        Raises:
            ValueError: it is none.
        """
        if data.get("state") not in get_args(Standing):
            raise ValueError(f"no finding: {data!r}")
        return cls(
            str(data["name"]), data["state"], str(data["found"]), str(data.get("remedy", ""))
        )


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
    """What is to be computed, and where: all that a check-up needs to know.

    Attributes:
        root: the checkout.
        layout: where records, their copies and logs will lie.
        sweep: tasks, model, device, data type and consent, as the runs will have them.
        executor: ``local`` computes on this machine; ``slurm`` on a node that is not this one, so
            that a GPU which is missing here is only worth a warning.
        partition: the partition that jobs are sent to, or several with commas between them; None
            is the site's default.
        account: the account that jobs are charged to, or several; None is the user's default.
        image: the image that the runs will be inside of; None is the plain environment.
        binds: what is bound into it, as ``source[:destination[:options]]``.
        hf_home: ``HF_HOME`` of the runs, where the site names one; None is this process's.
    """

    root: Path
    layout: Layout
    sweep: Sweep
    executor: Literal["local", "slurm"] = "local"
    partition: str | None = None
    account: str | None = None
    image: Path | None = None
    binds: tuple[str, ...] = ()
    hf_home: Path | None = None


def blocking(findings: Iterable[Finding]) -> list[Finding]:
    """Those that keep the runs from ending well."""
    return [finding for finding in findings if finding.state == "fail"]
