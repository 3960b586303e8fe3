"""From a sweep to the queue: all of an array or nothing, nothing twice, and read back."""

from __future__ import annotations

import hashlib
import json
import shlex
import threading
from pathlib import Path

import pytest

from command import Command, summary_of
from fake_slurm import FakeSlurm
from fdllm.cluster.queue import JobId
from fdllm.cluster.submission import Submission, assign, read_submission, read_submissions
from fdllm.cluster.submit import submitting
from fdllm.errors import FdllmError, UsageError
from fdllm.record.paths import Layout
from fdllm.runs import Cell, ModelChoice, Run
from fdllm.shard import Shard
from helpers import move_hub

TASK = ("--task", "tiny_arithmetic")
TIMED = ("--executor", "slurm", "--no-doctor")
SLURM = (*TIMED, "--timing", "0")


def submissions(fdllm: Command) -> list[Submission]:
    folders = sorted(fdllm.root.glob("logs/*/*/submissions/*"))
    return [read_submission(folder) for folder in folders]


def work_off(fdllm: Command, submission: Submission) -> None:
    """Do what the queue would start, one after the other."""
    for one in submission.assignments:
        assert fdllm.raw("job", str(submission.map), str(one.index)) == 0, fdllm.err


def test_one_array_for_a_task(fdllm: Command, slurm: FakeSlurm) -> None:
    assert fdllm("sweep", *TASK, *SLURM, "--max-jobs", "2") == 0
    assert "job 101, 9 runs" in fdllm.out
    assert slurm.queue() == [f"101_{index}" for index in range(9)]
    (submission,) = submissions(fdllm)
    assert submission.jobs == {"job.sh": JobId("101")}
    assert [one.run.cell.name for one in submission.assignments][:2] == ["k1_first", "k1_middle"]
    script = (submission.folder / "job.sh").read_text()
    assert "#SBATCH --array=0-8%2" in script
    log = submission.log(4)
    assert log is not None
    assert log.parent.is_dir(), "SLURM makes no folder"
    assert (log.parent.name, log.name) == ("k2_middle", "slurm_101_4.log")
    asked = slurm.asked("101")
    assert f"--chdir={submission.folder}" in asked
    assert not any(flag.startswith("--dependency") for flag in asked)


def test_a_task_has_an_array_of_its_own(fdllm: Command, slurm: FakeSlurm) -> None:
    flags = ("--task", "tiny_arithmetic", "tiny_choice", "--config", "k2_first", *SLURM)
    assert fdllm("sweep", *flags) == 0
    assert slurm.queue() == ["101_0", "102_0"]
    assert "job 101, 1 run;" in fdllm.out


def test_what_is_queued_is_not_submitted_again(fdllm: Command, slurm: FakeSlurm) -> None:
    fdllm("sweep", *TASK, *SLURM, "--config", "k1_first")
    assert set(fdllm.cells(*TASK, "--config", "k1_first").values()) == {"queued"}
    assert fdllm("sweep", *TASK, *SLURM) == 0
    assert len(submissions(fdllm)) == 2
    assert slurm.queue() == ["101_0", *(f"102_{index}" for index in range(8))]
    assert fdllm("sweep", *TASK, *SLURM) == 0
    assert "nothing to do" in fdllm.out
    assert len(slurm.queue()) == 9


def test_jobs_leave_records_and_the_next_sweep_submits_only_what_is_missing(
    fdllm: Command, slurm: FakeSlurm
) -> None:
    fdllm("sweep", *TASK, *SLURM)
    (submission,) = submissions(fdllm)
    work_off(fdllm, submission)
    slurm.empty()
    assert set(fdllm.cells(*TASK).values()) == {"done"}
    assert fdllm("sweep", *TASK, *SLURM) == 0
    assert "nothing to do" in fdllm.out
    summary_of(fdllm.root, "k3_last").unlink()
    assert fdllm("sweep", *TASK, *SLURM) == 0
    assert slurm.queue() == ["102_0"]
    assert submissions(fdllm)[-1].assignments[0].run.cell.name == "k3_last"


def test_shards_and_the_job_that_merges_them(fdllm: Command, slurm: FakeSlurm) -> None:
    flags = (*TASK, "--config", "k1_first", "k2_last")
    assert fdllm("sweep", *flags, *SLURM, "--shards", "3") == 0
    assert "in 6 shards, merged by 102" in fdllm.out
    assert slurm.queue() == [*(f"101_{index}" for index in range(6)), "102_6", "102_7"]
    assert "--dependency=afterany:101" in slurm.asked("102")
    (submission,) = submissions(fdllm)
    log = submission.log(7)
    assert log is not None
    assert (log.parent.name, log.name) == ("k2_last", "slurm_102_7.log")
    work_off(fdllm, submission)
    slurm.empty()
    assert set(fdllm.cells(*flags).values()) == {"done"}


def test_a_timing_study_is_one_more_job_behind_all_others(fdllm: Command, slurm: FakeSlurm) -> None:
    flags = (*TASK, "--config", "k1_first", "k2_last")
    assert fdllm("sweep", *flags, *TIMED, "--shards", "2", "--timing", "50", "--dry-run") == 0
    assert "run  00_baseline / tiny_arithmetic / timing: pending" in fdllm.out
    assert "timing.sh" in fdllm.out
    assert fdllm("sweep", *flags, *TIMED, "--shards", "2", "--timing", "50") == 0
    assert "merged by 102; job 103, the timing study" in fdllm.out
    assert slurm.queue() == [*(f"101_{index}" for index in range(4)), "102_4", "102_5", "103_6"]
    assert "--dependency=afterany:101:102" in slurm.asked("103")
    (submission,) = submissions(fdllm)
    study = submission.assignments[6].study
    assert study is not None
    assert (study.number, list(study.runs)) == (50, ["k1_first", "k1_middle", "k1_last", "k2_last"])
    log = submission.log(6)
    assert log is not None
    assert (log.parent.name, log.name) == ("timing", "slurm_103_6.log")

    assert fdllm("status", *TASK) == 0
    assert "timing: queued, waits: Priority" in fdllm.out
    assert fdllm("sweep", *flags, *TIMED) == 0
    assert "nothing to do" in fdllm.out, "what is queued is not submitted again"
    work_off(fdllm, submission)
    slurm.empty()
    assert set(fdllm.cells(*flags).values()) == {"done"}
    assert [one["state"] for one in json.loads(fdllm.out)["timing"]] == ["done"]
    assert fdllm("sweep", *flags, *TIMED) == 0
    assert "nothing to do" in fdllm.out


def test_a_study_alone_is_submitted_and_its_end_without_a_file_is_a_failure(
    fdllm: Command, slurm: FakeSlurm
) -> None:
    fdllm("sweep", *TASK, "--executor", "local", "--timing", "0")
    assert fdllm("sweep", *TASK, *TIMED) == 0
    assert "job 101, the timing study; logs in" in fdllm.out
    assert slurm.queue() == ["101_0"]
    assert not any(flag.startswith("--dependency") for flag in slurm.asked("101"))
    slurm.empty()
    assert fdllm("status", *TASK) == 0
    assert "timing: failed, job 101_0: ended without a record" in fdllm.out
    assert fdllm("sweep", *TASK, *TIMED) == 0
    assert slurm.queue() == ["102_0"], "it is tried again"


def test_a_forced_record_is_moved_only_once_its_job_is_accepted(
    fdllm: Command, slurm: FakeSlurm
) -> None:
    fdllm("sweep", *TASK, "--executor", "local")
    summary = summary_of(fdllm.root, "k2_middle")
    before = summary.read_bytes()
    slurm.refuse("job.sh")
    assert fdllm("sweep", *TASK, *SLURM, "--force", "k2_middle") == 1
    assert "invalid partition" in fdllm.err
    assert summary.read_bytes() == before
    slurm.refuse("no.sh")
    assert fdllm("sweep", *TASK, *SLURM, "--force", "k2_middle") == 0, fdllm.err
    assert not summary.exists()
    assert slurm.queue() == ["101_0"]
    assert "--hold" in slurm.asked("101")
    assert "release 101" in slurm.scontrol()
    work_off(fdllm, submissions(fdllm)[-1])
    assert json.loads(summary.read_text())["config"] == "k2_middle"


def test_slurmctld_is_down(fdllm: Command, slurm: FakeSlurm) -> None:
    slurm.stop()
    assert fdllm("sweep", *TASK, *SLURM) == 1
    assert "slurmctld" in fdllm.err
    assert "Traceback" not in fdllm.err
    assert submissions(fdllm) == []


def test_nothing_stays_behind_where_the_merging_is_refused(
    fdllm: Command, slurm: FakeSlurm
) -> None:
    slurm.refuse("merge.sh")
    assert fdllm("sweep", *TASK, *SLURM, "--shards", "2") == 1
    assert "invalid partition" in fdllm.err
    assert slurm.queue() == [], "the shards were cancelled again"
    assert submissions(fdllm) == []


def test_dry_run_prints_the_scripts_and_leaves_nothing(fdllm: Command, slurm: FakeSlurm) -> None:
    flags = ("--partition", "gpu", "--time", "60", "--shards", "2")
    assert fdllm("sweep", *TASK, *SLURM, *flags, "--dry-run") == 0
    assert "would run 9 of 9" in fdllm.out
    assert "#SBATCH --partition=gpu" in fdllm.out
    assert "#SBATCH --time=60" in fdllm.out
    assert fdllm.out.count("#!/bin/bash") == 2
    assert not (fdllm.root / "logs").exists()
    assert slurm.queue() == []


def test_auto_says_what_it_takes(
    fdllm: Command, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = ("sweep", *TASK, "--config", "k1_first", "--executor", "auto", "--dry-run")
    assert fdllm(*one) == 0
    assert "executor: slurm (sbatch is there" in fdllm.err
    assert slurm.queue() == []
    said = "scontrol: fatal: Could not establish a configuration source"
    (slurm.folder / "scontrol").write_text(f"#!/bin/bash\necho '{said}' >&2\nexit 1\n")
    assert fdllm(*one) == 0
    assert "executor: local (sbatch is there and belongs to no cluster" in fdllm.err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fdllm(*one) == 0
    assert "executor: local (no sbatch on the PATH" in fdllm.err


def test_flags_of_slurm_mean_nothing_here(fdllm: Command) -> None:
    assert fdllm("sweep", *TASK, "--executor", "local", "--shards", "2", "--max-jobs", "3") == 2
    assert "--max-jobs, --shards: only for --executor slurm" in fdllm.err


def test_a_wrong_default_is_named(fdllm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDLLM_EXECUTOR", "cloud")
    assert fdllm("sweep", *TASK, "--dry-run") == 2
    assert "cloud" in fdllm.err
    assert "auto, local, slurm" in fdllm.err


def test_an_image_that_is_not_there(fdllm: Command, slurm: FakeSlurm) -> None:
    assert fdllm("sweep", *TASK, *SLURM, "--image", "no.sif") == 2
    assert "there is no image at" in fdllm.err
    assert slurm.queue() == []


def test_inside_an_image(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slurm: FakeSlurm
) -> None:
    image = tmp_path / "an image.sif"
    image.write_bytes(b"image")
    cache = tmp_path / "cache"
    move_hub(monkeypatch, cache)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    site = f"image = '{image}'\napptainer = '/opt/bin/apptainer'\nbinds = ['/data:/data:ro']"
    (fdllm.root / "fdllm.toml").write_text(site)
    flags = (*TASK, *SLURM, "--config", "k1_first", "--results", str(tmp_path / "out"))
    assert fdllm("sweep", *flags, "--dry-run") == 0
    (line,) = (line for line in fdllm.out.splitlines() if line.startswith("srun"))
    words = shlex.split(line.removesuffix(" &"))
    inner = words[words.index("/opt/bin/apptainer") :]
    assert inner[:5] == ["/opt/bin/apptainer", "exec", "--nv", "--cleanenv", "--no-home"]
    bound = {inner[i + 1] for i, word in enumerate(inner) if word == "--bind"}
    assert bound == {str(fdllm.root), str(tmp_path / "out"), str(cache), "/data:/data:ro"}
    assert inner[inner.index(str(image)) + 1 :][:2] == ["fdllm", "job"]
    assert f"export FDLLM_IMAGE_SHA256={hashlib.sha256(b'image').hexdigest()}" in fdllm.out
    assert f"export HF_HOME={cache}" in fdllm.out
    assert "export HF_HUB_OFFLINE=1" in fdllm.out
    assert "hf_secret" not in fdllm.out + fdllm.err
    assert fdllm("sweep", *flags) == 0
    assert cache.is_dir(), "what is bound must be there"
    assert slurm.queue() == ["101_0"]
    texts = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(b"hf_secret" in text for text in texts)
    move_hub(monkeypatch, tmp_path / "a,b")
    assert fdllm("sweep", *flags, "--dry-run", "--task", "tiny_choice") == 2
    assert "no bind can name" in fdllm.err


def test_a_login_is_found_by_nodes_that_may_ask(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slurm: FakeSlurm
) -> None:
    """Where ``hf auth login`` left its token, wherever the models of the nodes are."""
    token = tmp_path / "token"
    token.write_text("hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(token))
    for offline in ("true", "false"):
        site = f"hf_home = '{tmp_path / 'scratch'}'\noffline = {offline}"
        (fdllm.root / "fdllm.toml").write_text(site)
        assert fdllm("sweep", *TASK, *SLURM, "--dry-run") == 0
        assert (f"export HF_TOKEN_PATH={token}" in fdllm.out) == (offline == "false")
        assert "hf_secret" not in fdllm.out + fdllm.err
    assert slurm.queue() == []


def test_a_second_sweep_waits_for_the_first(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with submitting(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with submitting(tmp_path):
        inside.set()
        thread.join(timeout=0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_job_of_no_such_number(fdllm: Command, slurm: FakeSlurm) -> None:
    fdllm("sweep", *TASK, *SLURM, "--config", "k1_first")
    (submission,) = submissions(fdllm)
    assert slurm.queue() == ["101_0"]
    assert fdllm.raw("job", str(submission.map), "7") == 2
    assert "assignments 0 .. 0, no 7" in fdllm.err
    submission.map.write_text("{")
    assert fdllm.raw("job", str(submission.map), "0") == 1
    assert "map.json is no JSON: " in fdllm.err


def test_shards_are_numbered_run_by_run() -> None:
    runs = [
        Run(experiment="e", task="gsm8k", cell=Cell(name=name), model=ModelChoice())
        for name in ("a", "b")
    ]
    found = [(one.run.cell.name, one.shard, one.merge) for one in assign(runs, 2)]
    assert found == [
        ("a", Shard(0, 2), None),
        ("a", Shard(1, 2), None),
        ("b", Shard(0, 2), None),
        ("b", Shard(1, 2), None),
        ("a", None, 2),
        ("b", None, 2),
    ]
    assert [one.index for one in assign(runs, 2)] == list(range(6))
    assert [(one.shard, one.merge) for one in assign(runs, 1)] == [(None, None)] * 2
    with pytest.raises(UsageError, match="at least one"):
        assign(runs, 0)


def test_a_cut_off_submission_is_left_out(fdllm: Command, slurm: FakeSlurm) -> None:
    fdllm("sweep", *TASK, *SLURM, "--config", "k1_first")
    (submission,) = submissions(fdllm)
    run = submission.assignments[0].run
    layout = Layout.of(fdllm.root)
    assert read_submissions(layout, [run]) == [submission]
    (submission.folder.parent / "20990101T000000.000000Z").mkdir()
    assert read_submissions(layout, [run]) == [submission]
    data = json.loads(submission.map.read_text()) | {"version": 99}
    submission.map.write_text(json.dumps(data))
    assert read_submissions(layout, [run]) == []
    with pytest.raises(FdllmError, match="version 99"):
        read_submission(submission.folder)
    assert slurm.queue() == ["101_0"]
