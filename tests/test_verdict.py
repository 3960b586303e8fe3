"""The verdict against the success criteria: each criterion on its own figure, at its own edge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fdllm.criteria import Criteria
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.speed import TimedPair
from fdllm.report.stats import Estimate
from fdllm.report.verdict import CriterionResult, Judged, Judgement, judge


def cell(name: str = "k2_last", **changes: Any) -> CellFigures:
    """A cell's figures; what a criterion looks at is given."""
    values: dict[str, Any] = dict.fromkeys(CellFigures.__dataclass_fields__)
    values |= {"name": name, "saved_share": 0.25, "truncation": 0.0, "repetition": 0.0}
    return CellFigures(**(values | changes))


def against(**changes: Any) -> Comparison:
    """A comparison in which every criterion below is met: one percent better, twice as fast."""
    values: dict[str, Any] = dict.fromkeys(Comparison.__dataclass_fields__)
    values |= {
        "difference": Estimate(0.01, 0.0, 0.02), "speed": speed(), "floor": 0.03, "collapsed": (),
    }  # fmt: skip
    return Comparison(**(values | changes))


def speed(
    ratio: tuple[float, float, float] = (0.5, 0.48, 0.52), claim: Any = "faster"
) -> TimedPair:
    return TimedPair("k1_first", "k2_last", Estimate(*ratio), False, claim)


BASE = cell("k1_first")


def verdict(
    criteria: Criteria,
    *cells: tuple[CellFigures, Comparison | None],
    task: str = "gsm8k",
    smoke: bool = False,
    base: CellFigures | None = BASE,
) -> Judgement:
    return judge(criteria, [Judged(task, smoke, base, cells)])


def finding(
    criteria: Criteria, one: CellFigures, other: Comparison | None, **changes: Any
) -> CriterionResult:
    (found,) = verdict(criteria, (one, other), **changes).cells[0].findings
    return found


# --- one criterion, one cell ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.02, 0.5, "met"),  # the edge itself is still allowed
        (-0.021, 0.5, "open"),
        (-0.5, -0.02, "open"),
        (-0.5, -0.021, "missed"),
    ],
)
def test_a_drop_of_accuracy_is_judged_by_its_whole_interval(
    low: float, high: float, outcome: str
) -> None:
    other = against(difference=Estimate(0.0, low, high))
    found = finding(Criteria(max_accuracy_drop=0.02), cell(), other)
    assert (found.criterion, found.outcome) == ("max_accuracy_drop", outcome)
    assert found.text.startswith("+0.0")
    assert "points" in found.text


@pytest.mark.parametrize(
    ("low", "high", "claim", "outcome"),
    [
        (0.7, 0.8, "faster", "met"),  # the edge itself is fast enough
        (0.7, 0.81, "faster", "open"),
        (0.8, 0.9, "faster", "open"),
        (0.81, 0.9, "faster", "missed"),
        (0.7, 0.8, "none", "open"),
        (1.1, 1.2, "slower", "missed"),
        (0.99, 1.01, "none", "missed"),
    ],
)
def test_a_speed_up_is_judged_by_the_study_alone(
    low: float, high: float, claim: str, outcome: str
) -> None:
    """Whatever the accuracy is: here it is lost altogether, or gained tenfold."""
    for change in (-0.9, 9.0):
        pair = speed((0.75, low, high), claim)
        other = against(difference=Estimate(change, change, change), speed=pair)
        found = finding(Criteria(min_speedup=1.25), cell(), other)
        assert (found.criterion, found.outcome) == ("min_speedup", outcome)
        assert found.text.startswith(f"0.75 [{low:.2f}, {high:.2f}] of the time")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"floor": 0.3}, "noise floor 30.0 %"),
        ({"floor": None}, "noise unknown: no A/A cells"),
        ({"collapsed": ("accuracy fell",)}, "collapsed"),
    ],
)
def test_noise_blocks_met_and_missed_alike(changes: dict[str, Any], why: str) -> None:
    for ratio in ((0.5, 0.48, 0.52), (1.1, 1.0, 1.2)):
        found = finding(
            Criteria(min_speedup=1.2), cell(), against(speed=speed(ratio, "none"), **changes)
        )
        assert found.outcome == "open"
        assert found.text.endswith(f"({why})")


def test_without_a_comparison_an_interval_is_open() -> None:
    for criteria in (Criteria(max_accuracy_drop=0.5), Criteria(min_speedup=0.5)):
        assert finding(criteria, cell(), None).outcome == "open"
    found = finding(Criteria(min_speedup=0.5), cell(), against(speed=None))
    assert (found.outcome, found.text) == ("open", "speed was not measured")


@pytest.mark.parametrize(("share", "outcome"), [(0.2, "met"), (0.199, "missed")])
def test_saved_layer_calls_need_no_interval(share: float, outcome: str) -> None:
    found = finding(Criteria(min_saved_share=0.2), cell(saved_share=share), None)
    assert (found.criterion, found.outcome) == ("min_saved_share", outcome)
    assert found.text == f"{100 * share:.1f} % of layer calls saved"


@pytest.mark.parametrize("figure", ["truncation", "repetition"])
@pytest.mark.parametrize(
    ("then", "now", "outcome"),
    [
        (0.25, 0.5, "met"),
        (0.25, 0.51, "missed"),
        (0.9, 0.95, "met"),
        (None, 0.0, "open"),
        (0.0, None, "open"),
    ],
)
def test_signs_of_degeneration_are_judged_by_their_rise(
    figure: str, then: float | None, now: float | None, outcome: str
) -> None:
    name = f"max_{figure}_rise"
    limit = Criteria.model_validate({name: 0.25})
    changes: list[dict[str, Any]] = [{figure: then}, {figure: now}]
    before, after = (replace(BASE, **change) for change in changes)
    found = finding(limit, after, None, base=before)
    assert (found.criterion, found.outcome) == (name, outcome)
    assert finding(limit, cell(), None, base=None).outcome == "open"


def test_of_several_criteria_each_is_judged_and_the_worst_decides() -> None:
    criteria = Criteria(
        max_accuracy_drop=0.02, min_speedup=1.5, min_saved_share=0.5, max_truncation_rise=0.1
    )
    (judged,) = verdict(criteria, (cell(saved_share=0.1), against())).cells
    names = ["max_accuracy_drop", "min_speedup", "min_saved_share", "max_truncation_rise"]
    assert [one.criterion for one in judged.findings] == names
    assert [one.outcome for one in judged.findings] == ["met", "met", "missed", "met"]
    assert (judged.task, judged.config, judged.outcome) == ("gsm8k", "k2_last", "missed")


# --- all of them ----------------------------------------------------------------------------------

GOOD, BAD, DIM = 0.9, 0.1, None  # saved shares: met, missed; None stands for an open one
BOTH = {"min_saved_share": 0.5, "max_accuracy_drop": 0.02}


def shares(**saved: float | None) -> list[tuple[CellFigures, Comparison | None]]:
    """Cells that meet, miss or leave open what :data:`BOTH` ask."""
    return [
        (cell(name, saved_share=GOOD if share is None else share), None if share is None else ok)
        for name, share in saved.items()
        for ok in [against()]
    ]


@pytest.mark.parametrize(
    ("saved", "of_any", "of_all"),
    [
        ({"a": GOOD, "b": GOOD}, "confirmed", "confirmed"),
        ({"a": GOOD, "b": BAD}, "confirmed", "refuted"),
        ({"a": BAD, "b": GOOD}, "confirmed", "refuted"),
        ({"a": GOOD, "b": DIM}, "confirmed", "cannot tell"),
        ({"a": BAD, "b": DIM}, "cannot tell", "refuted"),
        ({"a": BAD, "b": BAD}, "refuted", "refuted"),
        ({}, "cannot tell", "cannot tell"),
    ],
)
def test_any_config_or_all_of_them(
    saved: dict[str, float | None], of_any: str, of_all: str
) -> None:
    assert verdict(Criteria(**BOTH, require="any"), *shares(**saved)).word == of_any
    assert verdict(Criteria(**BOTH, require="all"), *shares(**saved)).word == of_all


def test_a_config_must_meet_them_on_every_task() -> None:
    def of(task: str, **saved: float | None) -> Judged:
        return Judged(task, False, BASE, shares(**saved))

    half = [of("gsm8k", a=GOOD, b=BAD), of("mmlu", a=BAD, b=GOOD)]
    found = judge(Criteria(**BOTH), half)
    assert found.word == "refuted"
    assert found.sentence == (
        "No config meets the criteria. min_saved_share is missed by 2 of 4 cells."
    )
    whole = [of("gsm8k", a=GOOD, b=BAD), of("mmlu", a=GOOD, b=GOOD)]
    assert judge(Criteria(**BOTH), whole).sentence == "The criteria are met by a."
    strict = judge(Criteria(**BOTH, require="all"), whole)
    assert strict.sentence.startswith("Not every config meets the criteria. min_saved_share is ")
    assert judge(Criteria(**BOTH, tasks=("mmlu",)), half).word == "confirmed"
    missing = judge(Criteria(**BOTH, tasks=("mmlu", "ifeval")), half)
    assert missing.word == "cannot tell"
    assert "No records yet of ifeval." in missing.sentence


def test_only_the_configs_that_are_named_count() -> None:
    found = verdict(Criteria(**BOTH, configs=("b",)), *shares(a=GOOD, b=BAD))
    assert [one.config for one in found.cells] == ["b"]
    assert found.word == "refuted"


def test_what_is_open_is_counted_beside_what_is_missed() -> None:
    found = verdict(Criteria(**BOTH), *shares(a=BAD, b=DIM, c=DIM))
    assert found.sentence == (
        "The records do not decide it. max_accuracy_drop is open for 2 of 3 cells; "
        "min_saved_share is missed by 1 of 3 cells."
    )
    assert found.criteria == Criteria(**BOTH).words


def test_a_smoke_test_decides_nothing_and_gives_way_to_the_whole() -> None:
    for saved in (GOOD, BAD):
        few = verdict(Criteria(**BOTH), *shares(a=saved), smoke=True)
        assert few.word == "cannot tell"
        assert all(one.outcome == "open" for one in few.cells[0].findings)
        assert all(one.text.endswith("(smoke test)") for one in few.cells[0].findings)
        assert "Only a smoke test of gsm8k" in few.sentence
    tasks = [
        Judged("gsm8k", True, BASE, shares(a=BAD)),
        Judged("gsm8k", False, BASE, shares(a=GOOD)),
        Judged("mmlu", True, BASE, shares(a=GOOD)),
    ]
    found = judge(Criteria(**BOTH), tasks)
    assert [(one.task, one.outcome) for one in found.cells] == [("gsm8k", "met"), ("mmlu", "open")]
    assert "Only a smoke test of mmlu:" in found.sentence


def test_without_criteria_nothing_is_judged() -> None:
    found = judge(None, [Judged("gsm8k", False, BASE, shares(a=GOOD))])
    assert (found.word, found.criteria, found.cells) == ("no criteria", "", ())
