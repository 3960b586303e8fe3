"""A comparison in words, whole: accuracy, speed and reach, each by the figures behind it."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cells import make_cell, make_times, share, write_study
from fdllm.record.paths import Layout
from fdllm.report.alternative import (
    THRESHOLD,
    Alternative,
    at_equal_saving,
    at_equal_time,
    find_control,
)
from fdllm.report.build import Section, TablePage
from fdllm.report.compare import compare
from fdllm.report.compare_text import Comparison, describe, points, smoke_mark
from fdllm.report.made import Made
from fdllm.report.origin import origin
from fdllm.report.page_samples import PageTexts, embed
from fdllm.report.records import Record, load_record
from fdllm.report.stats import Estimate
from fdllm.report.times import TimedPair
from made_up import Invented, write_grid


def speed(claim: Any, ratio: float = 0.8) -> TimedPair:
    estimate = Estimate(ratio, ratio - 0.05, ratio + 0.05)
    return TimedPair("k1_first", "k2_last", estimate, False, claim)


def comparison(**changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "a": "k1_first",
        "b": "k2_last",
        "task": "gsm8k",
        "limit": None,
        "n": 1000,
        "value_a": 0.8,
        "value_b": 0.79,
        "difference": Estimate(-0.01, -0.018, -0.002),
        "interval": "Tango's score interval",
        "p_value": 0.01,
        "p_holm": 0.08,
        "test": "exact McNemar",
        "losses": (("gsm8k", 1), ("gsm8k", 2)),
        "gains": (("gsm8k", 3),),
        "made": Made(0.9, 0.85, 0.95),
        "speed": speed("faster"),
        "floor": 0.04,
        "smallest_detectable": 0.021,
        "margin": 0.02,
        "within": 1.0,
        "beyond": 1.0,
        "rises": {},
        "collapsed": (),
        "same_computation": False,
        "identical": False,
        "tolerance": 0.0,
        "notes": (),
        "verdict": "same-or-better",
        "sentence": "",
    }
    return Comparison(**(values | changes))


FIGURES = (
    "79.0 % against 80.0 % on 1000 documents, -1.0 points [-1.8, -0.2] (Tango's score interval; "
    "exact McNemar, p = 0.0100, by Holm = 0.0800; 2 right to wrong, 1 wrong to right)"
)
FASTER = (
    "It is faster: 0.800 [0.750, 0.850] of k1_first's time in the timing study; noise floor 4.0 %."
)
COST = "It makes 0.85 of k1_first's FLOPs and moves 0.95 of its bytes."
REACH = "The smallest difference these documents could have shown with 80 % power is 2.1 points."


def test_a_comparison_is_a_verdict_a_speed_and_what_limits_them() -> None:
    assert describe(comparison(notes=("a note", "another!"))) == (
        f"k2_last is as accurate as k1_first in accuracy: {FIGURES}; a loss of more than 2 points "
        f"is excluded. {FASTER} {COST} {REACH} a note. another!"
    )


@pytest.mark.parametrize(
    ("changes", "begins", "ends"),
    [
        ({"verdict": "worse"}, "k2_last is worse than k1_first", ")"),
        (
            {"verdict": "cannot-tell", "margin": 0.005},
            "k2_last cannot be told from k1_first",
            "; a loss of more than 0.5 points is neither shown nor excluded",
        ),
        (
            {"difference": Estimate(0.02, 0.001, 0.03), "p_holm": 0.049},
            "k2_last is better than k1_first",
            ")",
        ),
        (
            {"difference": Estimate(0.02, 0.001, 0.03), "p_holm": 0.05},
            "k2_last is as accurate as k1_first",
            "is excluded",
        ),
        (
            {"difference": Estimate(0.02, 0.0, 0.03), "p_holm": 0.001},
            "k2_last is as accurate as k1_first",
            "is excluded",
        ),
    ],
)
def test_verbs_follow_from_the_verdict(changes: dict[str, Any], begins: str, ends: str) -> None:
    first = describe(comparison(**changes)).split(". It is")[0]
    assert first.startswith(f"{begins} in accuracy: 79.0 % against 80.0 %")
    assert first.endswith(ends)


def test_one_computation_needs_no_verdict() -> None:
    same = comparison(same_computation=True, identical=True, p_holm=0.01)
    text = describe(same)
    assert text.startswith("k2_last is one computation with k1_first, and every output agrees: 79")
    assert "smallest difference" not in text
    near = describe(replace(same, tolerance=1e-4))
    assert "and every output agrees (log-likelihoods to 0.0001): 79" in near
    for half in (replace(same, identical=False), replace(same, same_computation=False)):
        assert "one computation" not in describe(half)
        assert REACH in describe(half)


def test_p_values_and_flips_are_told_where_there_are_any() -> None:
    text = describe(comparison(p_value=0.00009, p_holm=0.00009, losses=(), gains=()))
    assert "(Tango's score interval; exact McNemar, p < 0.0001)" in text
    assert "p = 0.0001" in describe(comparison(p_value=0.0001, p_holm=0.0001))
    assert "; 0 right to wrong, 1 wrong to right" in describe(comparison(losses=()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, FASTER),
        ({"verdict": "worse"}, "It is faster, at the price of -1.0 points: 0.800 [0.750, 0.850]"),
        ({"speed": speed("slower", 1.25)}, "It is slower: 1.250 [1.200, 1.300] of k1_first's time"),
        ({"speed": speed("none")}, "No difference in speed is claimed: 0.800 [0.750, 0.850] of"),
        (
            {"collapsed": ("accuracy fell", "it repeats")},
            (
                "It has collapsed (accuracy fell, it repeats), so its time says nothing "
                "(measured: 0.800 [0.750, 0.850] of k1_first's time)."
            ),
        ),
        ({"speed": speed("none"), "floor": None}, "in the timing study; noise floor unknown."),
        ({"speed": None}, f"is excluded. {COST} {REACH}"),
        ({"speed": None, "made": Made(0.9, None, None)}, f"is excluded. {REACH}"),
    ],
)
def test_speed_in_words(changes: dict[str, Any], said: str) -> None:
    assert said in describe(comparison(**changes))


def test_reach_and_smoke() -> None:
    nothing = describe(comparison(smallest_detectable=1.0))
    assert nothing.endswith("No difference could have been shown with so few documents.")
    text = describe(comparison(limit=10))
    mark = "SMOKE TEST (limit 10, says nothing about accuracy or speed): "
    assert text.startswith(f"{mark}k2_last is")
    assert (smoke_mark(None), smoke_mark(10)) == ("", mark)
    assert [points(x) for x in (-0.0149, 0.0, 0.2)] == [
        "-1.5 points",
        "+0.0 points",
        "+20.0 points",
    ]


# --- origin ---------------------------------------------------------------------------------------


def session(**changes: Any) -> dict[str, Any]:
    return {
        "machine": "m",
        "packages": {"torch": "2", "a": "1"},
        "git": {"commit": "c" * 40, "dirty": False},
        "started": "then",
        **changes,
    }


def with_origin(name: str, sessions: list[dict[str, Any]], **fields: str) -> Any:
    cell = make_cell(name, share(4, 2), fields={"model": f"sha256:{'a' * 64}"} | fields)
    provenance = {"sessions": sessions, "finished": "2026-11-26"}
    files = {"samples.jsonl": {"lines": 4, "bytes": 1, "sha256": "f" * 64}}
    whole = cell.summary.model_dump() | {"provenance": provenance, "files": files}
    return replace(cell, summary=type(cell.summary)(**whole))


def test_where_a_table_comes_from() -> None:
    one = with_origin("k1_first", [session(started="first"), session(dtype="float16")])
    found = origin([one])
    assert found.differing == {}
    assert found.unexpected == ()
    assert found.same == {
        "fingerprint": one.summary.fingerprint.digest,
        "strategy": "k1_first",
        "decoding": "threshold=0.9",
        "commit": "cccccccccc",
        "source": "s1",
        "experiment code": "unknown",
        "model": one.summary.model,
        "weights": "a" * 12,
        "revision": "by content",
        "task definition": "gsm8k",
        "documents": "documents",
        "few-shot seed": "unknown",
        "few-shot examples": "unknown",
        "chat template": "unknown",
        "asking": "unknown",
        "preset": "unknown",
        "machine": "m",
        "dtype": "float16",
        "packages": "a 1, torch 2",
        "image": "none",
        "SLURM job": "none",
        "sessions": "2",
        "started": "first",
        "finished": "2026-11-26",
        "samples": "f" * 12,
    }


@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_a_grid_does_not_vary_by_design_is_unexpected(at: int) -> None:
    names = ("k1_first", "k2_first", "k3_first")
    dirty = session(git={"commit": "d" * 40, "dirty": True}, slurm_job_id="7")
    cells = [
        with_origin(n, [dirty if i == at else session()], fewshot_seed="5" if i == at else "3")
        for i, n in enumerate(names)
    ]
    found = origin(cells)
    assert found.unexpected == ("commit", "few-shot seed", "SLURM job")
    assert set(found.differing) == {"fingerprint", "strategy", *found.unexpected}
    assert found.differing["commit"][names[at]] == "dddddddddd with changes"
    assert found.differing["few-shot seed"] == {
        n: "5" if i == at else "3" for i, n in enumerate(names)
    }


# --- the plain alternative ------------------------------------------------------------------------


def test_no_alternative_says_why(tmp_path: Any) -> None:
    base = make_cell("k1_first", share(40, 30))
    times, layout = make_times(k2_last=0.8), Layout.of(tmp_path, tmp_path)
    found = find_control(layout, THRESHOLD, [base], base)
    assert at_equal_time(found, [base], times) == Alternative(THRESHOLD)
    assert at_equal_saving(found, [base], base) == Alternative(THRESHOLD)
    assert found.note == "05_threshold has no records of this task and model"
    own = replace(base, summary=base.summary.model_copy(update={"experiment": "05_threshold"}))
    assert find_control(layout, THRESHOLD, [own], own).note == "", "nothing is its own control"


@pytest.mark.parametrize(
    ("cells", "study", "note"),
    [
        ((("t0.95", 0.95), ("t0.50", 0.5)), False, "in 05_threshold, speed was not measured: "),
        ((("t0.50", 0.5), ("t0.75", 0.75)), True, "05_threshold has no cell that decodes as k1"),
        ((("t0.95", 0.95), ("t0.50", 0.5)), True, "in the timing study of 05_threshold no two of"),
        ((("t0.95", 0.95), ("t0.95_again", 0.95), ("t0.50", 0.5)), True, ""),
    ],
)
def test_why_thresholds_are_not_compared(
    tmp_path: Path, cells: tuple[tuple[str, float], ...], study: bool, note: str
) -> None:
    results = tmp_path / "results"
    grid = [Invented(name) for name in ("k1_first", "k1_last", "k2_first")]
    table = [load_record(one.folder) for one in write_grid(results, grid, num_docs=20)]
    given = [Invented(name, threshold=threshold) for name, threshold in cells]
    written = write_grid(results, given, experiment="05_threshold", num_docs=20)
    if study:
        write_study([load_record(one.folder) for one in written], {"t0.50": 0.7})
    layout, times = Layout.of(tmp_path, results), make_times(k2_first=0.8)
    control = find_control(layout, THRESHOLD, table, table[0])
    found = at_equal_time(control, table, times)
    said = control.note or found.note
    assert said.startswith(note)
    assert bool(said) == bool(note)
    assert control.left_out == ()
    assert at_equal_time(control, table, make_times()).note == "", "nothing was timed"
    if not note:
        assert [one.rival for one in found.against] == ["t0.50"]
        assert [cell.name for cell in found.cells] == ["t0.50", "t0.95"]
        stray = written[2].folder / "summary.json"
        older = json.loads(stray.read_text()) | {"version": 0}
        stray.write_text(json.dumps(older))
        again = find_control(layout, THRESHOLD, table, table[0])
        assert at_equal_time(again, table, times).cells == found.cells[1:]
        [said] = again.left_out
        assert said.startswith("05_threshold/gsm8k/t0.50: summary.json has version 0, not 1; ")


# --- flips ----------------------------------------------------------------------------------------


def texts(base: Record, other: Record, budget: int) -> PageTexts:
    values: dict[str, Any] = dict.fromkeys(TablePage.__dataclass_fields__)
    against = {other.name: compare(base, other)}
    values |= {"key": "t0", "baseline": base.name, "against": against}
    values |= {"folder": "gsm8k_limit_9@tiny", "task": "gsm8k", "model": "tiny", "limit": 9}
    section = Section((base, other), table=TablePage(**values))
    return embed([section], "00_baseline", budget)["t0"]


def test_answers_stand_side_by_side_and_long_texts_are_cut() -> None:
    outputs = [f"x{i}" * 4000 for i in range(6)]
    base = make_cell("k1_first", share(6, 3), outputs=[f"base {i}" for i in range(6)])
    other = make_cell("k2_last", [0, 1, 1, 1, 0, 0], outputs=outputs)
    whole = texts(base, other, 10**6)
    assert whole.data["cells"] == ["k1_first", "k2_last"]
    assert whole.data["baseline"] == 0
    assert whole.data["trace"] == (
        "fdllm trace --experiment 00_baseline --task gsm8k --model tiny --limit 9"
    )
    docs = whole.data["docs"]
    assert [(doc["id"], doc["name"]) for doc in docs] == [(f"gsm8k #{i}", f"{i}") for i in range(6)]
    assert [[one["value"] for one in doc["answers"]] for doc in docs[:2]] == [[1, 0], [1, 1]]
    assert docs[3]["answers"][0]["text"] == "base 3"
    assert docs[3]["target"] == "target 3"
    shown = docs[0]["answers"][1]
    assert shown["text"] == f"{outputs[0][:6000]}\n[… 2,000 characters more, in samples.jsonl]"
    assert (whole.num_cut, whole.num_same, whole.num_flips) == (6, 0, 0)
    assert json.loads(zlib.decompress(base64.b64decode(whole.packed))) == whole.data
    small = texts(base, other, 100).data["docs"]
    assert [doc["name"] for doc in small] == ["0", "3"], "what no config flips goes first"
    assert small[0]["answers"][1]["text"].startswith(outputs[0][:300] + "\n[… 7,700 ")


def test_documents_are_left_out_where_cutting_is_not_enough() -> None:
    base = make_cell("k1_first", share(500, 400), outputs=["a" * 900] * 500)
    other = make_cell("k2_last", [0.0] * 500, outputs=["b" * 900] * 500)
    whole = texts(base, other, 10**7)
    assert (len(whole.data["docs"]), whole.num_same, whole.num_flips) == (500, 0, 0)
    few = texts(base, other, 100)
    assert (len(few.data["docs"]), few.num_same, few.num_flips) == (50, 100, 350)


def test_a_scored_flip_shows_every_choice_and_the_one_that_was_taken() -> None:
    outputs = [[-2.0, -1.0, -3.0]] * 6
    base = make_cell("k1_first", share(6, 6), outputs=[[-0.5, -1.0, -3.0]] * 6, task="tiny_choice")
    other = make_cell("k2_last", share(6, 5), outputs=outputs, task="tiny_choice")
    first, second = texts(base, other, 10**6).data["docs"][5]["answers"]
    assert first["text"].splitlines()[0] == "choice 1: log-likelihood -0.5000  ← chosen"
    assert second["text"].splitlines() == [
        "choice 1: log-likelihood -2.0000",
        "choice 2: log-likelihood -1.0000  ← chosen",
        "choice 3: log-likelihood -3.0000",
    ]
