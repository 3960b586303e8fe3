"""Figures, guards and provenance of a record."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fdllm.record import measure
from fdllm.record.fingerprint import Fingerprint
from fdllm.record.provenance import session
from fdllm.record.summary import StrategyRecord

ONE = Fingerprint(fields={"source": "1", "limit": "10"})
OTHER = Fingerprint(fields={"source": "2", "limit": "10"})


def test_unknown_values_are_no_difference() -> None:
    known = Fingerprint(fields={"revision": "abc", "limit": "10"})
    unknown = Fingerprint(fields={"revision": None, "limit": "10"})
    assert not known.differences(unknown)
    assert not unknown.differences(known)
    assert ONE.differences(OTHER) == ["source: changed"]


def test_provenance_holds_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("FDLLM_IMAGE_SHA256", "abc")
    told = session(accelerator=None, threads=2, device="cpu", dtype="float32")
    assert "hf_verysecret" not in json.dumps(told)
    assert told["image_sha256"] == "abc"
    assert "2 threads" in told["machine"]


def entry(tokens: list[int], seconds: float, finish: str = "stop", **counts: int) -> dict[str, Any]:
    phase = {"forwards": 2, "computed": 20, "reused": 4, "tokens": 16} | counts
    return {
        "tokens": tokens,
        "num_tokens": len(tokens),
        "seconds": seconds,
        "finish": finish,
        "counts": {"denoise": phase, "commit": dict.fromkeys(phase, 0) | {"forwards": 1}},
    }


def test_throughput_of_generation() -> None:
    entries = [entry([1] * 30, 1.0), entry([2] * 10, 3.0, "length")]
    counts = measure.add_counts(entries)
    speed = measure.throughput("generate", entries, entries, counts)
    assert (speed.tokens, speed.seconds, speed.tokens_per_second) == (40, 4.0, 10.0)
    assert speed.tokens_per_forward == pytest.approx(40 / 6)
    assert speed.latency_p50_s == 2.0
    assert speed.scored_tokens_per_second is None
    assert measure.layer_calls(counts).saved_share == pytest.approx(8 / 48)
    quality = measure.quality("generate", entries)
    assert quality is not None
    assert quality.truncation_rate == 0.5


def test_throughput_of_scoring_has_names_of_its_own() -> None:
    entries = [entry([], 0.5) | {"scored_tokens": 3}, entry([], 0.5) | {"scored_tokens": 1}]
    speed = measure.throughput("loglikelihood", entries, entries[:1], measure.add_counts(entries))
    assert (speed.scored_tokens_per_second, speed.requests_per_second) == (4.0, 2.0)
    assert speed.tokens_per_second is None
    assert measure.quality("loglikelihood", entries) is None


def test_answers_are_counted_by_the_step_that_scored_them() -> None:
    entries = [
        {"scored_step": step, "reused_tokens": reused}
        for step, reused in [(5, 1), (5, 2), (0, 0), (None, 0), (None, 3), (4, 0)]
    ]
    found = measure.scored_steps("loglikelihood", entries)
    assert found is not None
    assert list(found.first.items()) == [("0", 1), ("4", 1), ("5", 2), ("look-ahead", 2)]
    assert found.words == "3 of 6 answers scored where reuse cannot act"
    assert measure.scored_steps("generate", entries) is None


def test_repetition() -> None:
    assert measure.is_repetitive([1, 2, 3] * 20)
    assert not measure.is_repetitive(list(range(60)))
    assert not measure.is_repetitive([1] * 15)


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
