"""Comparisons of runs: metrics and choices exactly, log-likelihoods to a stated tolerance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cells import make_cell, share
from fdllm.cli import main
from fdllm.report.agreement import TOLERANCE, agree, same_answers, stated, tolerance_of
from fdllm.report.compare import compare
from fdllm.report.grid import checks, identical
from fdllm.report.records import Record
from stubs import make_root

RIGHT = share(6, 4)
SCORES = [-1.5, -0.5, -3.0, -2.0]


def scored(name: str, *, shift: float = 0.0, dtype: str = "float32", **changes: Any) -> Record:
    """A cell whose fourth document's best choice has another log-likelihood."""
    outputs = [SCORES] * 3 + [[-1.5, -0.5 + shift, -3.0, -2.0]] + [SCORES] * 2
    cell = make_cell(name, RIGHT, task="mmlu", outputs=outputs, subjects=["law"] * 6, **changes)
    for session in cell.summary.provenance["sessions"]:
        session["dtype"] = dtype
    return cell


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
def test_twins_agree_to_the_rounding_of_their_type(dtype: str) -> None:
    allowed = TOLERANCE[dtype]
    one = scored("k1_first", dtype=dtype)
    for factor, equal in ((0.9, True), (1.1, False), (-1.1, False)):
        other = scored("k1_last", dtype=dtype, shift=factor * allowed)
        assert compare(one, other).identical == equal
        differ = [found.text for found in checks([one, other]) if found.kind == "twins-differ"]
        assert bool(differ) != equal
        if differ:
            assert f"1 of 6 samples differ (log-likelihoods to {allowed:g})" in differ[0]


def test_the_coarsest_type_decides_and_an_unknown_one_is_held_to_the_strictest() -> None:
    def of(*types: str | None) -> float:
        return tolerance_of([scored("k1_first", dtype=str(name)).summary for name in types])

    assert of("float32", "bfloat16") == of("bfloat16") == TOLERANCE["bfloat16"]
    assert of("float64") == of("float32") == TOLERANCE["float32"]
    bare = scored("k1_first").summary.model_copy(update={"provenance": {}})
    assert tolerance_of([bare]) == TOLERANCE["float32"]
    generated = make_cell("k1_first", RIGHT).summary
    assert tolerance_of([generated]) == 0.0
    assert (stated(0.0), stated(1e-3)) == ("", " (log-likelihoods to 0.001)")


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        ([-1.0, -1.0005, -3.0], True),
        ([-1.0005, -1.0, -3.0], False),  # another choice
        ([-1.0, -1.0005], False),
        ([-1.0, -1.0005, -3.0015], False),
        ("-1.0", False),
    ],
)
def test_choices_are_held_exactly(other: Any, *, equal: bool) -> None:
    assert same_answers([-1.0, -1.0004, -3.0], other, 1e-3) == equal


def test_texts_tokens_and_metrics_are_held_exactly() -> None:
    one = {"output": "text", "tokens": 3, "metrics": {"exact_match": 1.0}}
    assert agree(one, dict(one), 0.5)
    for change in ({"output": "texts"}, {"tokens": 4}, {"metrics": {"exact_match": 0.0}}):
        assert not agree(one, one | change, 0.5)
    assert not agree(one, None, 0.5)


def test_a_reuse_that_never_acted_is_found_though_its_run_was_batched_otherwise() -> None:
    cells = [scored("k1_first"), scored("k2_first", shift=1e-5), scored("k2_last", shift=0.1)]
    assert identical(cells) == [("k1_first", "k2_first")]


def test_verified_drafts_are_meant_to_agree() -> None:
    cells = [make_cell(name, RIGHT) for name in ("k1_first", "k1_last", "k2_first")]
    assert identical(cells)
    cells[-1].summary.counts["denoise"] = {"drafted": 1}
    assert identical(cells) == []


# --- a real run, cut short and batched otherwise --------------------------------------------------


def _cut(folder: Path) -> None:
    """As a kill leaves it: no record, and the first third of the journal's lines."""
    (folder / "summary.json").unlink()
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) // 3]))


def _scores(folder: Path) -> list[Sequence[float]]:
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return [json.loads(line)["output"] for line in lines]


@pytest.mark.slow
def test_a_run_that_was_resumed_or_batched_otherwise_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_root(tmp_path / "root")
    monkeypatch.setenv("FDLLM_ROOT", str(root))
    place = root / "results/00_baseline/tiny_choice_limit_12"

    asked = ["--task", "tiny_choice", "--limit", "12", "--model", "tiny"]

    def evaluate(config: str, *flags: str) -> Path:
        assert main(["eval", *asked, "--config", config, *flags]) == 0, capsys.readouterr().err
        return place / config

    evaluate("k1_first")
    alone = evaluate("k1_middle", "--score-batch-size", "1", "--no-compile")
    _cut(evaluate("k1_last", "--score-batch-size", "1"))
    resumed = evaluate("k1_last")
    capsys.readouterr()
    three = ["--config", "k1_first", "k1_middle", "k1_last"]
    assert main(["sweep", *asked, *three]) == 0  # computes nothing, and compares
    shown = " ".join(capsys.readouterr().out.split())
    said = "A/A: k1_first = k1_middle = k1_last in all 12 samples (log-likelihoods to 0.001)"
    assert said in shown
    # They do differ in their last digits: it is the rule that makes them one.
    assert _scores(alone) != _scores(place / "k1_first")
    assert _scores(resumed) != _scores(alone)
