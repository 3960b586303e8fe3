"""SLURM's own lines, read: squeue's, and scontrol's of jobs that are gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fake_slurm import FakeSlurm
from fdllm.cluster.exit_reason import ExitReason, explain, noted, parse_jobs, remembered
from fdllm.cluster.queue import (
    JobId,
    SlurmError,
    is_listed,
    parse_queue,
    parse_time,
    read_queue,
    run_command,
)

# As SLURM 22.05 prints them.
SQUEUE = """\
7_3|PENDING|0:00|1:00:00||JobArrayTaskLimit
7_4|PENDING|0:00|1:00:00||JobArrayTaskLimit
8_9|PENDING|0:00|UNLIMITED||DependencyNeverSatisfied
7_0|RUNNING|1-02:03:04|12:01|node-1|None
7_1|COMPLETING|0:09|59:51|node-2|None
9|PENDING|0:00|1:00||ReqNodeNotAvail, UnavailableNodes:node-[1-3]
"""
TAIL = (
    "Restarts=0 BatchFlag=1 ExitCode={} RunTime=00:00:08 TimeLimit=00:02:00 NodeList={} NumNodes=1"
)


def job(name: str, state: str, code: str = "0:0", node: str = "node-1") -> str:
    array, task = name.split("_")
    head = f"JobId=11 ArrayJobId={array} ArrayTaskId={task} JobName=x y"
    return f"{head} JobState={state} Reason=None Dependency=(null) {TAIL.format(code, node)}\n"


def test_every_task_of_an_array_is_an_entry() -> None:
    queue = parse_queue(SQUEUE)
    assert [str(job) for job in queue] == ["7_3", "7_4", "8_9", "7_0", "7_1", "9"]
    running = queue[JobId("7_0")]
    assert (running.is_running, running.node, running.elapsed_s) == (True, "node-1", 93784)
    assert running.time_left_s == 721
    assert running.reason == ""
    assert (queue[JobId("7_3")].is_running, queue[JobId("7_3")].node) == (False, None)
    assert queue[JobId("7_3")].reason == "JobArrayTaskLimit"
    assert queue[JobId("7_1")].is_running
    assert queue[JobId("8_9")].time_left_s is None
    assert [job for job, one in queue.items() if one.is_hopeless] == [JobId("8_9")]
    assert queue[JobId("9")].reason == "ReqNodeNotAvail, UnavailableNodes:node-[1-3]"


def test_a_line_of_another_form_is_refused() -> None:
    with pytest.raises(SlurmError, match="another form"):
        parse_queue("7 main job root R 0:01 1 node-1\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:00", 0), ("59:59", 3599), ("1:00:00", 3600), ("2-00:00:01", 172801), ("UNLIMITED", None),
     ("NOT_SET", None), ("INVALID", None)],
)  # fmt: skip
def test_times(text: str, seconds: int | None) -> None:
    assert parse_time(text) == seconds


def fake(folder: Path, name: str, body: str) -> None:
    script = folder / name
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)


def test_the_queue_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer").write_text(SQUEUE)
    fake(tmp_path, "squeue", f'echo "$@" >>{tmp_path}/asked; cat {tmp_path}/answer')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    queue = read_queue()
    assert queue is not None
    assert len(queue) == 6
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["--noheader --array --format=%i|%T|%M|%L|%N|%r"]


def test_no_squeue_is_no_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_queue() is None
    assert remembered([JobId("7")]) == {}


def test_a_queue_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(SlurmError, match=r"Unable to contact slurm.*scontrol ping"):
        read_queue()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (job("7_1", "TIMEOUT", "0:15"), "time limit of 00:02:00 reached"),
        (job("7_1", "NODE_FAIL"), "node node-1 failed"),
        (job("7_1", "OUT_OF_MEMORY", "0:125"), "out of memory"),
        (job("7_1", "CANCELLED", "0:15"), "cancelled"),
        (job("7_1", "FAILED", "0:9"), "killed by SIGKILL (out of memory, or by hand)"),
        (job("7_1", "FAILED", "137:0"), "killed by SIGKILL (out of memory, or by hand)"),
        (job("7_1", "FAILED", "3:0"), "the job ended with exit code 3"),
        (job("7_1", "COMPLETED"), "the job ended by itself and left no record"),
    ],
)
def test_why_a_job_is_gone(line: str, reason: str) -> None:
    (found,) = parse_jobs(line).items()
    assert found[0] == JobId("7_1")
    assert found[1].reason == reason
    assert found[1].by_itself == ("COMPLETED" in line)


def test_jobs_that_live_have_not_ended() -> None:
    text = job("7_1", "RUNNING") + job("7_2-4%1", "PENDING") + job("7_0", "COMPLETED")
    assert list(parse_jobs(text)) == [JobId("7_0")]


def test_slurm_knows_best_then_the_script_then_nobody(tmp_path: Path) -> None:
    notes = tmp_path / "3"
    assert noted(notes) is None
    assert "without a word" in explain(JobId("7_3"), notes, {}).reason
    notes.write_text("7_3 0 75 2026-01-01T00:00:00Z\n7_3 1 139 2026-01-01T00:10:00Z\n")
    assert explain(JobId("7_3"), notes, {}).reason == "killed by SIGSEGV"
    assert (
        explain(JobId("7_3"), notes, {JobId("7_3"): ExitReason("out of memory")}).reason
        == "out of memory"
    )
    notes.write_text("torn")
    assert noted(notes) is None


def test_slurm_is_asked_for_each_array_that_is_gone_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array that it has forgotten is no error, and keeps nobody from asking for the next."""
    fake(tmp_path, "squeue", "")
    (tmp_path / "line").write_text(job("7_1", "TIMEOUT"))
    script = f'echo "$@" >>{tmp_path}/asked; [ $4 = 7 ] || exit 1; cat {tmp_path}/line'
    fake(tmp_path, "scontrol", script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert list(remembered(map(JobId, ["7", "5", "7"]))) == [JobId("7_1")]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"--oneliner show job {number}" for number in (5, 7)]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("TIMEOUT", "time limit of 00:02:00 reached"),
        ("DEADLINE", "deadline reached"),
        ("NODE_FAIL", "node node-1 failed"),
        ("BOOT_FAIL", "node node-1 did not start"),
        ("OUT_OF_MEMORY", "out of memory"),
        ("PREEMPTED", "preempted by another job"),
        ("CANCELLED", "cancelled"),
        ("REVOKED", "revoked"),
    ],
)
def test_what_slurm_ended_is_told_from_what_ended_by_itself(state: str, words: str) -> None:
    (ended,) = parse_jobs(job("7_1", state)).values()
    assert (ended.reason, ended.by_slurm, ended.by_itself) == (words, True, False)
    (other,) = parse_jobs(job("7_1", "FAILED", "1:0")).values()
    assert (other.by_slurm, other.by_itself) == (False, False)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "CONFIGURING", "COMPLETING"])
def test_a_job_in_these_states_lives(state: str) -> None:
    assert parse_jobs(job("7_1", state)) == {}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "the job ended by itself and left no record"),
        (1, "the job ended with exit code 1"),
        (128, "the job ended with exit code 128"),
        (137, "killed by SIGKILL (out of memory, or by hand)"),
        (143, "killed by SIGTERM (scancel, preemption or the time limit)"),
        (138, "killed by SIGUSR1"),
        (250, "killed by signal 122"),
    ],
)
def test_a_shells_status_says_how_a_command_ended(tmp_path: Path, status: int, words: str) -> None:
    notes = tmp_path / "3"
    notes.write_text(f"7_3 0 {status} 2026-01-01T00:00:00Z\n")
    found = noted(notes)
    assert found is not None
    assert (found.reason, found.by_itself) == (words, status == 0)


@pytest.mark.parametrize(
    ("state", "running"),
    [
        ("RUNNING", True), ("COMPLETING", True), ("CONFIGURING", True), ("SUSPENDED", True),
        ("STOPPED", True), ("SIGNALING", True), ("STAGE_OUT", True), ("PENDING", False),
        ("REQUEUED", False),
    ],
)  # fmt: skip
def test_a_job_in_these_states_has_a_machine(state: str, *, running: bool) -> None:
    (entry,) = parse_queue(f"7_1|{state}|1:00|UNLIMITED|node-1|None\n").values()
    assert entry.is_running is running
    assert not entry.is_hopeless
    assert (entry.elapsed_s, entry.time_left_s, entry.reason) == (60, None, "")
    (waits,) = parse_queue("7_1|PENDING|0:00|1:00||DependencyNeverSatisfied\n").values()
    assert waits.is_hopeless
    assert waits.node is None


def test_a_command_is_given_the_shell_without_what_a_job_hands_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what a user's own defaults change of what is read; how to reach the cluster stays."""
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "a", "SBATCH_RESERVATION": "r"}
    gone = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "1", "SLURMD_NODENAME": "n", "SRUN_X": "1"}
    gone |= dict.fromkeys(("SLURM_CLUSTERS", "SQUEUE_FORMAT", "SQUEUE_USERS", "SBATCH_WAIT"), "x")
    for name, value in {**kept, **gone, "OWN": "y"}.items():
        monkeypatch.setenv(name, value)
    fake(tmp_path, "squeue", "env")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    said = dict(line.split("=", 1) for line in run_command("squeue").splitlines() if "=" in line)
    assert said.items() >= {**kept, "OWN": "y"}.items()
    assert not said.keys() & gone.keys()


def test_a_command_that_fails_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    fake(tmp_path, "squeue", "echo 'no  such' >&2; echo job >&2; exit 3")
    with pytest.raises(SlurmError, match="^squeue: no such job$"):
        run_command("squeue")
    fake(tmp_path, "squeue", "exit 3")
    with pytest.raises(SlurmError, match="^squeue: exit code 3$"):
        run_command("squeue")
    fake(tmp_path, "squeue", "exec sleep 5")
    with pytest.raises(SlurmError, match="^squeue did not answer within 0 s$"):
        run_command("squeue", timeout_s=0.1)
    with pytest.raises(SlurmError, match="^absent-command did not answer: "):
        run_command("absent-command")


@pytest.mark.parametrize(
    ("number", "cluster", "found"),
    [
        ("101", None, True),
        ("101", "here", True),
        ("202", "here", False),
        ("202", "there", True),
        ("101", "there", False),
    ],
)
def test_a_job_is_looked_for_in_the_queue_of_its_cluster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: str,
    cluster: str | None,
    found: bool,
) -> None:
    slurm = FakeSlurm.make(tmp_path / "bin")
    monkeypatch.setenv("PATH", slurm.path)
    slurm.config("AccountingStorageType   = none\nClusterName             = here\n")
    (slurm.folder / "queue").write_text("101\n")
    (slurm.folder / "queuethere").write_text("202\n")
    assert is_listed(number, cluster) is found
    slurm.stop()
    assert is_listed(number, cluster) is None
