"""Sites as they are: banners, several clusters, variables of the shell, limits, lost answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import Command
from fake_slurm import FakeSlurm
from fdllm.cluster.queue import most_tasks

CONFIGS = ("--config", "k1_first", "k2_last")
TASK = ("--task", "tiny_arithmetic")
ONE = (*TASK, "--config", "k1_first")
SLURM = ("--executor", "slurm", "--no-doctor", "--timing", "0")


def folder_of(fdllm: Command) -> Path:
    """Of the one submission."""
    (folder,) = fdllm.root.glob("logs/*/*/submissions/*")
    return folder


# --- what sbatch prints ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    ["*** Welcome ***\nUse 2 GPUs!\n%s", "%s\nlua: 12 SU were reserved", "1 job today\n  %s \n\n"],
)
def test_a_sites_words_around_the_id_are_not_the_id(
    answer: str, fdllm: Command, slurm: FakeSlurm
) -> None:
    slurm.answer(answer)
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert "job 101, 1 run;" in fdllm.out
    assert set(fdllm.cells(*ONE).values()) == {"queued"}
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert slurm.queue() == ["101_0"], "nothing goes out twice"


def test_a_job_without_an_id_is_neither_cancelled_nor_submitted_again(
    fdllm: Command, slurm: FakeSlurm
) -> None:
    slurm.answer("Thank you!")
    assert fdllm("sweep", *ONE, *SLURM) == 1
    assert "Thank you!" in fdllm.err
    folder = folder_of(fdllm)
    assert f"{folder}/job.sh" in fdllm.err
    for _ in range(2):
        assert fdllm("sweep", *ONE, *SLURM) == 0
        assert "nothing to do" in fdllm.out
        assert f"warning: sbatch was given {folder}/job.sh and named no job" in fdllm.err
    assert fdllm("status", *ONE) == 0
    assert "queued" in fdllm.out
    assert slurm.queue() == ["101_0"]

    (folder / "jobs.json").write_text('{"job.sh": 101}')  # as the message says
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert "warning" not in fdllm.err
    slurm.empty()
    assert set(fdllm.cells(*ONE).values()) == {"failed"}


@pytest.mark.parametrize("text", ["{", "[]", '{"job.sh": {}}', "null"])
def test_ids_that_are_damaged_are_ids_that_nobody_knows(
    text: str, fdllm: Command, slurm: FakeSlurm
) -> None:
    fdllm("sweep", *ONE, *SLURM)
    (folder_of(fdllm) / "jobs.json").write_text(text)
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert "named no job" in fdllm.err
    assert slurm.queue() == ["101_0"]


def test_a_job_that_was_lost_and_comes_to_an_end_is_known_by_it(
    fdllm: Command, slurm: FakeSlurm
) -> None:
    slurm.answer("Thank you!")
    fdllm("sweep", *TASK, *CONFIGS, *SLURM)
    folder = folder_of(fdllm)
    assert fdllm.raw("job", str(folder / "map.json"), "0") == 0
    (folder / "ended").mkdir()
    (folder / "ended" / "1").write_text("101_1 0 137 2026-01-01T00:00:00Z\n")
    cells = fdllm.cells(*TASK, *CONFIGS)
    assert cells == {"k1_first": "done", "k2_last": "failed"}
    slurm.answer("%s")
    assert fdllm("sweep", *TASK, *CONFIGS, *SLURM) == 0
    assert slurm.queue() == ["101_0", "101_1", "102_0"]


def test_an_answer_that_got_lost_may_be_a_job(fdllm: Command, slurm: FakeSlurm) -> None:
    said = "error: Batch job submission failed: Socket timed out on send/recv operation"
    slurm.refuse("merge.sh", said)
    assert fdllm("sweep", *ONE, *SLURM, "--shards", "2") == 1
    assert "Socket timed out" in fdllm.err
    assert slurm.queue() == ["101_0", "101_1"], "the shards were not cancelled"
    jobs = json.loads((folder_of(fdllm) / "jobs.json").read_text())
    assert jobs == {"job.sh": "101", "merge.sh": None}
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert slurm.queue() == ["101_0", "101_1"]


def test_ctrl_c_while_it_submits_sends_nothing_twice(
    fdllm: Command, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fdllm.cluster.submit.run_command", interrupted)
        assert fdllm("sweep", *ONE, *SLURM) != 0
    assert set(fdllm.cells(*ONE).values()) == {"queued"}
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert "named no job" in fdllm.err
    assert slurm.queue() == []


# --- several clusters -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["--clusters=x", "--clusters x,y", "-M x", "-Mx", "SLURM", "SBATCH"]
)
@pytest.mark.parametrize("answer", ["%s", "banner\n%s"])
def test_a_cluster_belongs_to_the_id(
    word: str, answer: str, fdllm: Command, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    if word in ("SLURM", "SBATCH"):
        monkeypatch.setenv(f"{word}_CLUSTERS", "x")
    else:
        (fdllm.root / "fdllm.toml").write_text(f"[resources]\nextra = ['{word}']")
    script = slurm.folder / "sbatch"  # the stand-in knows one spelling
    script.write_text(script.read_text().replace("for last; do case $last in", FOLLOW))
    slurm.answer(answer)
    assert fdllm("sweep", *ONE, *SLURM, "--shards", "2") == 0
    assert "job 101 on x, 1 run in 2 shards, merged by 102 on x" in fdllm.out
    assert "--clusters=x" in slurm.asked("102"), "behind the others, on their cluster"
    assert slurm.queue() == []
    assert slurm.queue("x") == ["101_0", "101_1", "102_2"]
    monkeypatch.delenv("SLURM_CLUSTERS", raising=False)
    (fdllm.root / "fdllm.toml").unlink(missing_ok=True)
    assert set(fdllm.cells(*ONE).values()) == {"queued"}
    assert "101_0 on x" in fdllm.out
    (slurm.folder / "queuex").unlink()
    assert set(fdllm.cells(*ONE).values()) == {"failed"}
    assert "-M x --oneliner show job 101" in slurm.scontrol()
    log = folder_of(fdllm).parents[1] / "k1_first" / "slurm_101_0.log"
    assert json.loads(fdllm.out)["cells"][0]["log"] == str(log)


FOLLOW = """
words=(); take=
for word; do
    case $take$word in -M | --clusters) take=1; continue ;; esac
    case $word in -M*) word=${word#-M} take=1 ;; esac
    [ -z "$take" ] || word=--clusters=$word take=
    words+=("$word")
done
set -- "${words[@]}"
for last; do case $last in"""


def test_an_answer_that_names_no_cluster_is_of_the_one_that_was_asked(
    fdllm: Command, slurm: FakeSlurm
) -> None:
    (fdllm.root / "fdllm.toml").write_text("[resources]\nextra = ['--clusters=x']")
    slurm.answer("CLUSTER: x\n101")
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert "job 101 on x" in fdllm.out


def test_where_the_shell_names_a_cluster_later_the_jobs_stay_where_they_are(
    fdllm: Command, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fdllm("sweep", *ONE, *SLURM)
    monkeypatch.setenv("SLURM_CLUSTERS", "x")
    assert set(fdllm.cells(*ONE).values()) == {"queued"}
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert "nothing to do" in fdllm.out
    assert slurm.queue("x") == []


def test_what_is_undone_is_undone_on_its_cluster(fdllm: Command, slurm: FakeSlurm) -> None:
    (fdllm.root / "fdllm.toml").write_text("[resources]\nextra = ['--clusters=x']")
    slurm.refuse("merge.sh")
    assert fdllm("sweep", *ONE, *SLURM, "--shards", "2") == 1
    assert slurm.queue("x") == []
    assert not list(fdllm.root.glob("logs/*/*/submissions/*"))


def test_what_cannot_be_cancelled_stays_known(fdllm: Command, slurm: FakeSlurm) -> None:
    slurm.refuse("merge.sh")
    (slurm.folder / "scancel").write_text("#!/bin/bash\nexit 1\n")
    assert fdllm("sweep", *ONE, *SLURM, "--shards", "2") == 1
    assert "invalid partition" in fdllm.err
    assert slurm.queue() == ["101_0", "101_1"]
    jobs = json.loads((folder_of(fdllm) / "jobs.json").read_text())
    assert jobs == {"job.sh": "101"}
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert slurm.queue() == ["101_0", "101_1"], "they are not sent again"


# --- variables of the shell -----------------------------------------------------------------------


def test_what_a_job_needs_stands_above_the_shells_variables(
    fdllm: Command, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SIGNAL", "NO_REQUEUE", "TIMELIMIT", "ARRAY_INX", "OUTPUT", "EXPORT", "WAIT"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    monkeypatch.setenv("SBATCH_RESERVATION", "spring")
    monkeypatch.setenv("SBATCH_PARTITION", "short")
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    monkeypatch.setenv("SBATCH_QOS", "low")
    (fdllm.root / "fdllm.toml").write_text(
        "[resources]\npartition = 'gpu'\nextra = ['--exclude node7', \"--comment='a b'\"]"
    )
    assert fdllm("sweep", *ONE, *SLURM, "--qos", "", "--max-jobs", "2", "--dry-run") == 0
    shown = fdllm.out.splitlines()[-1]
    assert fdllm("sweep", *ONE, *SLURM, "--qos", "", "--max-jobs", "2") == 0
    asked = slurm.asked("101")
    assert {
        *("--partition=gpu", "--account=lab", "--time=1440", "--signal=B:USR1@300", "--requeue"),
        *("--open-mode=append", "--array=0%2", "--export=ALL", "--parsable", "--exclude", "node7"),
        "--comment=a b",
    } <= set(asked)
    assert not any(word.startswith("--qos") for word in asked), "'' asks for nothing of the kind"
    given = slurm.environment("101")
    assert [name for name in given if name.startswith("SBATCH_")] == ["SBATCH_RESERVATION"]
    for word in ("SBATCH_RESERVATION=spring sbatch --job-name", "'--comment=a b'", "--account=lab"):
        assert word in shown
    assert "#SBATCH --account=lab" in (folder_of(fdllm) / "job.sh").read_text()


def test_what_a_user_hides_of_the_queue_is_seen(
    fdllm: Command, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    fdllm("sweep", *ONE, *SLURM)
    assert set(fdllm.cells(*ONE).values()) == {"queued"}
    fdllm("sweep", *ONE, *SLURM)
    assert slurm.queue() == ["101_0"]


def test_a_variable_that_can_be_no_option_is_named(
    fdllm: Command, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "my lab")
    assert fdllm("sweep", *ONE, *SLURM) == 2
    assert "'account': must be one word" in fdllm.err
    assert "SBATCH_" in fdllm.err
    assert slurm.queue() == []


# --- limits ---------------------------------------------------------------------------------------


def test_an_array_longer_than_the_cluster_takes_is_several(
    fdllm: Command, slurm: FakeSlurm
) -> None:
    slurm.config("MaxArraySize            = 4\nSchedulerParameters = (null)\n")
    flags = (*TASK, *CONFIGS, *SLURM, "--shards", "3")
    assert fdllm("sweep", *flags, "--dry-run") == 0
    assert "--array=0-1 " in fdllm.out.splitlines()[-2]
    assert fdllm("sweep", *flags, "--timing", "6") == 0
    assert "job 101, 102, 2 runs in 6 shards, merged by 103; job 104, the timing" in fdllm.out
    everything = [f"101_{n}" for n in range(4)] + ["102_0", "102_1", "103_2", "103_3", "104_0"]
    assert slurm.queue() == everything
    assert not any(word.startswith("--dep") for word in slurm.asked("102")), "beside the first"
    assert "--dependency=afterany:101:102" in slurm.asked("103")
    assert "--dependency=afterany:101:102:103" in slurm.asked("104")
    assert set(fdllm.cells(*TASK, *CONFIGS).values()) == {"queued"}
    folder = folder_of(fdllm)
    assert "index=$((SLURM_ARRAY_TASK_ID + 4))" in (folder / "job-4.sh").read_text()
    for index in range(9):
        assert fdllm.raw("job", str(folder / "map.json"), str(index)) == 0, fdllm.err
    slurm.empty()
    assert set(fdllm.cells(*TASK, *CONFIGS).values()) == {"done"}


def test_a_throttle_holds_over_all_arrays(fdllm: Command, slurm: FakeSlurm) -> None:
    slurm.config("MaxArraySize = 1001\nSchedulerParameters = bf_interval=60,max_array_tasks=5\n")
    assert fdllm("sweep", *TASK, *SLURM, "--max-jobs", "2") == 0
    assert slurm.queue() == [*(f"101_{n}" for n in range(5)), *(f"102_{n}" for n in range(4))]
    assert "--dependency=afterany:101" in slurm.asked("102")


@pytest.mark.parametrize(
    ("clusters", "told", "most"),
    [
        (None, "MaxArraySize = 7", 7),
        ("x", "MaxArraySize = 7\nSchedulerParameters = max_array_tasks=3", 3),
        ("x,y", "MaxArraySize = 7", 7),
        (None, "MaxArraySize = 0", None),
        (None, "slurm", None),
    ],
)
def test_how_long_an_array_may_be(
    clusters: str | None, told: str, most: int | None, slurm: FakeSlurm
) -> None:
    slurm.config(told)
    assert most_tasks(clusters) == most
    each = [f"-M {name} " for name in clusters.split(",")] if clusters else [""]
    assert slurm.scontrol() == [f"{where}show config" for where in each]


def test_a_forced_array_is_held_in_all_its_parts(fdllm: Command, slurm: FakeSlurm) -> None:
    fdllm("sweep", *TASK, *CONFIGS, "--executor", "local", "--timing", "0")
    slurm.config("MaxArraySize = 1\n")
    assert fdllm("sweep", *TASK, *CONFIGS, *SLURM, "--force") == 0
    assert ["--hold" in slurm.asked(job) for job in ("101", "102")] == [True, True]
    assert slurm.scontrol()[-2:] == ["release 101", "release 102"]


@pytest.mark.parametrize(
    ("said", "help_"),
    [
        ("error: AssocMaxSubmitJobLimit", "--shards"),
        ("error: QOSMaxSubmitJobPerUserLimit", "--config"),
        ("error: Batch job submission failed: Invalid job array specification", "--shards"),
        ("error: Job violates accounting/QOS policy (job submit limit, user's size)", "--config"),
        ("error: QOSMaxWallDurationPerJobLimit", "--time"),
        ("error: Batch job submission failed: Requested time limit is invalid", "--time"),
        ("error: invalid account", "fdllm.toml"),
    ],
)
def test_a_refusal_names_what_would_help(
    said: str, help_: str, fdllm: Command, slurm: FakeSlurm
) -> None:
    slurm.refuse("job.sh", said)
    assert fdllm("sweep", *ONE, *SLURM) == 1
    assert said in fdllm.err
    assert help_ in fdllm.err
    assert ("scontrol ping" in fdllm.err) == (help_ == "fdllm.toml")
    assert not list(fdllm.root.glob("logs/*/*/submissions/*"))
