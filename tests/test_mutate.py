"""``scripts/mutate.py``: what it puts into a file is one fault, and the same ones for a seed."""

from __future__ import annotations

import ast

import mutate
from helpers import ROOT

SOURCE = b'''
LIMITS = {"low": 1, "high": 2}


def inside(x: int, *, strict: bool = False) -> bool:
    """Docstring, \xc3\xbc."""
    if not isinstance(x, int) or x < LIMITS["low"]:
        raise ValueError(f"{x + 1}")
    print(sorted([x, 1], reverse=True))
    return x - 1 <= LIMITS["high"] and strict
'''


def test_each_fault_changes_one_thing() -> None:
    faults = list(mutate.python_faults("src/fdllm/plan.py", SOURCE))
    assert {fault.kind for fault in faults} == {
        "comparison", "and/or", "not", "+/-", "constant", "statement", "return", "argument",
        "element",
    }  # fmt: skip
    texts = {ast.dump(ast.parse(fault.put_into(SOURCE))) for fault in faults}
    assert len(texts) == len(faults)
    assert ast.dump(ast.parse(SOURCE)) not in texts
    assert {fault.function for fault in faults} == {"module", "inside"}


def test_a_seed_draws_one_fault_a_function() -> None:
    faults = [
        fault
        for path in ("src/fdllm/plan.py", "src/fdllm/core/a.py", "src/fdllm/report/b.py")
        for fault in mutate.python_faults(path, SOURCE)
    ]
    drawn = list(mutate.draw(faults, 1, set()))
    assert drawn == list(mutate.draw(faults, 1, set()))
    assert len({(fault.path, fault.function) for fault in drawn}) == len(drawn) == 6
    assert [fault.package for fault in drawn[:3]] == ["core", "plan", "report"]
    (left,) = mutate.draw(faults, 1, {(fault.path, fault.function) for fault in drawn[1:]})
    assert (left.path, left.function) == (drawn[0].path, drawn[0].function)


def test_every_source_file_has_tests_that_reach_it() -> None:
    nearest = mutate.nearest_tests(ROOT)
    assert nearest["src/fdllm/report/verdict.py"][0] == "tests/test_verdict.py"
    for path in ROOT.glob("src/fdllm/*/*.py"):
        name = path.relative_to(ROOT)
        assert nearest.get(str(name)) or path.name in ("__init__.py", "__main__.py"), name
