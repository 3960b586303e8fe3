"""Checks of the place that need nothing but it: room, consent, image, access; each at its edge."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from checkups import of
from fdllm.doctor.checks_here import consent, disk, existing, image, scheduler
from fdllm.doctor.checks_node import check_task, fetch_task
from fdllm.doctor.examine import with_access
from fdllm.doctor.findings import FINDINGS, Checkup, Finding, blocking
from fdllm.doctor.worker import checks
from fdllm.errors import FdllmError
from fdllm.evaluate.hub_errors import Access
from fdllm.runs import CodeExecution

GIB = 1 << 30


class Usage(NamedTuple):
    """What a file system says of its room."""

    total: int
    used: int
    free: int


def finding(state: Any, name: str = "x") -> Finding:
    return Finding(name, state, "found", "remedy")


@pytest.mark.parametrize("at", [0, 2, 4])
def test_one_failure_blocks_wherever_it_stands(at: int) -> None:
    states = ["ok", "warn", "ok", "warn", "ok"]
    assert blocking([finding(state) for state in states]) == []
    states[at] = "fail"
    found = [finding(state, str(i)) for i, state in enumerate(states)]
    assert blocking(found) == [found[at]]


def test_a_finding_survives_json_and_nothing_else_is_one() -> None:
    for state in ("ok", "warn", "fail"):
        one = finding(state)
        assert FINDINGS.validate_json(FINDINGS.dump_json([one])) == [one]
    short = {"name": "x", "state": "ok", "found": "y"}
    assert FINDINGS.validate_python([short]) == [Finding("x", "ok", "y", "")]
    for wrong in (short | {"state": "fine"}, {"name": "x", "state": "ok"}, 7):
        with pytest.raises(ValueError, match="validation error"):
            FINDINGS.validate_python([wrong])


@pytest.mark.parametrize(
    ("free", "state", "says"),
    [
        (GIB // 4 - 1, "fail", "0.2 GiB free"),
        (GIB // 4, "warn", "0.2 GiB free"),
        (2 * GIB - 1, "warn", "2.0 GiB free"),
        (2 * GIB, "ok", "2.0 GiB free"),
    ],
)
def test_room_for_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str, says: str
) -> None:
    asked: list[Path] = []

    def usage(place: Path) -> Usage:
        asked.append(place)
        return Usage(0, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    (found,) = disk(of(tmp_path))
    assert (found.name, found.state) == ("disk", state)
    assert says in found.found
    assert bool(found.remedy) == (state != "ok")
    assert asked == [tmp_path], "the results are not there yet"


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert existing(tmp_path) == tmp_path
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(Path("/absent/x")) == Path("/")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_consent_is_asked_of_each_task_that_runs_programs(tmp_path: Path, at: int) -> None:
    tasks = ["tiny_choice", "gsm8k"]
    tasks.insert(at, "humaneval")
    asked = of(tmp_path, *tasks)
    (found,) = consent(asked)
    assert (found.name, found.state) == ("consent humaneval", "fail")
    assert "--allow-code-execution" in found.remedy
    agreed = asked.sweep.model_copy(update={"code_execution": "confined"})
    (found,) = consent(replace(asked, sweep=agreed))
    assert (found.state, found.remedy) == ("ok", "")
    assert not list(consent(of(tmp_path, "gsm8k")))


def test_only_a_cluster_is_asked_for_a_scheduler(tmp_path: Path) -> None:
    assert not list(scheduler(of(tmp_path)))


def test_an_image_is_a_file_and_has_something_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(image(of(tmp_path)))
    path = tmp_path / "fdllm.sif"
    asked = replace(of(tmp_path), image=path)
    path.mkdir()
    (found,) = image(asked)
    assert found.state == "fail"
    assert f"there is no file {path}" in found.found
    path.rmdir()
    path.write_bytes(b"x" * 200)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    (found,) = image(asked)
    assert (found.name, found.state, found.remedy) == ("image", "ok", "")
    assert found.found == f"{path}, 0.0 GiB"


# --- access ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    ("answer", "state", "remedy"),
    [
        (Access("granted", "it may be read"), "ok", ""),
        (Access("refused", "gated, and no token", "agree there"), "fail", "agree there"),
        (Access("unknown", "no answer"), "warn", "run fdllm doctor where there is a network"),
    ],
)
def test_the_hub_is_asked_about_what_is_gated_and_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Access,
    state: str,
    remedy: str,
    at: int,
) -> None:
    asked: list[tuple[str, str]] = []

    def ask(repo: str, kind: str) -> Access:
        asked.append((repo, kind))
        return answer

    monkeypatch.setattr("fdllm.doctor.examine.ask_access", ask)
    absent = "which is not in the cache of this machine"
    others = [
        Finding("task gsm8k", "fail", absent),  # open to all
        Finding("task tiny_choice", "ok", "60 documents, not in the cache"),
    ]
    found = [*others[:at], Finding("task gpqa_main_n_shot", "fail", absent), *others[at:]]
    told = list(with_access(of(tmp_path), found))
    assert asked == [("Idavidrein/gpqa", "dataset")]
    assert [one for one in told if one in found] == found
    (extra,) = (one for one in told if one not in found)
    assert told.index(extra) == at + 1
    assert (extra.name, extra.state) == ("access gpqa_main_n_shot", state)
    assert extra.remedy.startswith(remedy)


def test_a_model_that_is_missing_is_asked_about_and_other_failures_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def ask(repo: str, kind: str) -> Access:
        asked.append((repo, kind))
        return Access("granted", "model may be read")

    monkeypatch.setattr("fdllm.doctor.examine.ask_access", ask)
    checkup = of(tmp_path, model="org/name")
    missing = Finding("model", "fail", "org/name is not in the cache of this machine")
    assert list(with_access(checkup, [missing])) == [
        missing,
        Finding("access model", "ok", "model may be read"),
    ]
    assert asked == [("org/name", "model")]
    broken = Finding("model", "fail", "a shard is cut short")
    gated = Finding("task gpqa_main_n_shot", "fail", "cannot be loaded")
    other = Finding("sandbox humaneval", "fail", "not in the cache")
    assert list(with_access(checkup, [broken, gated, other])) == [broken, gated, other]
    assert len(asked) == 1


def test_a_node_looks_for_what_only_it_can_tell(tmp_path: Path) -> None:
    asked = of(tmp_path, "gsm8k", "mmlu")
    tasks = ["task gsm8k", "task mmlu"]
    assert list(checks("fetch", asked)) == ["model", *tasks]
    assert list(checks("check", asked)) == [
        *("versions", "source", "folders", "GPU", "model", *tasks)
    ]


# --- tasks ----------------------------------------------------------------------------------------


def agreed(consent: CodeExecution = "confined") -> Checkup:
    asked = of(Path(), "humaneval")
    return replace(asked, sweep=asked.sweep.model_copy(update={"code_execution": consent}))


@pytest.mark.parametrize(
    ("said", "found", "remedy"),
    [
        ("", "programs are confined here", ""),
        ("no Landlock; use another node", "no Landlock", "use another node"),
        ("the sandbox is not tight", "the sandbox is not tight", "score this task on another"),
    ],
)
def test_the_sandbox_is_tried_where_programs_may_run(
    monkeypatch: pytest.MonkeyPatch, said: str, found: str, remedy: str
) -> None:
    def tried(_: object) -> None:
        if said:
            raise FdllmError(said)

    monkeypatch.setattr("fdllm.doctor.checks_node._load", lambda *_: "164 documents")
    monkeypatch.setattr("fdllm.evaluate.humaneval.prove", tried)
    task, sandbox = check_task("humaneval", agreed())
    assert task == Finding("task humaneval", "ok", "164 documents, from the cache")
    assert (sandbox.name, sandbox.state) == ("sandbox humaneval", "fail" if said else "ok")
    assert sandbox.found.startswith(found)
    assert sandbox.remedy.startswith(remedy)
    assert bool(sandbox.remedy) == bool(said)
    assert list(check_task("humaneval", agreed("refused"))) == [task]
    assert len(list(check_task("gsm8k", agreed()))) == 1


@pytest.mark.parametrize(
    ("name", "said", "found", "remedy"),
    [
        (
            "gsm8k",
            "task 'gsm8k' needs dataset x, which is not in the cache of this machine; fetch it",
            "needs dataset x, which is not in the cache of this machine",
            "where there is a network, with the same HF_HOME: fdllm prefetch --task gsm8k",
        ),
        (
            "gpqa_main_n_shot",
            "task 'gpqa_main_n_shot' is not in the cache; fetch it",
            "is not in the cache",
            "fdllm prefetch --task gpqa_main_n_shot (gated: see the line on access)",
        ),
        ("gsm8k", "it cannot be loaded; install it", "it cannot be loaded", "install it"),
        ("gsm8k", "it is broken", "it is broken", "fdllm prefetch --task gsm8k, then try again"),
        ("tiny_choice", "not in the cache; odd", "not in the cache", "odd"),
    ],
)
def test_a_task_that_cannot_be_had_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, name: str, said: str, found: str, remedy: str
) -> None:
    def load(*_: object) -> str:
        raise FdllmError(said)

    monkeypatch.setattr("fdllm.doctor.checks_node._load", load)
    (told,) = check_task(name, agreed())
    assert (told.name, told.state, told.found) == (f"task {name}", "fail", found)
    assert told.remedy.endswith(remedy)
    with pytest.raises(FdllmError):
        list(fetch_task(name, agreed()))
