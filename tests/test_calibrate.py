"""``fdllm calibrate``: an exact test, an order that the tests do not see, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial

from cells import MACHINE, flipped, make_cell, share, write_cell, write_study
from fdllm.calibrate.calibration import Calibration, calibrate
from fdllm.calibrate.loss_test import documents_needed, exact_p, p_value
from fdllm.calibrate.promise import choose_safe, split
from fdllm.cli import main
from fdllm.errors import UsageError
from fdllm.record.summary import Decided
from fdllm.report.records import NotComparableError, Record
from fdllm.report.stats import tango_score

RIGHT = share(1000, 800)


# --- the test -----------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.05, 0.2, -0.1])
@pytest.mark.parametrize("level", [0.05, 0.3])
def test_no_population_that_loses_so_much_is_cleared_more_often_than_stated(
    margin: float, level: float
) -> None:
    """All outcomes of n documents, all populations on the bound and some beyond it."""
    n = 18
    outcomes = [(worse, won) for worse in range(n + 1) for won in range(n + 1 - worse)]
    cleared = np.array([[*o, n - sum(o)] for o in outcomes if exact_p(*o, n, margin) <= level])
    sizes = [
        multinomial.pmf(cleared, n, [won + loss, won, 1 - 2 * won - loss]).sum()
        for loss in (margin, margin + 0.03)
        for won in np.linspace(max(0.0, -loss), (1 - loss) / 2, 60)
    ]
    assert 0.2 * level < max(sizes) <= level


@given(n=st.integers(1, 300), margin=st.floats(-0.5, 0.5), data=st.data())
@settings(max_examples=100, deadline=None)
def test_of_the_documents_that_differ_each_loss_lowers_the_score(
    n: int, margin: float, data: Any
) -> None:
    """What the test's proof rests on."""
    differing = data.draw(st.integers(1, n))
    losses = np.arange(differing + 1)
    score = tango_score(losses, differing - losses, n, -margin)
    assert (np.diff(score) < 1e-9).all()


def test_where_no_document_differs_the_p_value_is_the_chance_of_that() -> None:
    assert exact_p(0, 0, 300, 0.01) == pytest.approx(0.99**300, abs=2e-4)
    assert exact_p(0, 0, 298, 0.01) > 0.05 >= exact_p(0, 0, 300, 0.01)


def test_a_figure_that_is_not_yes_or_no_is_bet_on() -> None:
    draw = np.random.default_rng(0)
    changes = draw.choice([-0.5, 0.0, 0.5], 600)
    assert p_value(changes, 0.2) < 0.01
    assert p_value(changes, -0.2) > 0.5


def test_documents_needed_grow_with_what_differs_and_end_where_too_much_is_lost() -> None:
    def needed(losses: int, gains: int) -> int | None:
        return documents_needed(lost(losses, gains, np.arange(1000)), 0.01, 0.05)

    counts = [needed(0, 0), needed(2, 2), needed(10, 10), needed(14, 10)]
    assert counts == sorted(counts, key=int)  # type: ignore[arg-type]
    assert counts[0] == 299  # 0.99 ** 299 < 0.05
    assert needed(20, 10) is None
    assert documents_needed(lost(0, 50, np.arange(1000)), 0.0, 0.05)  # it wins so much
    assert exact_p(0, 50, 1000, 0.0) < 0.001


# --- several candidates ---------------------------------------------------------------------------


def lost(losses: int, gains: int, places: Any, n: int = 1000) -> Any:
    """What each of n documents loses, those that differ at some places."""
    found = np.zeros(n)
    found[places[:losses]], found[places[losses : losses + gains]] = 1.0, -1.0
    return found


def test_candidates_are_asked_from_the_gentlest_on_until_one_is_not_shown() -> None:
    parts = split(1000, 1000, several=True, seed=0)
    given = [lost(losses, gains, parts.test) for losses, gains in ((0, 0), (26, 20), (4, 4))]
    for saved, said in (
        ([0.1, 0.2, 0.3], ["promised", "not shown", "behind"]),
        ([0.2, 0.3, 0.1], ["promised", "not shown", "promised"]),
    ):
        found = choose_safe(given, saved, parts, 0.02, 0.95)
        assert [one.standing for one in found] == said


def test_a_gentle_candidate_that_is_plainly_bad_blocks_no_other() -> None:
    parts = split(1000, 1000, several=True, seed=0)
    given = [lost(200, 0, parts.calibrating[::5]), np.zeros(1000)]
    found = choose_safe(given, [0.01, 0.1], parts, 0.02, 0.95)
    assert [one.standing for one in found] == ["not shown", "promised"]


def test_the_order_comes_from_documents_that_test_nothing() -> None:
    """Else it would lean on the luck that is being judged."""
    parts = split(1000, 800, several=True, seed=3)
    assert [len(part) for part in (parts.pilot, parts.test, parts.held_out)] == [160, 640, 200]
    every = np.concatenate([parts.calibrating, parts.held_out])
    assert sorted(every.tolist()) == list(range(1000))
    given = [lost(*flips, parts.test) for flips in ((0, 0), (200, 0), (3, 3))]
    before = choose_safe(given, [0.1, 0.2, 0.3], parts, 0.02, 0.95)
    for one in given:
        one[parts.held_out] = 1.0
    assert choose_safe(given, [0.1, 0.2, 0.3], parts, 0.02, 0.95) == before
    assert [one.p_value for one in before] == [p_value(one[parts.test], 0.02) for one in given]
    assert len(split(1000, 800, several=False, seed=3).pilot) == 0


# --- records --------------------------------------------------------------------------------------


def cell(name: str, right: Any, calls: int = 100, **words: Any) -> Record:
    return make_cell(name, right, calls={"denoise": calls}, **words)


def grid() -> list[Record]:
    return [
        cell("k1_first", RIGHT),
        cell("k1_last", RIGHT),
        cell("k2_first", flipped(RIGHT, 3, 3), 90),
        cell("k2_last", flipped(RIGHT, 300, 3), 50),
        cell("k2_middle", flipped(RIGHT, 3, 4), 80),
        cell("k3_first", RIGHT, 110),
    ]


def calibrated(cells: list[Record], **words: Any) -> Calibration:
    return calibrate(cells, cells[0], words.pop("loss", 0.02), 0.95, **words)


def test_the_promised_config_that_saves_most_is_chosen() -> None:
    found = calibrated(grid())
    assert found.chosen is not None
    assert found.chosen.config == "k2_middle"
    assert found.chosen.saved == pytest.approx(0.2)
    said = {one.config: one.standing for one in found.candidates}
    assert said == {"k2_last": "not shown", "k2_middle": "promised", "k2_first": "promised"}
    assert [text.split(":")[0] for text in found.left_out] == ["k1_last", "k3_first"]
    assert "k2_middle saves 20.0 % of layer calls and loses at most 2 points" in found.sentence
    assert "the 200 documents held out do not contradict it" in found.sentence
    assert "at most 1 point, with" in calibrated(grid(), loss=0.01).sentence


def test_only_the_configs_that_are_named_are_candidates() -> None:
    found = calibrated(grid(), configs=["k2_first"])
    assert [one.config for one in found.candidates] == ["k2_first"]
    assert len(found.parts.pilot) == 0
    assert calibrated(grid(), configs=["k1_first"]).left_out == ("k1_first: the baseline itself",)


def test_where_nothing_can_be_promised_the_documents_that_could_are_named() -> None:
    cells = [grid()[0], cell("k2_first", flipped(RIGHT, 9, 9), 95)]
    found = calibrated(cells, loss=0.01, documents=300)
    [one] = found.candidates
    assert found.chosen is None
    assert one.standing == "not shown"
    assert one.needs is not None
    assert one.needs > 1000
    assert found.sentence.startswith("NONE: 300 documents cannot promise a loss of at most 1 point")
    assert f"k2_first alone, which saves 5.0 % of layer calls, {one.needs} would" in found.sentence
    assert calibrated([cells[0], cell("k2_first", flipped(RIGHT, 90, 9), 95)]).sentence.startswith(
        "NONE: no number of documents would promise"
    )
    assert calibrated(cells[:1]).sentence == "NONE: no candidate is shown to save layer calls"


def test_documents_held_out_contradict_a_promise_that_was_luck() -> None:
    parts = split(1000, 800, several=False, seed=0)
    right = np.ones(1000)
    right[parts.held_out[:40]] = 0
    found = calibrated([cell("k1_first", np.ones(1000)), cell("k2_first", right, 90)])
    assert found.chosen is not None
    assert found.chosen.held_out is not None
    assert found.chosen.held_out.contradicts
    assert "held out contradict it" in found.sentence


def test_all_documents_may_choose_and_none_is_held_out() -> None:
    found = calibrated(grid(), documents=1000)
    assert all(one.held_out is None for one in found.candidates)
    assert "no document was held out to test it" in found.sentence


@pytest.mark.parametrize("asked", [1, 1001])
def test_no_more_documents_than_there_are(asked: int) -> None:
    with pytest.raises(UsageError, match="ask for 2 to 1000"):
        calibrated(grid(), documents=asked)


def test_a_record_that_ended_early_is_no_candidate() -> None:
    short = cell("k2_middle", flipped(RIGHT, 3, 4)[:500], 80)
    ended = Decided(documents=500, of=1000, criteria="c")
    fields = short.summary.fingerprint.fields | {"decided": ended.identity}
    mark = short.summary.fingerprint.model_copy(update={"fields": fields})
    summary = short.summary.model_copy(update={"decided": ended, "fingerprint": mark})
    found = calibrated([*grid()[:2], Record(short.folder, summary, short.read)])
    assert not found.candidates
    assert "k2_middle: 500 of 1000 documents" in found.left_out[-1]


def test_verified_drafts_lose_nothing_and_are_not_tested() -> None:
    draft = cell("k2_first", RIGHT, 90)
    counts: Any = {"denoise": {"drafted": 5, "forwards": 5, "computed": 5, "reused": 0}}
    draft = Record(draft.folder, draft.summary.model_copy(update={"counts": counts}), draft.read)
    cells = [grid()[0], draft, grid()[4]]
    found = calibrated(cells, documents=20)
    assert {one.config: one.standing for one in found.candidates} == {
        "k2_first": "lossless",
        "k2_middle": "not shown",
    }
    assert found.chosen is not None
    assert (
        found.sentence == "k2_first saves 10.0 % of layer calls and loses nothing: it only drafts"
    )


def test_the_draft_length_that_moves_fewest_bytes_is_chosen_and_tested_on_other_documents() -> None:
    """More states a round cost layer calls, and save weights that are read once a round."""
    cells = [cell(name, RIGHT) for name in ("k1_first", "k2_first", "k2_middle")]
    for one, read in zip(cells, (100, 60, 80), strict=True):
        counts: Any = {"denoise": {"drafted": 5, "forwards": 9, "computed": 120, "reused": 0}}
        object.__setattr__(one, "summary", one.summary.model_copy(update={"counts": counts}))
        for i, row in enumerate(one.samples):
            moved = read + (read < 100) * (i % 2)
            row["counts"] = {"denoise": row["counts"]["denoise"] | {"weight_bytes": moved}}
    found = calibrated(cells, documents=500, by="bytes")
    assert found.chosen is not None
    assert found.chosen.config == "k2_first"
    assert found.chosen.held_out_bytes_saved == pytest.approx(0.395, abs=0.002)
    assert "saves 39.5 % of bytes moved and loses nothing" in found.sentence
    assert found.sentence.endswith("documents held out 39.5 %")


def test_subjects_go_together_in_the_interval() -> None:
    subjects = [f"s{i % 5}" for i in range(1000)]
    cells = [
        cell(name, right, calls, task="mmlu", subjects=subjects)
        for name, right, calls in (("k1_first", RIGHT, 100), ("k2_first", flipped(RIGHT, 3, 3), 90))
    ]
    assert calibrated(cells).chosen is not None


def test_records_of_two_codes_are_refused() -> None:
    other = cell("k2_first", RIGHT, 90, fields={"source": "s2"})
    with pytest.raises(NotComparableError, match="source"):
        calibrated([*grid(), other])


# --- the command ----------------------------------------------------------------------------------

Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``fdllm calibrate`` of gsm8k, on records below ``tmp_path``."""
    monkeypatch.delenv("FDLLM_MODEL", raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    place = ["--results", str(tmp_path), "--task", "gsm8k"]

    def run(*arguments: str) -> int:
        try:
            return main(["calibrate", "--strategy", "00_baseline", *place, *arguments])
        except SystemExit as ended:
            return int(ended.code or 0)

    return run


def test_the_command_says_what_it_chose(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [write_cell(tmp_path, one) for one in grid()]
    assert command("--loss", "0.02", "--confidence", "0.9", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["chosen"] == "k2_middle"
    assert data["promised"] == ["k2_middle", "k2_first"]
    assert (data["documents"], data["pilot"], data["held_out"]) == (800, 160, 200)
    first = next(one for one in data["candidates"] if one["config"] == "k2_middle")
    assert first["promised"]
    assert first["seen"]["losses"] + first["seen"]["gains"] <= 7
    assert (data["loss"], data["confidence"], data["baseline"]) == (0.02, 0.9, "k1_first")

    assert command("--loss", "0.02") == 0
    said = capsys.readouterr().out
    assert "gsm8k: 00_baseline against k1_first" in said
    assert "800 documents choose (160 order the candidates, 640 test them), 200 are held" in said
    assert "no candidate: k3_first: saves no layer calls" in said

    assert command("--by", "time") == 2
    assert "speed was not measured" in capsys.readouterr().err
    write_study(cells, {"k2_first": 0.7, "k2_last": 0.5}, device=MACHINE)
    assert command("--by", "time", "--loss", "0.02", "--json") == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == "k2_first"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--config", "k2_midle"], "did you mean 'k2_middle'?"),
        (["--strategy", "00_baselin"], "did you mean '00_baseline'?"),
        (["--limit", "10"], "no finished records of gsm8k of limit 10"),
        (["--loss", "1"], "--loss"),
        (["--confidence", "1"], "--confidence"),
        (["--documents", "0"], "--documents"),
    ],
)
def test_what_does_not_exist_is_named(
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    named: str,
) -> None:
    for one in (grid()[0], grid()[4]):
        write_cell(tmp_path, one)
    assert command(*flags) == 2
    assert named in capsys.readouterr().err


def test_a_loss_is_measured_against_a_config_without_reuse(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cell(tmp_path, grid()[2])
    assert command() == 2
    assert "without reuse" in capsys.readouterr().err
