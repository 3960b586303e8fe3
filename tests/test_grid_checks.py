"""What cells of a grid say about each other: each check made to fail, in whichever cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from cells import GRID, MACHINE, make_cell, share, write_cell
from fdllm.errors import FdllmError
from fdllm.plan import RECORDED, CellState, State
from fdllm.record.paths import RunPaths
from fdllm.report.grid import (
    check_grid,
    checks,
    identical,
    mixtures,
    overlap_sentence,
    twins,
)
from fdllm.report.records import NotComparableError, Record, finished
from fdllm.runs import Run

RIGHT = share(6, 4)
EVERYWHERE = pytest.mark.parametrize("at", [0, 4, 8])  # first, middle and last cell of a grid


def grid(at: int, **changes: Any) -> list[Record]:
    """Nine cells that belong together, but for one."""
    own = [f"answers of {name}" if name[1] > "1" else "answers" for name in GRID]
    return [
        make_cell(name, RIGHT, outputs=[own[i]] * 6, **(changes if i == at else {}))
        for i, name in enumerate(GRID)
    ]


def record(folder: Path, cell: Record, state: State = State.DONE) -> Record:
    """A cell as a planner tells of it."""
    written = write_cell(folder, cell)
    paths = RunPaths(written.folder, folder / "artifacts", folder / "logs")
    cell_state = CellState(cast("Run", None), state, "", paths, summary=written.summary)
    return next(iter(finished([cell_state])), written)


# --- may they stand in one table ------------------------------------------------------------------

# Every field that names the code, the weights and what was asked; strategy and decoding are a
# cell's own.
SHARED = (
    "schema", "source", "experiment", "lock", "model", "revision", "task", "dtype", "limit", "seed",
    "scoring", "num_fewshot", "chat_template",
)  # fmt: skip


@EVERYWHERE
@pytest.mark.parametrize("field", SHARED)
def test_every_shared_field_must_agree(field: str, at: int) -> None:
    cells = [
        make_cell(name, RIGHT, fields={field: "other" if i == at else "one"})
        for i, name in enumerate(GRID)
    ]
    (problem,) = mixtures(cells)
    assert problem.startswith(f"fingerprint field '{field}' differs (")
    assert f"{GRID[at]}: other" in problem
    with pytest.raises(NotComparableError, match=f"field '{field}' differs.*--force"):
        check_grid(cells)
    unknown = make_cell("k1_again", RIGHT, fields={field: "one"})
    del unknown.summary.fingerprint.fields[field]
    assert mixtures([*cells[:at], *cells[at + 1 :], unknown]) == []


@EVERYWHERE
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"machines": ("A100",)}, "machine differs"),
        ({"machines": (MACHINE, "A100")}, "machine differs"),
        ({"task": "mmlu", "estimator": "first-token", "fields": {"task": "gsm8k"}}, "estimator"),
    ],
)
def test_machine_and_estimator_must_agree(changes: dict[str, Any], problem: str, at: int) -> None:
    (found,) = mixtures(grid(at, **changes))
    assert found.startswith(problem)
    assert GRID[at] in found


def test_documents_must_agree_and_one_machine_do_all() -> None:
    cells = grid(0)
    cells[3] = make_cell("k2_first", RIGHT)
    other = cells[3].summary.model_copy(update={"dataset": "others"})
    (found,) = mixtures([*cells[:3], _with(cells[3], other)])
    assert found == "documents differs (k1_first, k1_middle, k1_last: documents; k2_first: others)"
    two = [make_cell(name, RIGHT, machines=(MACHINE, "A100")) for name in GRID]
    (found,) = mixtures(two)
    assert found == f"{', '.join(GRID)} were computed on several machines"


def _with(cell: Record, summary: Any) -> Record:
    return Record(cell.folder, summary, cell.samples)


def test_strategy_and_decoding_are_a_cells_own() -> None:
    fields = [{"strategy": str(i), "decoding": str(i)} for i in range(9)]
    cells = [make_cell(n, RIGHT, fields=f) for n, f in zip(GRID, fields, strict=True)]
    assert mixtures(cells) == []
    check_grid(cells)


# --- one computation done several times -----------------------------------------------------------


@pytest.mark.parametrize("cell", ["k1_first", "k1_middle", "k1_last"])
@pytest.mark.parametrize("row", [0, 3, 5])
@pytest.mark.parametrize("what", ["outputs", "tokens"])
def test_a_twin_that_differs_in_one_row_is_found(
    tmp_path: Path, cell: str, row: int, what: str
) -> None:
    changed = {
        "outputs": [f"{'other' if i == row else 'same'}" for i in range(6)],
        "tokens": [101 if i == row else 100 for i in range(6)],
    }[what]
    same: dict[str, Any] = {"outputs": ["same"] * 6}
    cells = [
        make_cell(name, RIGHT, **(same | ({what: changed} if name == cell else {})))
        for name in ("k1_first", "k1_middle", "k1_last")
    ]
    cells.append(make_cell("k2_first", RIGHT, outputs=["reused"] * 6))
    (found,) = twins([record(tmp_path, one) for one in cells])
    assert found.names == ("k1_first", "k1_middle", "k1_last")
    assert found.num_samples == 6
    others = "k1_middle, k1_last" if cell == "k1_first" else cell
    assert found.differing == (f"gsm8k row {row}: k1_first against {others}",)
    said = [one for one in checks(cells) if one.kind == "twins-differ"]
    assert [one.text for one in said] == [
        "k1_first, k1_middle, k1_last are one computation, yet 1 of 6 samples differ: "
        + found.differing[0]
    ]


def test_equal_twins_are_equal(tmp_path: Path) -> None:
    names = ("k1_first", "k1_middle", "k1_last")
    cells = [make_cell(name, RIGHT, outputs=["same"] * 6) for name in names]
    (found,) = twins([record(tmp_path, cell) for cell in cells])
    assert found.differing == ()
    assert found.finding.kind == "twins"
    assert found.finding.text == "A/A: k1_first = k1_middle = k1_last in all 6 samples"


def test_all_rows_that_differ_are_counted_and_three_are_shown(tmp_path: Path) -> None:
    cells = [make_cell(n, RIGHT, outputs=[n] * 6) for n in ("k1_first", "k1_last")]
    (found,) = twins([record(tmp_path, cell) for cell in cells])
    assert len(found.differing) == 6
    assert found.finding.text.endswith("; ".join(found.differing[:3]))


def test_other_decoding_is_another_computation(tmp_path: Path) -> None:
    names = ("k1_first", "k1_middle", "k1_last", "k1_again")
    fields = [{"decoding": decoding} for decoding in ("a", "b", "a", "c")]
    cells = [make_cell(n, RIGHT, fields=f) for n, f in zip(names, fields, strict=True)]
    found = twins([record(tmp_path, cell) for cell in cells])
    assert [one.names for one in found] == [("k1_first", "k1_last")]


# --- agreement where there should be none ---------------------------------------------------------


def outputs(**of: str) -> list[Record]:
    return [make_cell(name, RIGHT, outputs=[text] * 6) for name, text in of.items()]


@pytest.mark.parametrize(
    ("cells", "groups"),
    [
        (outputs(k1_first="x", k1_last="x", k2_first="y", k3_first="z"), []),
        (outputs(k1_first="x", k2_first="x", k3_first="z"), [("k1_first", "k2_first")]),
        (outputs(k1_first="x", k2_first="y", k3_first="y"), [("k2_first", "k3_first")]),
        (
            outputs(k1_first="x", k1_last="x", k2_first="y", k2_last="x", k3_first="y"),
            [("k1_first", "k1_last", "k2_last"), ("k2_first", "k3_first")],
        ),
    ],
)
def test_cells_that_reuse_differently_and_agree_are_named(
    cells: list[Record], groups: list[tuple[str, ...]]
) -> None:
    assert identical(cells) == groups
    said = [one for one in checks(cells) if one.kind == "identical"]
    assert [one.cells for one in said] == groups
    for one in said:
        plain = any(name.startswith("k1") for name in one.cells)
        why = "may never have reached" if plain else "they are one result, not several"
        assert why in one.text
        assert f"{({2: 'two', 3: 'three'})[len(one.cells)]} identical cells" in one.text


# --- small figures --------------------------------------------------------------------------------


def test_only_what_is_done_or_decided_has_a_record(tmp_path: Path) -> None:
    made = record(tmp_path, make_cell("k1_first", RIGHT))

    def cell(state: State, *, known: bool = True) -> CellState:
        summary = made.summary if known else None
        paths = RunPaths(made.folder, tmp_path / "artifacts", tmp_path / "logs")
        return CellState(cast("Run", None), state, "", paths, summary=summary)

    given = [cell(state) for state in State] + [cell(State.DONE, known=False)]
    held = [(one.folder, one.summary) for one in finished(given)]
    assert held == [(made.folder, made.summary)] * len(RECORDED)
    assert made.name == "k1_first"


def test_samples_that_cannot_be_read_say_where(tmp_path: Path) -> None:
    for content in ("no json\n", "{}\n", None):
        made = record(tmp_path / str(content), make_cell("k1_first", RIGHT))
        path = made.folder / "samples.jsonl"
        path.unlink()
        if content is None:
            path.mkdir()
        else:
            path.write_text(content)
        with pytest.raises(
            FdllmError, match=r"samples.jsonl (was changed|cannot be|is a folder).*sweep again"
        ):
            _ = made.texts


def test_overlapping_subsets_are_named_with_the_size_that_keeps_them_apart() -> None:
    assert overlap_sentence([], 28) is None
    assert overlap_sentence([("first", "middle", 4), ("middle", "last", 4)], 28) == (
        "subsets overlap on 28 layers (first and middle share 4, middle and last share 4); "
        "[reuse] subset_size = 9 in experiment.toml keeps them apart"
    )
