"""Whatever strikes a sweep, it ends in the records of one that nothing disturbed.

Each test stops a job in the middle of a sample (`Checkout.hold`), lets something happen to it, and
has the table of faults compare and count.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.checkout import SLOW, Checkout
from cluster.faults import FaultTable
from cluster.slurm import wait_until
from stubs import small_disk

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


def limit(checkout: Checkout, job: str, minutes: int) -> None:
    """Change a running job's time limit: a slow start of the job is no part of what is tested."""
    checkout.slurm.ask("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")


def kill_process(checkout: Checkout, _: str) -> None:
    os.kill(int((checkout.root / "begun-k2").read_text().split()[-1]), signal.SIGKILL)


def kill_job(checkout: Checkout, job: str) -> None:
    checkout.slurm.ask("scancel", "--full", "--signal=KILL", job)


def run_out(checkout: Checkout, job: str) -> None:
    limit(checkout, job, 1)  # the sample is longer than the warning


def cancel(checkout: Checkout, job: str) -> None:
    checkout.slurm.ask("scancel", job)


@pytest.mark.parametrize(
    ("fault", "strike", "says"),
    [
        ("SIGKILL of the process", kill_process, ""),
        ("SIGKILL of the job", kill_job, ""),
        ("time limit within a sample", run_out, "time limit of 00:01:00 reached"),
        ("scancel", cancel, "cancel"),
    ],
)
def test_what_ends_a_job_is_its_cells_reason(
    fault: str,
    strike: Callable[[Checkout, str], None],
    says: str,
    checkout: Checkout,
    faults: FaultTable,
) -> None:
    strike(checkout, submit_and_hold(checkout))
    reason = failed(checkout)
    assert says in reason.lower()
    go_on(checkout)
    faults.add(fault, f"{reason}; resubmitted", checkout, [CONFIG], most=1)


def requeue(checkout: Checkout, job: str) -> None:
    checkout.slurm.ask("scontrol", "requeue", job)
    checkout.slurm.await_requeued()


def fail_node(checkout: Checkout, _: str) -> None:
    checkout.slurm.fail_node()


@pytest.mark.parametrize(
    ("fault", "strike", "happened"),
    [
        ("scontrol requeue", requeue, "went on in a second life"),
        ("node down", fail_node, "SLURM requeued it, went on"),
    ],
)
def test_a_requeued_job_goes_on_in_a_second_life(
    fault: str,
    strike: Callable[[Checkout, str], None],
    happened: str,
    checkout: Checkout,
    faults: FaultTable,
) -> None:
    strike(checkout, submit_and_hold(checkout))
    checkout.release()
    checkout.slurm.end_of_queue()
    assert checkout.states()[CONFIG] == "done", checkout.logs()
    assert len(checkout.lives(CONFIG)) == 2
    faults.add(fault, happened, checkout, [CONFIG], most=1)


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
    arguments = ("sweep", *checkout.chosen(SLOW), *checkout.executor, "--timing", "0")
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


def test_a_full_disk(checkout: Checkout, faults: FaultTable) -> None:
    ballast = checkout.root / "results" / "ballast"
    with small_disk(ballast.parent, size_kib=128):
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
