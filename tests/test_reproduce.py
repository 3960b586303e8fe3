"""``fdllm reproduce``: every figure that experiments/README.md states is held to its records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import Command
from fdllm.cli import main
from fdllm.errors import UsageError
from fdllm.reproduce.stated import (
    StatedFigure,
    absent,
    figures_of,
    read_page,
    read_statements,
    sentences,
    uncovered,
)
from helpers import ROOT
from stubs import change_code

PAGE = """# Learnt

Five rows (k = 2, 3), of which
5 are the baseline's. It makes **0.5** of the calls.

| what | k |
|---|---|
| `x` 7 | twelve |
"""
FINDINGS = """
model = {model}
page = "README.md"

[tolerance]
layer_calls = 0.01
documents = 0.0

[[finding]]
text = "of which 5 are the baseline's."
experiment = "00_baseline"
task = "tiny_arithmetic"
figures = [
    {{ expected = "5", config = "k1_middle k1_last", field = "equal_answers" }},
{{ expected = "5", config = "k2_last", field = "equal_answers", beside = "00_baseline/k2_first" }},
    {{ expected = "5", config = "k1_first", field = "documents" }},
]

[[finding]]
text = "It makes **{calls}** of the calls."
experiment = "00_baseline"
task = "tiny_arithmetic"
figures = [{{ expected = "{calls}", config = "k2_middle", field = "layer_calls" }}]

[[finding]]
text = "`x` 7"
why = "made up"
"""


# --- the page -------------------------------------------------------------------------------------


def test_every_sentence_of_the_page_that_states_a_figure_has_a_claim() -> None:
    """Give each sentence that is listed a finding in experiments/findings.toml."""
    statements, place = read_statements(ROOT)
    page = read_page(place)
    assert uncovered(page, statements) == []
    assert absent(page, statements) == []


@pytest.mark.slow
def test_the_page_states_what_the_records_in_git_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``fdllm reproduce --from-records --exact`` says the same, of records that are fresh."""
    monkeypatch.setenv("FDLLM_ROOT", str(ROOT))
    main(["reproduce", "--from-records", "--exact", "--json"])
    claims = json.loads(capsys.readouterr().out)["claims"]
    wrong = {one["of"]: one["words"] for one in claims if one["words"] != one["figure"]}
    assert claims
    assert wrong == {}


def test_a_sentence_is_found_in_whatever_form_it_stands() -> None:
    found = [one for one in sentences(PAGE) if figures_of(one)]
    assert found == [
        "Five rows (k = 2, 3), of which 5 are the baseline's.",
        "It makes **0.5** of the calls.",
        "| `x` 7 | twelve |",
    ]


@pytest.mark.parametrize(
    ("sentence", "figures"),
    [
        ("52 to 79 % at k = 2, 30 to 66 % at k = 3", ["52", "79", "30", "66"]),
        ("0.88-0.89 at -1.4 [-3.4, +0.6]", ["0.88", "0.89", "-1.4", "-3.4", "+0.6"]),
        ("gains 1.23 (r = 3, 8) on 1,000 texts.", ["1.23", "1,000"]),
        ("`k2_middle`, the 7B, [05](05_threshold) of 2025, arXiv 2603.07475", ["05"]),
    ],
)
def test_a_figure_is_no_name(sentence: str, figures: list[str]) -> None:
    assert figures_of(sentence) == figures


@pytest.mark.parametrize(
    ("expected", "numbers", "others", "words"),
    [
        ("0.86", (0.86,), (0.9,), "0.90"),
        ("1,000", (1000,), (12345,), "12,345"),
        ("0.88-0.89", (0.88, 0.89), (0.871, 0.9), "0.87-0.90"),
        ("-1.5 to +0.2", (-1.5, 0.2), (-2, 0.04), "-2.0 to +0.0"),
        ("-1.4 [-3.4, +0.6]", (-1.4, -3.4, 0.6), (1, -0.04, 2), "+1.0 [+0.0, +2.0]"),
        ("1.04, 0.96 and 0.85", (1.04, 0.96, 0.85), (1, 2, 3), "1.00, 2.00 and 3.00"),
    ],
)
def test_a_figure_is_told_again_as_it_was(
    expected: str, numbers: tuple[float, ...], others: tuple[float, ...], words: str
) -> None:
    figure = StatedFigure(expected=expected, config="k1_first", field="accuracy")
    assert figure.numbers == numbers
    assert figure.with_numbers(others) == words
    assert figure.with_numbers(numbers) == expected


# --- the command ----------------------------------------------------------------------------------


def write(root: Path, findings: str = FINDINGS, page: str = PAGE, calls: str = "0.5") -> None:
    text = findings.format(model=json.dumps(str(root / "model")), calls=calls)
    (root / "experiments/findings.toml").write_text(text)
    (root / "experiments/README.md").write_text(page.replace("0.5", calls))


def claims(command: Command, *flags: str) -> dict[str, str]:
    """Verdicts by figure."""
    command.raw("reproduce", "--json", *flags)
    return {one["figure"]: one["verdict"] for one in json.loads(command.out)["claims"]}


def calls_of(command: Command) -> float:
    """What the stub makes at k = 2."""
    command.raw("reproduce", "--json", "--from-records")
    return float(json.loads(command.out)["claims"][-1]["found"])


def test_what_is_not_there_is_computed_and_then_left_alone(fdllm: Command) -> None:
    write(fdllm.root)
    assert fdllm.raw("reproduce", "--from-records") == 2
    assert "cannot tell" in fdllm.out
    assert fdllm.loads == 0
    assert claims(fdllm)["5"] == "holds"
    loads = fdllm.loads
    assert loads
    assert claims(fdllm)["5"] == "holds"
    assert fdllm.loads == loads
    assert claims(fdllm, "--from-records")["5"] == "holds"


def test_a_figure_that_differs_is_named_with_what_was_found(finished: Command) -> None:
    write(finished.root)
    right = calls_of(finished)
    write(finished.root, calls=f"{right:.3f}")
    assert finished.raw("reproduce", "--from-records", "--exact") == 0, finished.out
    near = f"{right + 0.005:.3f}"
    write(finished.root, calls=near)
    assert finished.raw("reproduce", "--from-records") == 0
    assert finished.raw("reproduce", "--from-records", "--exact") == 1
    far = f"{right + 0.05:.3f}"
    write(finished.root, calls=far)
    assert finished.raw("reproduce", "--from-records") == 1
    assert (
        f"  differs      00_baseline / tiny_arithmetic / k2_middle: layer_calls: {far}, found "
        in (finished.out)
    )
    assert finished.raw("reproduce", "--from-records", "--json") == 1
    last = json.loads(finished.out)["claims"][-1]
    assert last["verdict"] == "differs"
    assert last["found"] == pytest.approx(right)
    assert last["words"] == f"{right:.3f}"
    assert last["tolerance"] == 0.01
    assert last["command"].startswith("fdllm sweep --experiment 00_baseline --task tiny_arithmetic")


def test_a_stale_record_bears_out_nothing(finished: Command) -> None:
    write(finished.root)
    change_code(finished.root)
    assert set(claims(finished, "--from-records").values()) == {"cannot tell"}


def test_a_sentence_without_a_claim_is_named(finished: Command) -> None:
    write(finished.root, calls=f"{calls_before(finished):.3f}")
    page = finished.root / "experiments/README.md"
    page.write_text(f"{page.read_text()}\nIt is 3 times as fast.\n")
    assert finished.raw("reproduce", "--from-records") == 1
    assert "no claim: It is 3 times as fast." in finished.err
    page.write_text("Nothing is left.\n")
    assert finished.raw("reproduce", "--from-records") == 1
    assert "does not say: of which 5 are the baseline's." in finished.err


def calls_before(command: Command) -> float:
    write(command.root)
    return calls_of(command)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('expected = "5"', 'expected = "6"', "'6'"),
        ('field = "documents"', 'filed = "documents"', "filed"),
        ('why = "made up"', "", "why"),
        ('task = "tiny_arithmetic"', "", "no task"),
    ],
)
def test_a_finding_of_another_form_is_refused(root: Path, old: str, new: str, names: str) -> None:
    write(root, FINDINGS.replace(old, new))
    with pytest.raises(UsageError, match=names):
        read_statements(root)


def test_what_the_records_lack_is_said(finished: Command) -> None:
    for old, new, name in (
        ('field = "documents"', 'field = "accuracies"', "accuracies"),
        ('config = "k1_first"', 'config = "k7_first"', "k7_first"),
        ('field = "documents"', 'field = "gain"', "gain"),
    ):
        write(finished.root, FINDINGS.replace(old, new))
        assert finished.raw("reproduce", "--from-records") == 2 or "differs" in finished.out
        assert name in finished.out


@pytest.mark.parametrize("name", ["00_base", "99_none"])
def test_an_unknown_experiment_is_refused(finished: Command, name: str) -> None:
    write(finished.root)
    assert finished.raw("reproduce", "--experiment", name) == 2
    assert "00_baseline" in finished.err


@pytest.mark.parametrize(
    ("form", "heads"),
    [
        (
            "acm",
            ["A.2 Artifact check-list (meta-information)", "A.5 Experiment workflow"],
        ),
        ("usenix", ["A.2 Description & Requirements", "A.3 Set-up", "A.4.1 Major Claims"]),
    ],
)
def test_the_appendix_has_the_venue_s_headings_and_every_figure(
    finished: Command, form: str, heads: list[str]
) -> None:
    write(finished.root)
    assert finished.raw("reproduce", "--from-records", "--appendix", form) == 1  # 0.5 is not so
    assert all(f" {head}\n" in finished.out for head in heads)
    assert "- (C1) of which 5 are the baseline's. Borne out by E1: 3 holds." in finished.out
    assert "- (E1) 00_baseline, tiny_arithmetic [1 human-minute" in finished.out
    assert finished.out.count("| E1 |") == 4
