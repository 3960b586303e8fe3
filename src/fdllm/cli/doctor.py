"""``fdllm doctor`` and ``fdllm prefetch``: what is ready for a run, and what is fetched for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from fdllm.cli.options import Computing, Selection, flag
from fdllm.cli.output import console, say, say_json
from fdllm.cli.request import SweepRequest, read_request
from fdllm.cluster.cluster_config import ClusterConfig, clusters_of, load_cluster_config
from fdllm.cluster.queue import why_no_cluster
from fdllm.cluster.visible import binds, places_of
from fdllm.doctor.examine import examine, prefetch
from fdllm.doctor.findings import Checkup, Finding, blocking
from fdllm.plain import one_line
from fdllm.record.paths import find_root
from fdllm.report.columns import Fitted
from fdllm.runs import Run

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, kw_only=True)
class DoctorCommand(Computing):
    """What is ready for a run, what is not, and what to do about it."""

    json: bool = flag("print JSON", default=False)
    image: Path | None = flag(
        "look inside this image, as its runs will (the site file's)",
        metavar="FILE",
    )
    executor: str = flag(
        "what the runs are meant for (auto: slurm where there is an sbatch)",
        default="auto",
        group="the cluster",
        choices=("auto", "local", "slurm"),
    )
    partition: str | None = flag(
        "where jobs go (the site file's)", group="the cluster", metavar="NAME"
    )
    account: str | None = flag(
        "who is charged (the site file's)", group="the cluster", metavar="NAME"
    )

    def run(self) -> int:
        """Check, show, and answer with 1 where something that the runs need is missing."""
        cluster = load_cluster_config(find_root()).changed(
            {"partition": self.partition, "account": self.account}, image=self.image
        )
        asked = self.executor
        there = asked == "slurm" or (asked == "auto" and why_no_cluster() is None)
        request = read_request(self)
        checkup = checkup_of(request, request.runs, cluster, "slurm" if there else "local")
        return _show(examine(checkup), as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class PrefetchCommand(Selection):
    """Fill the caches, for nodes without a network, and prove it offline."""

    json: bool = flag("print JSON", default=False)
    image: Path | None = flag(
        "look inside this image, as its runs will (the site file's)",
        metavar="FILE",
    )

    def run(self) -> int:
        """Fetch, prove it offline, and answer with 1 where something is still missing."""
        cluster = load_cluster_config(find_root()).changed({}, image=self.image)
        request = read_request(self)  # fetching runs no program, so all tasks where none is named
        checkup = checkup_of(request, request.runs, cluster, "local")
        return _show(prefetch(checkup), as_json=self.json)


def checkup_of(
    request: SweepRequest,
    runs: Sequence[Run],
    cluster: ClusterConfig,
    executor: Literal["local", "slurm"],
) -> Checkup:
    """What must be looked at for some runs of a request.

    Raises:
        UsageError: a folder that the image would have to see has a name that no bind can have.
    """
    planner = request.planner
    wanted = [cluster.resources_of(run) for run in runs]  # tasks may differ in where they go
    partitions, accounts = {one.partition for one in wanted}, {one.account for one in wanted}
    bound: list[str] = []
    if cluster.image is not None:
        # What the jobs will see in the image, no more and no less.
        bound = [*binds(planner, cluster, runs[0], Path.cwd()), *cluster.binds]
    tasks = tuple(dict.fromkeys(run.task for run in runs))
    return Checkup(
        root=planner.root,
        layout=planner.layout,
        sweep=request.sweep.model_copy(update={"tasks": tasks}),
        executor=executor,
        partition=",".join(sorted(filter(None, partitions))) or None,
        clusters=clusters_of(option for one in wanted for option in one.extra),
        account=",".join(sorted(filter(None, accounts))) or None,
        image=cluster.image,
        apptainer=cluster.apptainer,
        binds=tuple(bound),
        places=tuple(
            place
            for run in {run.task: run for run in runs}.values()
            for place in places_of(planner, cluster, run, Path.cwd())
        ),
        hf_home=cluster.hf_home,
    )


def _show(findings: Sequence[Finding], *, as_json: bool) -> int:
    """A table for people, or JSON; 1 where something that the runs need is missing."""
    failed = len(blocking(findings))
    if as_json:
        ready = {"ready": not failed, "findings": [asdict(finding) for finding in findings]}
        say_json(ready)
        return int(bool(failed))
    table = Table(title="check-up", title_justify="left")
    for column in ("check", "state", "what was found", "what to do"):
        # Names and states are short, and a cut one says nothing.
        table.add_column(column, no_wrap=column in ("check", "state"), overflow="fold")
    for finding in findings:
        state = Text(finding.state, style=_COLOURS[finding.state])
        table.add_row(
            one_line(finding.name), state, one_line(finding.found), one_line(finding.remedy)
        )
    console(200).print(Fitted(table))
    warned = sum(finding.state == "warn" for finding in findings)
    warnings = f", {warned} to keep in mind" if warned else ""
    if failed:
        say(f"not ready: {failed} of {len(findings)} checks failed{warnings}")
    else:
        say(f"ready: {len(findings)} checks{warnings}")
    return int(bool(failed))
