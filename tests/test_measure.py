"""Figures, guards and provenance of a record."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fdllm.record import measure
from fdllm.record.provenance import git_state, session
from fdllm.record.summary import StrategyRecord

Row = dict[str, Any]


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [
        ("artifacts/00_baseline/tiny_choice/k1_first/summary.json", False),
        ("experiments/00_baseline/results.md", False),
        ("experiments/00_baseline/generation_functions.py", True),
        ("src/fdllm/plan.py", True),
    ],
)
def test_what_runs_write_themselves_is_no_change(changed: str, dirty: bool, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    file = tmp_path / changed
    file.parent.mkdir(parents=True)
    file.write_text("before")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "begin")
    file.write_text("after")

    state = git_state(tmp_path / changed.partition("/")[0])  # the package lies below the top

    assert state is not None
    assert state["dirty"] is dirty


def test_provenance_holds_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("FDLLM_IMAGE_SHA256", "abc")
    told = session(accelerator=None, threads=2, device="cpu", dtype="float32")
    assert "hf_verysecret" not in json.dumps(told)
    assert told["image_sha256"] == "abc"
    assert "2 threads" in told["machine"]


def row(tokens: int, seconds: float, *, requests: int = 1, cut: int = 0, **counts: int) -> Row:
    phase = {"forwards": 2, "computed": 20, "reused": 4, "tokens": 16} | counts
    return {
        "tokens": tokens,
        "seconds": seconds,
        "requests": requests,
        "truncated": cut,
        "repetitive": 0,
        "counts": {"denoise": phase, "commit": dict.fromkeys(phase, 0) | {"forwards": 1}},
    }


def test_throughput_of_generation() -> None:
    rows = [row(30, 1.0), row(10, 3.0, cut=1)]
    counts = measure.add_counts(rows)
    speed = measure.throughput("generate", rows, counts)
    assert (speed.tokens, speed.seconds, speed.tokens_per_second) == (40, 4.0, 10.0)
    assert speed.tokens_per_forward == pytest.approx(40 / 6)
    assert speed.latency_p50_s == 2.0
    assert speed.scored_tokens_per_second is None
    assert measure.layer_calls(counts).saved_share == pytest.approx(8 / 48)
    quality = measure.quality("generate", rows)
    assert quality is not None
    assert quality.truncation_rate == 0.5


def test_throughput_of_scoring_has_names_of_its_own() -> None:
    rows = [row(4, 1.0, requests=2)]
    speed = measure.throughput("loglikelihood", rows, measure.add_counts(rows))
    assert (speed.scored_tokens_per_second, speed.requests_per_second) == (4.0, 2.0)
    assert speed.tokens_per_second is None
    assert measure.quality("loglikelihood", rows) is None


def test_answers_are_counted_by_the_step_that_scored_them() -> None:
    rows: list[Row] = [
        {"scored_step": [5, 5, 0, None], "reused_tokens": [1, 2, 0, 0]},
        {"scored_step": [None, 4], "reused_tokens": [3, 0]},
    ]
    found = measure.scored_steps("loglikelihood", rows)
    assert found is not None
    assert list(found.first.items()) == [("0", 1), ("4", 1), ("5", 2), ("look-ahead", 2)]
    assert found.words == "3 of 6 answers scored where reuse cannot act"
    assert measure.scored_steps("generate", rows) is None


STRATEGY = StrategyRecord(text="", k=2, subset="middle", layers=(4, 5), n_layers=12, reuses=True)


@pytest.mark.parametrize(
    ("reuses", "one_forward", "reused", "passed"),
    [
        (True, False, 4, True),
        (True, False, 0, False),
        (False, False, 0, True),
        (False, False, 4, False),
        (True, True, 0, True),
        (True, True, 4, False),
    ],
)
def test_reuse_guard(reuses: bool, one_forward: bool, reused: int, passed: bool) -> None:
    strategy = STRATEGY.model_copy(update={"reuses": reuses})
    counts: measure.CountsByPhase = {
        "denoise": {"forwards": 3, "computed": 10, "reused": reused, "tokens": 8}
    }
    first, second = measure.guards(
        strategy, counts, one_forward=one_forward, num_samples=2, num_documents=2
    )
    assert first.passed is passed
    assert second.passed


def test_reuse_guard_says_why() -> None:
    counts: measure.CountsByPhase = {
        "refresh": {"forwards": 9, "computed": 9, "reused": 0, "tokens": 8}
    }
    guard, _ = measure.guards(STRATEGY, counts, one_forward=False, num_samples=1, num_documents=1)
    assert "every step was a REFRESH" in guard.detail
    assert "block cache is off" in guard.detail


def test_headline_counts_only_what_is_right_or_wrong() -> None:
    def samples(*values: float) -> list[dict[str, Any]]:
        return [{"metrics": {"acc": value}} for value in values]

    assert measure.headline("acc", 0.5, samples(1, 0)).num_correct == 1
    assert measure.headline("acc", 0.5, samples(0.5, 0.5)).num_correct is None
    assert measure.headline("acc", 0.9, samples(1, 0)).num_correct is None  # weighed by subject


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("phase", ["refresh", "denoise"])
@pytest.mark.parametrize("name", ["reused", "trimmed", "drafted"])
def test_a_single_layer_call_decides_the_guard_wherever_it_was_saved(
    at: int, phase: str, name: str
) -> None:
    """In the first row, the middle one or the last; whole, or in part."""
    none = {"forwards": 3, "computed": 9, "reused": 0, "trimmed": 0.0}
    rows: list[dict[str, Any]] = [
        {"counts": {"refresh": dict(none), "denoise": dict(none)}} for _ in range(5)
    ]
    for saved in (0, 1):
        rows[at]["counts"][phase][name] = 0.25 * saved if name == "trimmed" else saved
        counts = measure.add_counts(rows)
        for reuses in (True, False):
            strategy = STRATEGY.model_copy(update={"reuses": reuses})
            guard, _ = measure.guards(
                strategy, counts, one_forward=False, num_samples=5, num_documents=5
            )
            assert guard.name == "reuse counters"
            assert guard.passed is (bool(saved) == reuses)


@pytest.mark.parametrize(
    ("num_samples", "num_documents", "passed"),
    [(5, 5, True), (1, 1, True), (4, 5, False), (6, 5, False), (0, 5, False), (0, 0, False)],
)
def test_every_document_has_one_sample(
    num_samples: int, num_documents: int, *, passed: bool
) -> None:
    _, guard = measure.guards(
        STRATEGY, {}, one_forward=True, num_samples=num_samples, num_documents=num_documents
    )
    assert guard.name == "every document has a sample"
    assert guard.passed is passed
    assert guard.detail == f"{num_samples} samples of {num_documents} documents"


def test_counts_add_up_by_phase_and_name() -> None:
    rows: list[dict[str, Any]] = [
        {"counts": {"prefill": {"forwards": 1, "computed": 5}}},
        {"counts": {"denoise": {"forwards": 2, "reused": 3, "trimmed": 0.5}}},
        {"counts": {"denoise": {"forwards": 4, "computed": 7, "trimmed": 1.5}}},
    ]
    counts = measure.add_counts(rows)
    assert counts == {
        "prefill": {"forwards": 1, "computed": 5},
        "denoise": {"forwards": 6, "reused": 3, "trimmed": 2.0, "computed": 7},
    }
    assert measure.total(counts, "forwards") == 7
    assert measure.total(counts, "absent") == 0
    assert measure.made(counts["denoise"]) == 5.0
    calls = measure.layer_calls(counts)
    assert (calls.computed, calls.reused, calls.trimmed) == (12, 3, 2.0)
    assert calls.saved_share == pytest.approx(5 / 15)
    assert calls.made == 10.0
    assert measure.layer_calls({}).saved_share == 0.0


def test_latencies_are_those_of_samples() -> None:
    def pace(*seconds: float) -> tuple[float, float]:
        found = measure.throughput("loglikelihood", [row(1, s) for s in seconds], {})
        return found.latency_p50_s, found.latency_p95_s

    assert pace() == (0.0, 0.0)
    assert pace(3.0) == (3.0, 3.0)
    assert pace(1.0, 2.0) == (1.5, 1.95)
    assert pace(*range(101)) == (50.0, 95.0)


def test_shared_columns_are_told_where_something_is_scored() -> None:
    rows = [row(4, 2.0, shared=7) for _ in range(3)]
    found = measure.throughput("loglikelihood", rows, measure.add_counts(rows))
    assert (found.seconds, found.scored_tokens, found.shared_tokens) == (6.0, 12, 21)
    assert (found.scored_tokens_per_second, found.requests_per_second) == (2.0, 0.5)
    assert (found.tokens, found.tokens_per_forward) == (None, None)


def test_without_time_there_is_no_speed() -> None:
    nothing = measure.throughput("generate", [], {})
    assert (nothing.tokens_per_second, nothing.tokens_per_forward) == (0.0, 0.0)
    quality = measure.quality("generate", [])
    assert quality is not None
    assert (quality.truncation_rate, quality.repetition_rate) == (0.0, 0.0)


def test_repetition_is_more_than_half_of_windows_of_eight() -> None:
    """Windows of length 8 of an answer of n tokens: n - 7, of which some have come before."""
    fresh = list(range(100, 200))
    assert not measure.is_repetitive([*fresh[:16], *fresh[:16]])  # 9 of 25 windows
    assert measure.is_repetitive([*fresh[:15], *fresh[:15], *fresh[:15]])  # 15 of 38 are new
    exactly_half = [*fresh[:8], *fresh[:8]]  # 9 windows, one of which comes again
    assert not measure.is_repetitive(exactly_half)
    assert not measure.is_repetitive([1] * 8 + fresh[:7])
    assert measure.is_repetitive([1] * 16)
    assert not measure.is_repetitive([1, 2] * 7 + [3])
