"""``fdllm compare A published``: a figure stands beside a record of its own protocol alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cells import make_cell, share, write_cell
from fdllm.cli import main
from fdllm.core.config import Decoding
from fdllm.presets.reader import load_preset
from fdllm.record.summary import Summary
from fdllm.report.published import compare_published, differences
from fdllm.report.records import NotComparableError, Record
from fdllm.runs import Evaluating

PRESET = load_preset("published")
MODEL = "Efficient-Large-Model/Fast_dLLM_v2_7B"
Compare = Callable[..., int]


def fields(task: str = "gsm8k", **changes: Any) -> dict[str, str]:
    """Of a run of the whole protocol, but for ``changes`` of its settings."""
    decoding = PRESET.decoding_of(task) | {
        k: v for k, v in changes.items() if k in Decoding.model_fields
    }
    asked = Evaluating(**PRESET.evaluation_of(task)).changed(
        {k: v for k, v in changes.items() if k in Evaluating.model_fields}
    )
    own = {"decoding": Decoding(**decoding).words, "preset": changes.get("preset", "published")}
    scoring = asked.scoring if task == "mmlu" else "none"
    return asked.identity() | own | {"scoring": changes.get("scoring", scoring)}


def record(right: int = 1104, task: str = "gsm8k", n: int = 1319, **changes: Any) -> Record:
    """A finished cell of the published 7B."""
    ours = {k: changes.pop(k) for k in ("limit", "config", "dtype", "model") if k in changes}
    cell = make_cell(
        ours.get("config", "k1_first"),
        share(n, right),
        task=task,
        limit=ours.get("limit"),
        estimator="first-token",
        fields=fields(task, **changes),
    )
    summary = cell.summary
    headline = summary.headline.model_copy(update={"num_correct": right})
    sessions = [{"machine": "a GPU", "dtype": ours.get("dtype", "bfloat16")}]
    update = {
        "headline": headline,
        "provenance": {"sessions": sessions},
        "model": ours.get("model", summary.model),
    }
    whole = summary.model_copy(update=update)
    return Record(cell.folder, whole, cell.samples)


def summary(**changes: Any) -> Summary:
    return record(**changes).summary


def test_a_record_of_the_protocol_stands_beside_the_figure() -> None:
    found = compare_published(summary(), PRESET, 0.03)
    assert found.published == pytest.approx(0.837)
    assert (found.num_samples, found.verdict) == (1319, "same-or-better")
    assert found.low < found.value < found.high
    assert found.exceptions == PRESET.exceptions
    assert found.sentence == (
        "gsm8k / k1_first: 83.7 % [81.6, 85.6] of 1319 rows, published 83.7 % under the same "
        "protocol (preset published)"
    )


@pytest.mark.parametrize(
    ("right", "margin", "verdict"),
    [
        (1104, 0.02, "cannot-tell"),
        (1104, 0.03, "same-or-better"),
        (1200, 0.0, "same-or-better"),
        (1085, 0.02, "cannot-tell"),
        (1060, 0.02, "worse"),
        (1060, 0.5, "worse"),
    ],
)
def test_the_verdict_is_that_of_the_interval(right: int, margin: float, verdict: str) -> None:
    assert compare_published(summary(right=right), PRESET, margin).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"limit": 10}, "limit 10 -> all rows"),
        ({"model": "tiny"}, "model: tiny -> Efficient-Large-Model/Fast_dLLM_v2_7B"),
        ({"config": "k2_middle"}, "it reuses layers, which the published model does not"),
        ({"dtype": "float16"}, "dtype: float16 -> bfloat16"),
        ({"preset": "none"}, "preset: none -> published"),
        ({"preset": "ancestor"}, "preset: ancestor -> published"),
        ({"preset": "published, but scoring=chain"}, "preset: published, but scoring=chain -> "),
        ({"threshold": 0.95}, "decoding: threshold=0.95 -> threshold=1.0"),
        ({"use_block_cache": True}, "decoding: use_block_cache=True -> use_block_cache=False"),
        ({"temperature": 0.5}, "decoding: temperature=0.5 -> temperature=0.0"),
        ({"num_fewshot": 5}, "num_fewshot: 5 -> 0"),
        ({"chat_template": False}, "chat_template: False -> True"),
        ({"instruction": "ending"}, "asking: instruction=ending -> instruction=everywhere"),
        ({"ignore_until": False}, "asking: ignore_until=False -> ignore_until=True"),
        ({"whole_blocks": False}, "asking: whole_blocks=False -> whole_blocks=True"),
        ({"stop_token": None}, "asking: stop_token=None -> stop_token=<|im_end|>"),
        ({"headline": "exact_match,strict-match"}, "asking: headline=exact_match,strict-match -> "),
        ({"task": "mmlu", "scoring": "denoise"}, "scoring: denoise -> first-token"),
        ({"task": "mmlu", "num_fewshot": 0}, "num_fewshot: 0 -> 5"),
    ],
)
def test_any_other_protocol_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    [found] = differences(summary(**changes), PRESET, MODEL)
    assert found.startswith(says)


def test_what_a_record_does_not_say_is_no_protocol() -> None:
    """A record of an older kind names few fields."""
    bare = make_cell("k1_first", share(10, 8)).summary
    found = differences(bare, PRESET, MODEL)
    names = ("decoding", "preset", "scoring", "num_fewshot", "fewshot_seed", "chat_template")
    assert {one.split(":")[0] for one in found} == {"dtype", "asking", *names}


def test_some_tasks_have_no_figure() -> None:
    """HumanEval's 63.4 is EvalPlus's, so the harness's task has none."""
    with pytest.raises(NotComparableError) as raised:
        compare_published(summary(task="humaneval"), PRESET, 0.02)
    assert str(raised.value) == (
        "no figure of humaneval is published for preset 'published'; there are figures of gsm8k, "
        "minerva_math, ifeval, mmlu, gpqa_main_n_shot: name one with --task"
    )
    with pytest.raises(NotComparableError, match="there are figures of none"):
        compare_published(summary(), load_preset("ancestor"), 0.02)


def test_a_figure_without_an_interval_decides_nothing() -> None:
    weighed = summary().model_copy(
        update={"headline": summary().headline.model_copy(update={"num_correct": None})}
    )
    with pytest.raises(NotComparableError, match="so it has no interval"):
        compare_published(weighed, PRESET, 0.02)


def test_batch_sizes_are_no_part_of_it() -> None:
    assert not differences(summary(batch_size=7, score_batch_size=3), PRESET, MODEL)


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    monkeypatch.delenv("FDLLM_MODEL", raising=False)

    def run(*arguments: str) -> int:
        flags = ("--results", str(tmp_path), "--task", "gsm8k")
        return main(["compare", *arguments, *flags])

    return run


def write(results: Path, cell: Record, preset: str) -> None:
    """Where a run under a preset leaves its record."""
    folder = write_cell(results, cell).folder
    there = folder.parent.with_name(f"{folder.parent.name}+{preset}" if preset else "gsm8k")
    there.mkdir(exist_ok=True)
    folder.rename(there / folder.name)


def test_compare_with_the_published_figure(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, record(right=1120), "published")
    assert compare("k1_first", "published", "--preset", "published") == 0
    first, *exceptions = capsys.readouterr().out.splitlines()
    assert first.startswith("SAME OR BETTER: gsm8k / k1_first: 84.9 % [")
    assert len(exceptions) == len(PRESET.exceptions) > 0
    assert compare("k1_first", "published", "--preset", "published", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["version"], told["exit_code"]) == (1, 0)
    [one] = told["comparisons"]
    assert one["published"] == pytest.approx(0.837)
    assert one["preset"] == "published"
    assert one["difference"] == pytest.approx(1120 / 1319 - 0.837)


def test_records_of_the_experiments_own_protocol_are_refused(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, record(preset="none", threshold=0.95), "")
    assert compare("k1_first", "published") == 2
    err = capsys.readouterr().err
    assert "must not stand beside a figure published for preset 'published'" in err
    assert "preset: none -> published" in err
    assert "fdllm sweep --preset published --config k1_first --task gsm8k" in err
    assert len(err.strip().splitlines()) == 1
    assert compare("k1_first", "published", "--strict") == 1


def test_there_is_no_record_under_the_preset(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, record(), "")
    assert compare("k1_first", "published", "--preset", "published") == 2
    assert "no finished records of gsm8k without a limit under preset published of 'k1_first'" in (
        capsys.readouterr().err
    )


def test_cells_of_two_protocols_are_found_apart(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    for right, preset in ((900, "published"), (1104, "")):
        for config in ("k1_first", "k1_middle"):
            write(tmp_path, record(right=right, preset=preset or "none", config=config), preset)
    for flags, accuracy in (((), "83.7 %"), (("--preset", "published"), "68.2 %")):
        compare("k1_first", "k1_middle", *flags)
        assert accuracy in capsys.readouterr().out
