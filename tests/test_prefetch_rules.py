"""What ``fdllm prefetch`` tells: what is proved offline counts, else the reason of the fetch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from checkups import of
from fdllm.doctor import examine as module
from fdllm.doctor.examine import prefetch
from fdllm.doctor.findings import Finding
from fdllm.errors import UsageError

MODEL = Finding("model", "ok", "1 GiB of weights")
TASK = Finding("task gsm8k", "ok", "1319 documents")
FAILED = Finding("task gsm8k", "fail", "the Hub refuses", "ask there")
ABSENT = Finding("task gsm8k", "fail", "which is broken", "prefetch it")
OTHERS = [Finding("GPU", "warn", "none here"), Finding("disk", "fail", "full")]


def told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fetch: list[Finding], check: list[Finding]
) -> list[Finding]:
    answers = {"fetch": fetch, "check": check}
    monkeypatch.setattr(module, "ask_node", lambda _, mode: answers[mode])
    return prefetch(of(tmp_path, "gsm8k"))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_only_what_is_fetched_is_told_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: int
) -> None:
    check = [*OTHERS[:at], TASK, *OTHERS[at:]]
    assert told(monkeypatch, tmp_path, [MODEL], [MODEL, *check]) == [MODEL, TASK]


@pytest.mark.parametrize(
    ("fetch", "check", "found"),
    [
        ([TASK], [TASK], [TASK]),
        ([FAILED], [TASK], [TASK]),  # it lay in the cache all the same
        ([FAILED], [ABSENT], [FAILED]),
        ([TASK], [ABSENT], [ABSENT]),
        ([], [ABSENT], [ABSENT]),
    ],
)
def test_what_is_proved_counts_more_than_what_the_network_said(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fetch: list[Finding],
    check: list[Finding],
    found: list[Finding],
) -> None:
    assert told(monkeypatch, tmp_path, fetch, check) == found


def test_a_worker_that_does_not_answer_is_all_that_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = Finding("checks", "fail", "no answer", "install again")
    assert told(monkeypatch, tmp_path, [gone], [TASK]) == [gone]
    assert told(monkeypatch, tmp_path, [TASK], [gone]) == [gone]


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_each_word_that_forbids_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match=f"^{name} forbid to fetch anything"):
        told(monkeypatch, tmp_path, [], [])
    for harmless in ("", "0"):
        monkeypatch.setenv(name, harmless)
        assert told(monkeypatch, tmp_path, [], [TASK]) == [TASK]


def test_an_image_that_is_not_there_is_said_first(tmp_path: Path) -> None:
    (found,) = prefetch(replace(of(tmp_path), image=tmp_path / "fdllm.sif"))
    assert (found.name, found.state) == ("image", "fail")
