"""What ending runs early costs and saves: ``python benchmarks/early_verdicts.py replay``.

``replay`` takes whole records and asks their documents again in 200 random orders, as ``fdllm sweep
--until-decided`` would: which verdicts on accuracy it reaches, whether one is the opposite of the
whole run's, and how many documents it saves. ``simulate`` in its place draws grids of nine cells
whose true losses are known, at the margin and around it, and counts those with a wrong verdict.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from fdllm import strictjson
from fdllm.cli.request import default_tasks
from fdllm.criteria import ALPHA
from fdllm.evaluate.tasks import TASKS, task_facts
from fdllm.plan import Planner
from fdllm.record.deciding import Draws, decide, look_size
from fdllm.record.paths import Layout, find_root
from fdllm.record.per_document import unpack
from fdllm.report.stats import find_difference
from fdllm.runs import ModelChoice, Sweep
from fdllm.until_decided import baseline_of, looks_of, until_decided

LOSSES = (0.0, 0.0, 0.01, 0.02, 0.02, 0.021, 0.03, 0.05, 0.1)
"""Accuracy that the cells of a simulated grid lose."""
MARGIN = 0.02


@dataclass(frozen=True)
class Cell:
    """A cell to be judged, on all of its documents."""

    name: str
    change: Draws  # its figures less the baseline's, shape (n,)
    margin: float
    sharing: int  # verdicts of its experiment

    @property
    def whole(self) -> str:
        """The verdict of the whole run: by its 95 % interval."""
        zero = np.zeros_like(self.change)
        a, b = np.maximum(-self.change, zero), np.maximum(self.change, zero)
        found = find_difference(a, b).difference
        if found.low >= -self.margin:
            return "met"
        return "missed" if found.high < -self.margin else "open"

    def replayed(self, seed: int) -> tuple[str, int]:
        """The verdict in a random order, and the documents that were asked."""
        order = np.random.default_rng(seed).permutation(self.change)
        found, when = decide(order, self.margin, ALPHA / self.sharing)
        size, n = look_size(len(order)), len(order)
        if found == "open" or size * math.ceil(when / size) >= n:
            return "open", n
        return found, size * math.ceil(when / size)


def cells_of(planner: Planner, experiment: str, task: str, model: str) -> Iterator[Cell]:
    """The judged cells of one task whose whole records are here, and the baseline's with them."""
    sweep = Sweep(experiment=experiment, tasks=(task,), model=ModelChoice(name=model))
    num_tasks = len(default_tasks(planner.experiment(experiment), model))
    base = _values(planner, sweep, task, baseline_of(planner, sweep))
    for run in planner.runs(sweep) if base else ():
        until = until_decided(planner, sweep, run, num_tasks)
        rule = looks_of(planner, run, until).rule
        values = _values(planner, sweep, task, run.cell.name)
        if rule is None or rule.is_twin or not values or len(values) < len(base):
            continue  # nothing to judge, no record, or one that ended early itself
        change = np.array([values[key] - base[key] for key in values], dtype=np.float64)
        yield Cell(run.cell.name, change, rule.margins["max_accuracy_drop"], until.sharing)


def _values(planner: Planner, sweep: Sweep, task: str, config: str) -> dict[tuple[str, int], float]:
    """The headline figure of each document of a run; empty where it has no record."""
    paths = planner.layout.run(planner.run(sweep, task, config))
    columns = paths.published.columns
    if paths.samples.exists():
        lines = paths.samples.read_text(encoding="utf-8").splitlines()
        rows = [strictjson.loads(line) for line in lines]
    elif columns.exists():
        rows = unpack(columns.read_bytes())
    else:
        return {}
    metric = TASKS[task].headline
    return {(row["task"], row["doc_id"]): float(row["metrics"][metric]) for row in rows}


def replay(cells: Sequence[Cell], orders: int) -> tuple[Counter[str], float]:
    """How verdicts reached early agree with the whole run's, over cells and orders.

    Returns:
        How many are the ``same``, the ``opposite``, reached ``only early``, by ``neither`` or by
        the ``only whole`` run; and the mean share of documents saved where one was reached early.
    """
    ends, saved = Counter[str](), list[float]()
    for cell in cells:
        whole = cell.whole
        for seed in range(orders):
            found, asked = cell.replayed(seed)
            if found == "open":
                ends["neither" if whole == "open" else "only whole"] += 1
                continue
            saved.append(1 - asked / len(cell.change))
            same = "same" if found == whole else "only early" if whole == "open" else "opposite"
            ends[same] += 1
    return ends, float(np.mean(saved)) if saved else 0.0


def simulate(grids: int, documents: int, alpha: float = ALPHA, seed: int = 0) -> int:
    """How many of so many grids have a wrong verdict: of a cell that loses more, or no more."""
    draw, wrong = np.random.default_rng(seed), 0
    for _ in range(grids):
        failed = False
        for loss in LOSSES:
            discordant = max(loss, 0.05)
            flips = draw.random(documents)
            losses = flips < (discordant + loss) / 2
            change = np.where(losses, -1.0, np.where(flips < discordant, 1.0, 0.0))
            found, _ = decide(change, MARGIN, alpha / len(LOSSES))
            failed |= found == ("met" if loss > MARGIN else "missed")
        wrong += failed
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; 1 where it is not what is promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("replay", "simulate"))
    parser.add_argument("--experiment", action="append", help="all that have records")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--results", type=Path, help="folder of records (results/)")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--grids", type=int, default=1000)
    options, out = parser.parse_args(arguments), Console(width=120)
    if options.what == "simulate":
        wrong = simulate(options.grids, 1000)
        out.print(f"{wrong} of {options.grids} grids have a wrong verdict; at most 6.5 % may")
        return int(wrong > 0.065 * options.grids)
    root = find_root()
    planner = Planner(root, Layout.of(root, options.results), task_facts)
    names = options.experiment or sorted(p.parent.name for p in root.glob("experiments/0*/*.toml"))
    table, total, shares = Table(box=box.SIMPLE_HEAD), Counter[str](), list[tuple[float, int]]()
    kinds = ("same", "opposite", "only early", "neither", "only whole")
    table.add_column("experiment / task", no_wrap=True)
    for name in ("cells", *kinds, "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in names:
        for task in default_tasks(planner.experiment(name), options.model):
            cells = list(cells_of(planner, name, task, options.model))
            ends, saved = replay(cells, options.orders)
            decided = sum(ends[kind] for kind in kinds[:3])
            total.update(ends)
            shares.append((saved, decided))
            figures = [f"{ends[kind]}" for kind in kinds]
            table.add_row(f"{name} / {task}", f"{len(cells)}", *figures, f"{100 * saved:.0f} %")
    decided = sum(number for _, number in shares)
    mean = sum(saved * number for saved, number in shares) / max(decided, 1)
    table.add_row("all", "", *(f"{total[kind]}" for kind in kinds), f"{100 * mean:.0f} %")
    out.print(table)
    return int(bool(total["opposite"]) or mean < 0.3)  # noqa: PLR2004 - what is promised


if __name__ == "__main__":
    raise SystemExit(main())
