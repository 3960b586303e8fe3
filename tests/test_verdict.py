"""The verdict against the success criteria: each criterion on its own figure, at its own edge."""

from __future__ import annotations

from typing import Any

import pytest

from fdllm.criteria import RISES, Criteria
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.made import Made
from fdllm.report.margins import Marked
from fdllm.report.stats import Estimate
from fdllm.report.times import TimedPair
from fdllm.report.verdict import CriterionResult, Judged, Judgement, judge


def cell(name: str = "k2_last", **changes: Any) -> CellFigures:
    """A cell's figures; what a criterion looks at is given."""
    values: dict[str, Any] = dict.fromkeys(CellFigures.__dataclass_fields__)
    values |= {
        "name": name, "reuses": True, "saved_share": 0.25, "truncation": 0.0, "repetition": 0.0,
    }  # fmt: skip
    return CellFigures(**(values | changes))


def against(**changes: Any) -> Comparison:
    """A comparison in which every criterion below is met: one percent better, twice as fast."""
    values: dict[str, Any] = dict.fromkeys(Comparison.__dataclass_fields__)
    values |= {
        "difference": Estimate(0.01, 0.0, 0.02), "speed": speed(), "floor": 0.03, "collapsed": (),
        "within": 0.0, "beyond": 0.0, "a": "k1_first", "made": Made(0.75, 0.75, 0.75),
        "rises": {},
    }  # fmt: skip
    return Comparison(**(values | changes))


def speed(
    ratio: tuple[float, float, float] = (0.5, 0.48, 0.52), claim: Any = "faster"
) -> TimedPair:
    return TimedPair("k1_first", "k2_last", Estimate(*ratio), False, claim)


def verdict(
    criteria: Criteria,
    *cells: tuple[CellFigures, Comparison | None],
    task: str = "gsm8k",
    smoke: bool = False,
) -> Judgement:
    return judge(criteria, [Judged(task, smoke, cells)])


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
        assert found.text.startswith(f"0.750 [{low:.3f}, {high:.3f}] of the time")


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
    made = Made(1 - share, None, None)
    found = finding(Criteria(min_saved_share=0.2), cell(saved_share=0.9), against(made=made))
    assert (found.criterion, found.outcome) == ("min_saved_share", outcome)
    assert found.text == f"makes {100 * (1 - share):.1f} % of k1_first's layer calls"
    assert finding(Criteria(min_saved_share=0.2), cell(saved_share=0.9), None).outcome == "open"


@pytest.mark.parametrize("name", RISES)
@pytest.mark.parametrize(
    ("more", "fewer", "outcome"),
    [(0, 0, "met"), (40, 40, "met"), (25, 0, "open"), (25, 80, "met"), (90, 0, "missed")],
)
def test_signs_of_degeneration_are_judged_by_the_whole_interval_of_their_rise(
    name: str, more: int, fewer: int, outcome: str
) -> None:
    """Of 1,000 answers, those cut off (repetitive) on one side alone; 3 points are allowed."""
    limit = Criteria.model_validate({name: 0.03})
    found = finding(limit, cell(), against(rises={name: Marked(more, fewer, 1000)}))
    assert (found.criterion, found.outcome) == (name, outcome)
    assert found.text.startswith(f"{(more - fewer) / 10:+.1f} points [")
    assert (found.p_value <= 0.05) or outcome == "open"
    for other in (None, against()):
        assert finding(limit, cell(), other) == CriterionResult(name, "open", "not measured")


def test_of_several_criteria_each_is_judged_and_the_worst_decides() -> None:
    criteria = Criteria(
        max_accuracy_drop=0.02, min_speedup=1.5, min_saved_share=0.5, max_truncation_rise=0.1
    )
    rises = {"max_truncation_rise": Marked(0, 0, 1000)}
    other = against(made=Made(0.9, None, None), rises=rises)
    (judged,) = verdict(criteria, (cell(), other)).cells
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
        (cell(name), None if share is None else against(made=Made(1 - share, None, None)))
        for name, share in saved.items()
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
        return Judged(task, False, shares(**saved))

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
        "min_saved_share is missed by 1 and open for 2 of 3 cells."
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
        Judged("gsm8k", True, shares(a=BAD)),
        Judged("gsm8k", False, shares(a=GOOD)),
        Judged("mmlu", True, shares(a=GOOD)),
    ]
    found = judge(Criteria(**BOTH), tasks)
    assert [(one.task, one.outcome) for one in found.cells] == [("gsm8k", "met"), ("mmlu", "open")]
    assert "Only a smoke test of mmlu:" in found.sentence


def test_without_criteria_nothing_is_judged() -> None:
    found = judge(None, [Judged("gsm8k", False, shares(a=GOOD))])
    assert (found.word, found.criteria, found.cells) == ("no criteria", "", ())


# --- who takes part, and chance -------------------------------------------------------------------

STRICT = Criteria(max_accuracy_drop=0.02)


def shown(p_value: float, side: str = "met", task: str = "gsm8k", **more: Any) -> Comparison:
    """A comparison that alone meets or misses two points at ``p_value``."""
    ends = {"met": (0.0, -0.01, 0.01), "missed": (-0.1, -0.15, -0.05)}[side]
    return against(difference=Estimate(*ends), task=task, within=p_value, beyond=p_value, **more)


@pytest.mark.parametrize(
    ("p_values", "word"),
    [
        ([0.04], "confirmed"),
        ([0.04, 0.5], "cannot tell"),  # two may confirm: 0.05 / 2
        ([0.024, 0.5], "confirmed"),
        ([0.024, 0.04], "confirmed"),  # Holm: the first is in, so the second has 0.05 alone
        ([0.02, 0.02, 0.02], "cannot tell"),
        ([0.016, 0.024, 0.04], "confirmed"),
    ],
)
def test_of_several_configs_that_may_confirm_one_must_survive_holm(
    p_values: list[float], word: str
) -> None:
    cells = [(cell(f"c{i}"), shown(p if p <= 0.05 else 1.0)) for i, p in enumerate(p_values)]
    open_ones = [
        (one, against(difference=Estimate(0.0, -0.03, 0.03)) if other.within > 0.05 else other)
        for one, other in cells
    ]
    found = verdict(STRICT, *open_ones)
    assert found.word == word
    if word == "cannot tell":
        assert "can be chance (Holm)." in found.sentence
    whole = verdict(Criteria(max_accuracy_drop=0.02, require="all"), *open_ones)
    assert (whole.word == "confirmed") == all(p <= 0.05 for p in p_values), "no choice, no chance"


def test_a_config_meets_them_on_every_task_at_its_largest_p_value() -> None:
    def on(*p_values: float) -> str:
        tasks = [
            Judged(f"task{i}", False, [(cell("a"), shown(p)), (cell("b"), shown(p))])
            for i, p in enumerate(p_values)
        ]
        return judge(STRICT, tasks).word

    assert on(0.001, 0.024) == "confirmed"
    assert on(0.001, 0.026) == "cannot tell"


@pytest.mark.parametrize(
    ("num_tasks", "p_value", "of_any", "of_all"),
    [
        (1, 0.024, "refuted", "refuted"),  # two configs, one chance each
        (1, 0.026, "refuted", "cannot tell"),
        (2, 0.024, "refuted", "cannot tell"),
        (2, 0.026, "cannot tell", "cannot tell"),
        (2, 0.012, "refuted", "refuted"),
    ],
)
def test_a_refutation_is_no_accident_of_many_chances(
    num_tasks: int, p_value: float, of_any: str, of_all: str
) -> None:
    """Any of a config's tasks may refute it; where all must confirm, any config refutes all."""
    cells = [(cell("a"), shown(p_value, "missed")), (cell("b"), shown(p_value, "missed"))]
    tasks = [Judged(f"task{i}", False, cells) for i in range(num_tasks)]
    assert judge(STRICT, tasks).word == of_any
    found = judge(Criteria(max_accuracy_drop=0.02, require="all"), tasks)
    assert found.word == of_all
    if of_all == "cannot tell":
        assert "can be chance (Bonferroni)." in found.sentence
    confirm, refute = STRICT.levels(2, num_tasks)
    assert (confirm, refute) == (0.025, 0.05 / num_tasks)
    assert (p_value <= refute) == (of_any == "refuted")


def test_a_task_whose_rows_are_too_few_takes_no_part() -> None:
    """Not even where it is missed: the rest decides, or nothing does."""
    few = Judged("humaneval", False, [(cell("a"), shown(0.0, "missed"))], left_out="too few")
    enough = Judged("gsm8k", False, [(cell("a"), shown(0.01))])
    found = judge(STRICT, [few, enough])
    assert found.word == "confirmed"
    assert found.sentence == "The criteria are met by a."
    assert found.notes == ("humaneval takes no part: too few.",)
    assert [one.words for one in found.cells] == ["too few", "met"]
    alone = judge(STRICT, [few])
    assert alone.word == "cannot tell"
    assert alone.sentence == "Nothing that is done takes part in a verdict."


def test_what_cannot_act_is_not_applicable_and_never_refuted() -> None:
    """Cells that could only repeat another one's result."""
    criteria = Criteria(max_accuracy_drop=0.02, configs=("t0.50", "t0.60"))
    why = dict.fromkeys(criteria.configs, "denoise reads nothing that it changes")
    choice = Judged("choice", False, [(cell("t0.95_again"), None)], not_applicable=why)
    sums = Judged("sums", False, [(cell(n), shown(0.01)) for n in criteria.configs])
    found = judge(criteria, [choice, sums])
    assert found.word == "confirmed"
    assert found.notes == (f"choice takes no part: not applicable ({why['t0.50']}).",)
    assert judge(criteria, [choice]).word == "cannot tell"


def test_what_is_not_done_is_open() -> None:
    half = [Judged("gsm8k", False, [(cell("a"), shown(0.0, "missed"))], missing=["b"])]
    found = judge(STRICT, half)
    assert found.word == "cannot tell"
    assert "Not done: b on gsm8k." in found.sentence
    assert judge(Criteria(max_accuracy_drop=0.02, require="all"), half).word == "refuted"


def test_criteria_that_were_edited_stand_beside_the_verdict() -> None:
    tasks = [Judged("gsm8k", False, [], lock="criteria changed after 90 rows")]
    for criteria in (STRICT, None):
        assert judge(criteria, tasks).notes == ("gsm8k: criteria changed after 90 rows.",)


def test_without_a_study_the_command_that_measures_is_named() -> None:
    untimed = "speed was not measured: fdllm timing --task gsm8k"
    task = Judged("gsm8k", False, [(cell(), against(speed=None))], untimed=untimed)
    (found,) = judge(Criteria(min_speedup=1.1), [task]).cells[0].findings
    assert (found.outcome, found.text) == ("open", untimed)


def test_a_speed_up_counts_by_how_far_it_is_from_the_edge() -> None:
    """Half of the intervals' reach more is twice the errors: 1.96 of them are p = 0.05."""
    wide, narrow = ((0.5, 0.4, 0.625), 0.05), ((0.5, 0.447, 0.559), 0.0001)
    for ratio, p_value in (wide, narrow):
        one = finding(Criteria(min_speedup=1.6), cell(), against(speed=speed(ratio)))
        assert one.outcome == "met"
        assert one.p_value == pytest.approx(p_value, rel=0.3)
