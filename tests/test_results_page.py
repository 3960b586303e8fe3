"""Tables of ``results.md`` and of the terminal: each figure in its own column, and what is refused.

Records are edited where a figure would come out equal in two columns.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fdllm.cli.status_table import reasons, status_table
from fdllm.errors import FdllmError
from fdllm.plan import CellState, JobFacts, State
from fdllm.report.build import Report, make_report
from fdllm.report.results_md import render_results, render_section
from fdllm.report.table import (
    cell_checks,
    figures_table,
    heading,
)
from fdllm.runs import Sweep
from stubs import (
    StubMachine,
    do_run,
    do_sweep,
    make_planner,
    make_root,
    make_run,
    make_sweep,
    stop_at,
)

CONFIGS = ("k1_first", "k1_last", "k2_middle", "k3_first")
DONE = CONFIGS[:3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three of four cells are done, and each has figures of its own."""
    root = make_root(tmp_path / "root")
    do_sweep(root, make_sweep(root, configs=DONE))
    edit(root, "k1_last", throughput={"tokens_per_second": 8.4})
    edit(
        root,
        "k2_middle",
        headline={"value": 0.6, "num_correct": 3},
        throughput={"tokens_per_second": 10.25, "tokens_per_forward": 0.5},
        layer_calls={"computed": 270, "reused": 90, "saved_share": 0.25},
        quality={"truncation_rate": 0.2, "repetition_rate": 0.4},
        counts={
            "prefill": {"forwards": 2, "computed": 0, "reused": 0},
            "commit": {"forwards": 3, "computed": 0, "reused": 0},
            "refresh": {
                "forwards": 5,
                "computed": 60,
                "reused": 0,
                "flops": 9_00,
                "weight_bytes": 200,
                "stored_bytes": 45,
            },
            "denoise": {
                "forwards": 25,
                "computed": 210,
                "reused": 0,
                "flops": 9_00,
                "weight_bytes": 300,
                "kv_bytes": 7,
            },
        },
    )
    return root


def edit(root: Path, config: str, task: str = "tiny_arithmetic", **changes: Any) -> None:
    """Change figures of a record, and nothing else."""
    (path,) = root.glob(f"results/00_baseline/{task}*/{config}/summary.json")
    data = json.loads(path.read_text())
    for name, change in changes.items():
        data[name] = data[name] | change if isinstance(data[name], Mapping) else change
    path.write_text(json.dumps(data))


def asked(root: Path, **changes: Any) -> Sweep:
    return make_sweep(root, configs=CONFIGS, **changes)


def report(root: Path, **changes: Any) -> Report:
    return make_report(make_planner(root), [asked(root, **changes)], "00_baseline")


def page(root: Path, **changes: Any) -> str:
    return render_section(report(root, **changes).sections[0])


def rows(text: str, first: str = "Config") -> list[dict[str, str]]:
    """The Markdown table that has this column first and that one second, by its heads."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    found: list[dict[str, str]] = []
    heads: list[str] = []
    for line in lines:
        if line[0] == "Config":
            heads = line
        elif not line[0].startswith("---") and first in heads:
            found.append(dict(zip(heads, line, strict=True)))
    return found


def test_each_figure_stands_in_its_column(root: Path) -> None:
    plain, _, reused = rows(page(root), "Accuracy [95 %]")
    assert plain == {
        "Config": "k1_first",
        "Accuracy [95 %]": "40.0 % [11.8, 76.9]",
        "Change [95 %]": "",
        "p (Holm)": "",
        "Accuracy is": "baseline",
        "Layer calls by k=1": "1.00",
        "FLOPs by k=1": "1.00",
        "Bytes by k=1": "1.00",
        "Tokens/forward": "0.67",
        "Tokens/s (described)": "8.00",
        "Truncated": "0.0 %",
        "Repetitive": "0.0 %",
    }
    assert reused == {
        "Config": "k2_middle",
        "Accuracy [95 %]": "60.0 % [23.1, 88.2]",
        "Change [95 %]": "+0.0 [-43.4, +43.4]",
        "p (Holm)": "1.000",
        "Accuracy is": "cannot tell",
        "Layer calls by k=1": "0.75",
        "FLOPs by k=1": "0.60",
        "Bytes by k=1": "0.80",
        "Tokens/forward": "0.50",
        "Tokens/s (described)": "10.25",
        "Truncated": "20.0 %",
        "Repetitive": "40.0 %",
    }


def test_counters_stand_in_their_columns(root: Path) -> None:
    plain, _, reused = rows(page(root), "Layers")
    assert plain == {
        "Config": "k1_first", "Layers": "1-4", "prefill forwards": "0", "refresh forwards": "5",
        "denoise forwards": "25", "commit forwards": "0", "computed": "360", "reused": "0",
    }  # fmt: skip
    assert reused == {
        "Config": "k2_middle", "Layers": "4-7", "prefill forwards": "2", "refresh forwards": "5",
        "denoise forwards": "25", "commit forwards": "3", "computed": "270", "reused": "90",
    }  # fmt: skip
    edit(root, "k1_first", strategy={"layers": []})
    edit(root, "k2_middle", strategy={"layers": [5]})
    assert [row["Layers"] for row in rows(page(root), "Layers")] == ["none", "8-11", "5"]


def test_a_scored_task_has_columns_of_its_own(root: Path) -> None:
    do_sweep(root, make_sweep(root, tasks=("tiny_choice",), configs=DONE))
    pace = {"scored_tokens_per_second": 3.25, "requests_per_second": 1.5}
    edit(root, "k2_middle", "tiny_choice", throughput=pace)
    text = page(root, tasks=("tiny_choice",))
    assert "Metric `acc,none`, estimator denoise, 5 rows." in text
    assert list(rows(text, "Requests/s")[2].items())[-2:] == [
        ("Requests/s", "1.50"),
        ("Scored tokens/s (described)", "3.25"),
    ]
    assert "Truncated" not in text


def test_the_page_says_what_it_was_made_of(root: Path) -> None:
    text = render_results(report(root), "--task x")
    assert text.startswith(
        "# Results: 00_baseline - Layer reuse baseline\n\nWritten by `fdllm report --task x` from "
        "the records; do not edit.\n"
    )
    assert text.endswith(".\n")
    assert f"## tiny_arithmetic on {root / 'model'}\n" in text
    assert "Metric `exact_match,strict-match`, 5 rows." in text
    assert "Not in the table:\n\n- k3_first: pending (not run yet)\n" in text
    last = text.splitlines()[-1]
    for said in ("Finished 20", "1 threads (cpu, float32)", "torch 2.", "lm-eval 0.", "threshold="):
        assert said in last
    assert "Smoke test" not in text


def test_provenance_is_that_of_the_last_session_and_of_every_commit(root: Path) -> None:
    packages = {"torch": "1", "transformers": "2", "lm-eval": "3"}
    old: dict[str, Any] = {
        "machine": "old",
        "device": "x",
        "dtype": "y",
        "packages": {},
        "git": None,
    }
    for config, commit, dirty in (("k1_first", "b" * 40, False), ("k1_last", "a" * 40, True)):
        new = {"machine": "new", "device": "cuda", "dtype": "float16", "packages": packages}
        git = {"commit": commit, "dirty": dirty}
        sessions = [old | {"machine": "new"}, new | {"git": git}]
        finished = {"k1_first": "2026-01-01", "k1_last": "2026-03-01"}[config]
        edit(root, config, provenance={"sessions": sessions, "finished": finished})
    earlier = {"sessions": [old | {"machine": "new"}], "finished": "2025-01-01"}
    edit(root, "k2_middle", provenance=earlier)
    last = page(root).strip().splitlines()[-1]
    assert last.startswith(
        "Finished 2026-03-01 on new (cuda, float16); torch 1, transformers 2; lm-eval 3; commit "
        "aaaaaaaaaa with changes, bbbbbbbbbb, unknown; documents "
    )


def test_checks_are_told(root: Path) -> None:
    text = page(root)
    assert "- ✓ A/A: k1_first = k1_last in all 5 samples.\n" in text
    assert "- Subsets overlap on 12 layers (first and middle share 1)" in text
    assert "every output agrees" not in text


def test_agreement_that_should_not_be_is_told(root: Path) -> None:
    same = StubMachine(answer=lambda _, doc: f"always {doc}")
    for config in DONE:
        do_run(root, make_run(root, config), same, force=True)
    said = (
        "! three identical cells (k1_first, k1_last, k2_middle): every output agrees, at 40.00 %; "
        "cells that reuse agree with cells that do not, so the reuse may never have reached this "
        "task"
    )
    assert f"- {said}" in page(root)
    assert said in [f"{one.mark} {one.text}" for one in cell_checks(states(root))]


def test_a_smoke_test_says_so_twice(root: Path) -> None:
    do_sweep(root, make_sweep(root, configs=DONE, limit=3), StubMachine(num_docs=3))
    text = page(root, limit=3)
    assert ", limit 3: SMOKE TEST\n" in text
    assert "**Smoke test: so few rows say nothing about accuracy or speed.**" in text
    assert heading(states(root, limit=3)).startswith(
        "00_baseline / tiny_arithmetic (limit 3, a smoke test) on "
    )


def test_without_records_there_is_no_table(tmp_path: Path) -> None:
    root = make_root(tmp_path / "empty")
    text = page(root)
    assert "|" not in text
    assert text.count(": pending (") == 4


@pytest.mark.parametrize("at", [0, 1, 2])
def test_records_that_do_not_belong_together_make_no_table(root: Path, at: int) -> None:
    edit(root, DONE[at], dataset="others")
    with pytest.raises(FdllmError, match=r"no table for 00_baseline / tiny_arithmetic: documents"):
        page(root)
    cells = states(root)
    table = figures_table(cells).table
    assert "documents differs" in str(table.caption)
    shown = [list(column.cells) for column in table.columns]
    assert not any(str(figure) for column in shown[1:-1] for figure in column)
    assert cell_checks(cells) == []


# --- in the terminal ------------------------------------------------------------------------------


def states(root: Path, **changes: Any) -> list[CellState]:
    planner = make_planner(root)
    return [planner.state(run) for run in planner.runs(asked(root, **changes))]


def shown(table: Any) -> list[dict[str, str]]:
    heads = [str(column.header).replace("\n", " ") for column in table.columns]
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return [dict(zip(heads, row, strict=True)) for row in zip(*columns, strict=True)]


def test_figures_in_the_terminal(root: Path) -> None:
    table = shown(figures_table(states(root)).table)
    assert table[2] == {
        "config": "k2_middle",
        "accuracy [95 %]": "60.0 % [23.1, 88.2]",
        "layer calls by k=1": "0.75",
        "FLOPs by k=1": "0.60",
        "bytes by k=1": "0.80",
        "tokens/forward": "0.50",
        "tokens/s (described)": "10.25",
        "truncated": "20.0 %",
        "repetitive": "40.0 %",
        "state": "✓ done",
    }
    assert set(table[3].values()) == {"k3_first", "", "· pending"}


def test_states_in_the_terminal(root: Path) -> None:
    do_run(root, make_run(root, "k3_first"), stop_at(1, OSError("gone")))
    table = shown(status_table(states(root)).table)
    assert table[0] == {
        "config": "✓ k1_first",
        "state": "done",
        "requests": "5",
        "accuracy [95 %]": "40.0 % [11.8, 76.9]",
    }
    assert table[3] == {
        "config": "✗ k3_first",
        "state": "failed",
        "requests": "1 of 5",
        "accuracy [95 %]": "",
    }
    [why] = [str(line) for line in reasons(states(root)) if "k3_first" in str(line)]
    assert why.startswith("  k3_first: failed, OSError: gone (log: ")


@pytest.mark.parametrize("width", [50, 60, 79, 80, 100, 120])
def test_a_job_fits_the_terminal(root: Path, width: int) -> None:
    job = JobFacts("4711021_3", "gpu-node-017", 40_000, 46_400, 99_000, 81.25)
    one, *rest = states(root)
    one = replace(one, state=State.RUNNING, done=1319, total=14042, job=job)
    terminal = Console(width=width, file=io.StringIO())
    with terminal.capture() as drawn:
        terminal.print(status_table([one, *rest]))
    assert max(map(len, drawn.get().splitlines())) <= width
    assert "▶ k1_first " in drawn.get()
    assert "27.5 h" in drawn.get()
    assert "left out for room: node" in drawn.get()


def test_twins_that_differ_fail_the_check(root: Path) -> None:
    assert [one.kind for one in cell_checks(states(root))] == ["twins"]
    odd = StubMachine(answer=lambda _, doc: "odd" if doc == 3 else f"1: {doc}")
    do_run(root, make_run(root, "k1_last"), odd, force=True)
    cells = states(root)
    (found,) = cell_checks(cells)
    assert f"{found.mark} {found.text}" == (
        "✗ k1_first, k1_last are one computation, yet 1 of 5 samples differ: "
        "tiny_arithmetic row 3: k1_first against k1_last"
    )
