"""Whatever strikes a sweep, it ends in the records of one that nothing disturbed.

Each test stops a job in the middle of a sample (`Checkout.hold`), lets something happen to it, and
has the table of faults compare and count.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster.checkout import SLOW, Checkout
from cluster.faults import FaultTable
from cluster.slurm import wait_until

CONFIG = "k2_middle"
ONE = ("--config", CONFIG)


def submit_and_hold(checkout: Checkout, *flags: str) -> str:
    """Submit one run and stop it with samples behind it; the job."""
    checkout.hold()
    checkout.sweep(*ONE, *flags)
    checkout.await_held()
    assert checkout.kept(CONFIG) >= 2
    (job,) = checkout.slurm.running()
    return job


def failed(checkout: Checkout) -> str:
    """The reason of a cell that must have failed, with answers kept and a log to read."""
    checkout.slurm.end_of_queue()
    cell = checkout.cells()[CONFIG]
    assert cell["state"] == "failed", (cell, checkout.logs())
    assert 2 <= cell["done"] < cell["total"] == 10
    assert Path(cell["log"]).is_file()
    return str(cell["reason"])


def go_on(checkout: Checkout) -> None:
    """The same command again, now in peace."""
    with suppress(FileNotFoundError):
        checkout.release()
    checkout.sweep(*ONE)
    checkout.slurm.end_of_queue()
    assert checkout.states()[CONFIG] == "done", checkout.logs()


def test_sigkill_of_the_process(checkout: Checkout, faults: FaultTable) -> None:
    submit_and_hold(checkout)
    os.kill(int((checkout.root / "begun-k2").read_text().split()[-1]), signal.SIGKILL)
    reason = failed(checkout)
    go_on(checkout)
    faults.add("SIGKILL of the process", f"{reason}; resubmitted", checkout, [CONFIG], most=1)


def test_sigkill_of_the_whole_job(checkout: Checkout, faults: FaultTable) -> None:
    job = submit_and_hold(checkout)
    checkout.slurm.ask("scancel", "--full", "--signal=KILL", job)
    reason = failed(checkout)
    go_on(checkout)
    faults.add("SIGKILL of the job", f"{reason}; resubmitted", checkout, [CONFIG], most=1)


def test_requeue(checkout: Checkout, faults: FaultTable) -> None:
    job = submit_and_hold(checkout)
    checkout.slurm.ask("scontrol", "requeue", job)
    checkout.slurm.await_requeued()
    checkout.release()
    checkout.slurm.end_of_queue()
    assert checkout.states()[CONFIG] == "done", checkout.logs()
    assert len(checkout.lives(CONFIG)) == 2
    faults.add("scontrol requeue", "went on in a second life", checkout, [CONFIG], most=1)


def limit(checkout: Checkout, job: str, minutes: int) -> None:
    """Change a running job's time limit: a slow start of the job is no part of what is tested."""
    checkout.slurm.ask("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")


def test_the_warning_before_the_time_limit(checkout: Checkout, faults: FaultTable) -> None:
    checkout.pause(2.0)  # five forwards a sample: longer than the warning can take to come
    checkout.sweep(*ONE)
    wait_until(lambda: checkout.kept(CONFIG), 120, checkout.logs)
    (job,) = checkout.slurm.running()
    limit(checkout, job, 5)  # warn_s is five minutes: SLURM sends the warning when it next looks
    checkout.slurm.await_requeued()
    kept = checkout.kept(CONFIG)
    assert 0 < kept < 10, "the warning did not come in the middle"
    assert checkout.states()[CONFIG] == "queued"
    limit(checkout, job, 60)
    checkout.pause(0)
    checkout.slurm.end_of_queue()
    assert checkout.states()[CONFIG] == "done", checkout.logs()
    assert [len(life) for life in checkout.lives(CONFIG)] == [kept, 10 - kept]
    assert "Restarts=1" in checkout.slurm.ask("scontrol", "show", "job", job)
    happened = "ended after the sample in flight, requeued, went on"
    faults.add("time limit, warning signal", happened, checkout, [CONFIG], most=0)


def test_the_time_limit_itself(checkout: Checkout, faults: FaultTable) -> None:
    job = submit_and_hold(checkout)  # a sample that is longer than the warning
    limit(checkout, job, 1)
    reason = failed(checkout)
    assert "time limit of 00:01:00 reached" in reason
    go_on(checkout)
    faults.add("time limit within a sample", f"{reason}; resubmitted", checkout, [CONFIG], most=1)


def test_scancel(checkout: Checkout, faults: FaultTable) -> None:
    job = submit_and_hold(checkout)
    checkout.slurm.ask("scancel", job)
    reason = failed(checkout)
    assert "cancel" in reason.lower()
    go_on(checkout)
    faults.add("scancel", f"{reason}; resubmitted", checkout, [CONFIG], most=1)


def test_a_node_that_fails(checkout: Checkout, faults: FaultTable) -> None:
    submit_and_hold(checkout)
    checkout.slurm.fail_node()
    checkout.release()
    checkout.slurm.end_of_queue()
    assert checkout.states()[CONFIG] == "done", checkout.logs()
    assert len(checkout.lives(CONFIG)) == 2
    faults.add("node down", "SLURM requeued it, went on", checkout, [CONFIG], most=1)


def test_slurmctld_is_down_at_submission(checkout: Checkout, faults: FaultTable) -> None:
    checkout.slurm.stop_controller()
    try:
        said = checkout.sweep(*ONE, code=1)
        assert "slurmctld" in said
        assert "Traceback" not in said
        assert checkout.states()[CONFIG] == "pending"
    finally:
        checkout.slurm.start()
    assert not checkout.slurm.queue(), "something was half submitted"
    go_on(checkout)
    happened = "refused, nothing half submitted; submitted later"
    faults.add("slurmctld down at submission", happened, checkout, [CONFIG], most=0)


def test_two_sweeps_at_once(checkout: Checkout, faults: FaultTable) -> None:
    arguments = ("sweep", *checkout.chosen(SLOW), *checkout.executor)
    checkout.hold()  # so that neither can be done before the other has looked
    with checkout.start(*arguments) as one, checkout.start(*arguments) as two:
        said = [process.communicate(timeout=120) for process in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0], said
    jobs = checkout.slurm.queue()
    assert len(jobs) == 2, (jobs, said)
    checkout.release()
    checkout.settle()
    for config in ("k1_middle", CONFIG):
        assert len(checkout.lives(config)) == 1
    happened = "each run was submitted once"
    faults.add("two sweeps at once", happened, checkout, ["k1_middle", CONFIG], most=0)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of its own that holds 128 KiB; a file that can fill it."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    subprocess.run(mount, check=True)
    try:
        yield place / "ballast"
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(checkout: Checkout, faults: FaultTable) -> None:
    with small_disk(checkout.root / "results") as ballast:
        submit_and_hold(checkout)
        with suppress(OSError), ballast.open("wb", 0) as file:
            while True:
                file.write(b"x" * 512)
        checkout.release()
        checkout.slurm.end_of_queue()
        cell = checkout.cells()[CONFIG]
        assert cell["state"] == "failed", (cell, checkout.logs())
        # failed.json cannot be written either: the log, on another disk, has the reason.
        assert "exit code 1" in cell["reason"]
        assert "the disk is full" in Path(cell["log"]).read_text()
        ballast.unlink()
        go_on(checkout)
        happened = "failed, 'the disk is full' in the log; resubmitted"
        faults.add("full disk", happened, checkout, [CONFIG], most=1)


@pytest.mark.usefixtures("faults")
def test_a_submission_after_a_fault_computes_nothing_twice_that_is_done(
    checkout: Checkout,
) -> None:
    checkout.sweep(*ONE)
    checkout.slurm.end_of_queue()
    before = (checkout.folder(CONFIG) / "summary.json").read_bytes()
    assert "nothing to do" in checkout.sweep(*ONE)
    assert not checkout.slurm.queue()
    assert (checkout.folder(CONFIG) / "summary.json").read_bytes() == before
