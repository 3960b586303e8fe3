r"""``boxed_match``: the answer in the last ``\boxed{}``, beside the published extraction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command import Command, summary_of
from fdllm.evaluate.boxed import boxed_match, equal, last_box, number_of, right_answer
from fdllm.evaluate.recording import Evaluation
from fdllm.record.measure import beside
from hub.rows import read_rows
from hub.run import run_cases
from hub.server import Hub
from stubs import StubMachine


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"So \boxed{18}.", "18"),
        (r"\boxed{17}. No: \boxed{18}", "18"),
        (r"$\boxed{\frac{1}{2}}$ and then 3", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{18} apples}", "18"),
        (r"{ \boxed{18} and \boxed{19", "18"),  # cut off
        (r"}} \boxed {18}", "18"),
        (r"\boxed 18", "18"),
        (r"$\boxed 18$", "18"),
        (r"\boxed{}", ""),
        ("The answer is 18.", None),
        (r"\boxed{18", None),
        ("\\boxed{" * 20_000, None),
    ],
)
def test_the_last_box(text: str, box: str | None) -> None:
    assert last_box(text) == box


@pytest.mark.parametrize(
    "answer",
    ["18", "18.00", "18.", r"\$18", r"18\%", r"18 \text{ dollars}", "18 dollars", r"\text{18}",
     "+18", r"\frac{36}{2}", "36/2", r"18^\circ", "x = 18", r"9 \cdot 2"],
)  # fmt: skip
def test_the_same_answer(answer: str) -> None:
    assert equal("18", answer)
    assert equal(answer, "18")


@pytest.mark.parametrize("answer", ["1,200", "1{,}200", "1,200.00", r"1\,200", "1 200", "1200"])
def test_separators_of_thousands(answer: str) -> None:
    assert number_of(answer) == 1200


@pytest.mark.parametrize(
    "answer", ["", "17", "-18", "18.5", "1,8", "18x", "18 or 19", "1/0", "(18"]
)
def test_another_answer(answer: str) -> None:
    assert not equal("18", answer)


def test_answers_that_are_no_numbers() -> None:
    assert equal(r"2\sqrt{2}", r"\sqrt{8}")
    assert equal(r"\text{Evelyn}", r"\text{ Evelyn}")
    assert not equal("(1, 2)", "(2, 1)")
    assert number_of("9" * 5_000) is None


def test_the_cases(shared: Path) -> None:
    cases = json.loads((shared / "cases" / "cases.json").read_text(encoding="utf-8"))
    for case in cases["answers_gsm8k"]:
        assert boxed_match(case["text"], f"So.\n#### {case['gold']}") == case["boxed_match"], case


def test_every_real_solution_agrees_with_itself(shared: Path) -> None:
    for row in read_rows(shared, "math_test.jsonl"):
        assert last_box(row["solution"]) == right_answer(row["solution"])
        assert boxed_match(row["solution"], row["solution"])
    for row in read_rows(shared, "gsm8k_test.jsonl"):
        answer = right_answer(row["answer"])
        assert number_of(answer) is not None
        assert boxed_match(rf"It is $\boxed{{{answer}}}$.", row["answer"])
        assert not boxed_match(rf"\boxed{{{answer}1}}", row["answer"])


# --- in a run -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_stands_beside_the_headline(hub: Hub, shared: Path, tmp_path: Path) -> None:
    gold = [right_answer(row["answer"]) for row in read_rows(shared, "gsm8k_test.jsonl")[:4]]
    texts = [rf"$\boxed{{{gold[0]}}}$.", f"It is {gold[1]}", rf"\boxed{{{gold[2]}}} Check: 0", "0"]
    cases: list[dict[str, Any]] = [
        {"task": "gsm8k", "by": "texts", "texts": texts, "limit": 4},
        {"task": "minerva_math", "limit": 1},
    ]
    told, known = run_cases(cases, tmp_path, endpoint=hub.url).found
    assert told["headline"] == "exact_match,flexible-extract"
    assert told["value"] == 0.25
    assert told["metrics"]["boxed_match,none"] == 0.5
    boxes = [sample["metrics"]["boxed_match,none"] for sample in told["samples"]]
    assert boxes == [1.0, 0.0, 1.0, 0.0]
    first = told["samples"][0]
    assert set(first["metrics"]) == {
        "exact_match,strict-match",
        "exact_match,flexible-extract",
        "boxed_match,none",
    }
    assert set(first["filtered"]) == {"strict-match", "flexible-extract"}  # the text is the output
    # Of a group over all subjects, and of each.
    assert known["metrics"]["boxed_match,none"] == known["metrics"]["math_verify,none"] == 1.0
    per_subject = known["results"]["results"]
    assert per_subject["minerva_math_geometry"]["boxed_match,none"] == 1.0


def test_figures_that_are_no_means_are_left_out() -> None:
    samples: list[dict[str, Any]] = [
        {"metrics": {"a,none": 1.0, "b,none": 0.5, "c,none": [True]}},
        {"metrics": {}},
    ]
    figures = {"a,none": 1.0, "b,none": 0.25, "c,none": 1.0, "d,none": 0.0}
    assert beside("a,none", figures, samples[:1]) == {}
    assert beside("d,none", figures, samples[:1]) == {"a,none": 1.0}
    assert beside("d,none", figures, samples) == {}


# --- in tables ----------------------------------------------------------------------------------


class _Boxes(StubMachine):
    """Every third document has its answer in a box."""

    def evaluate(self, *arguments: Any, **settings: Any) -> Evaluation:
        found = super().evaluate(*arguments, **settings)
        for sample in found.samples:
            sample["metrics"]["boxed_match,none"] = float(sample["doc_id"] % 3 == 0)
        metrics = {found.headline: found.value, "boxed_match,none": 0.4}
        return replace(found, metrics=metrics, results={"results": {"tiny_arithmetic": metrics}})


@pytest.fixture
def fdllm(fdllm: Command) -> Command:
    fdllm.machine = _Boxes()
    return fdllm


def test_tables_name_it(fdllm: Command) -> None:
    task = ("--task", "tiny_arithmetic", "--config", "k1_first", "k2_first")
    assert fdllm("sweep", *task) == 0, fdllm.err
    assert "boxed_match" in fdllm.out
    assert "40.0 %" in fdllm.out
    assert fdllm("status", "--json", *task) == 0
    assert json.loads(fdllm.out)["cells"][0]["metrics"] == {"boxed_match,none": 0.4}
    assert fdllm("report", *task) == 0, fdllm.err
    lines = (fdllm.root / "experiments/00_baseline/results.md").read_text().splitlines()
    header = next(line for line in lines if "Accuracy" in line).split(" | ")
    row = next(line for line in lines if line.startswith("| k2_first")).split(" | ")
    assert row[header.index("boxed_match")] == "40.0 %"
    # Computed anew from the samples.
    assert fdllm("report", "--check") == 0, fdllm.out
    path = summary_of(fdllm.root, "k2_first")
    path.write_text(path.read_text().replace('"boxed_match,none": 0.4', '"boxed_match,none": 0.9'))
    assert fdllm("report", "--check") == 1
    assert "metrics.boxed_match,none is 0.9; computed anew it is 0.4" in fdllm.out


def test_tables_without_boxes_have_no_column(fdllm: Command) -> None:
    fdllm.machine = StubMachine()
    assert fdllm("sweep", "--task", "tiny_arithmetic", "--config", "k1_first") == 0
    assert "boxed_match" not in fdllm.out
