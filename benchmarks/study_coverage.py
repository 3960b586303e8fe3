"""What a timing study is worth: ``python benchmarks/study_coverage.py busy``, or another kind.

``drift`` and ``null`` are studies of a made-up machine that drifts by 1.5 within minutes: how many
intervals of one computation done twice hold 1; in how many grids of twelve equal configs anything
is claimed. The others are real studies of the embedded model. ``plain`` and ``busy``: how many
intervals hold 1 on the machine as it is, and while a busy loop comes and goes on every core (of
three twins there are three intervals a study). ``slowed``: whether a config that waits, after each
of its steps, for a tenth of what the step took is found slower by that.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from fdllm.core.row_task import CacheRow, RowTask, Steps
from fdllm.evaluate.adapter import LoadedModel
from fdllm.evaluate.tasks import task_facts
from fdllm.plan import Planner
from fdllm.record.paths import Layout, find_root
from fdllm.record.study import Study
from fdllm.report.stats import Estimate
from fdllm.report.times import judge_pairs
from fdllm.runs import ModelChoice, Sweep
from fdllm.timing.take_study import take_study
from fdllm.timing.wanted import WantedStudy, want_studies
from fdllm_bench.made_up_study import make_study

TWINS = ("k1_first", "k1_middle", "k1_last")
SLOWED = "k1_last"
GRID = dict.fromkeys([*TWINS, *(f"k{k}_{s}" for k in (2, 3, 4) for s in "abc")], 1.0)


class Waits:
    """Stands around a config's forwards, and makes each step longer by a share of itself."""

    def __init__(self, share: float) -> None:
        self._share = share

    def wrap(self, task: RowTask[Any]) -> RowTask[Any]:
        """The task, with a busy wait behind each step: a forward, and what the row did before."""
        inner = task.steps

        def steps(task: RowTask[Any], row: CacheRow) -> Steps[Any]:
            began, made = time.perf_counter(), inner(task, row)
            try:
                request = next(made)
                while True:
                    told = yield request
                    took = time.perf_counter() - began
                    while time.perf_counter() < began + (1 + self._share) * took:
                        pass
                    began = time.perf_counter()
                    request = made.send(told)
            except StopIteration as end:
                return end.value

        task.steps = steps
        return task


@contextmanager
def loops_that_come_and_go() -> Iterator[None]:
    """A busy loop on each core, half of the time, for 0.3 to 2 s at once."""
    over = threading.Event()

    def play(core: int) -> None:
        rng = random.Random(core)
        while not over.is_set():
            burning = rng.random() < 0.5  # noqa: PLR2004 - a coin
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if burning else None
            over.wait(rng.uniform(0.3, 2))
            if loop is not None:
                loop.kill()
                loop.wait()

    players = [threading.Thread(target=play, args=[core]) for core in range(os.cpu_count() or 1)]
    for player in players:
        player.start()
    try:
        yield
    finally:
        over.set()
        for player in players:
            player.join()


class Here:
    """The embedded model, and a study of its twins."""

    def __init__(self, documents: int, repeats: int) -> None:
        self._planner = Planner(
            find_root(), Layout.of(find_root(), Path(tempfile.mkdtemp())), task_facts
        )
        choice = ModelChoice(name="tiny", device="cpu")
        sweep = Sweep(experiment="00_baseline", tasks=("tiny_arithmetic",), model=choice)
        [whole] = want_studies(self._planner, sweep, documents, repeats)
        self._wanted = WantedStudy({n: whole.runs[n] for n in TWINS}, documents, repeats)
        self._model = LoadedModel.load(choice, threads=1)

    def study(self, seed: int, hooks: Mapping[str, Waits] | None = None) -> Study:
        """Take one, of other documents for each seed; a slowed config is no twin."""
        found = take_study(self._planner, self._model, self._wanted, hooks=hooks, seed=seed)
        configs = {
            name: one.model_copy(update={"reuses": hooks is not None and name == SLOWED})
            for name, one in found.configs.items()
        }
        return found.model_copy(update={"configs": configs})


def twins(studies: int, take: Callable[[int], Study]) -> None:
    """How many intervals of one computation done twice hold 1, and in how many studies not."""
    ratios, claimed = list[Estimate](), 0
    for number in range(studies):
        study = take(number)
        found = judge_pairs(study).pairs
        claimed += any(pair.claim != "none" for pair in found)
        mine = [pair.ratio for pair in found]
        if tuple(study.configs) == TWINS:
            mine.append(judge_pairs(study, TWINS[1])[TWINS[2]].ratio)
        print(number, *(ratio.shown(form=".4f") for ratio in mine), flush=True)
        ratios += mine
    held = sum(ratio.low <= 1 <= ratio.high for ratio in ratios)
    half = np.median([(ratio.high - ratio.low) / 2 for ratio in ratios])
    print(
        f"{held} of {len(ratios)} intervals hold 1 ({held / len(ratios):.1%}), median half-width "
        f"{half:.2%}; {claimed} of {studies} studies claim a difference"
    )


def slowed(studies: int, here: Here) -> None:
    """In how many studies a config that takes a tenth longer is found, and by how much."""
    found, held, halves = 0, 0, []
    for number in range(studies):
        # All are stood around, so that only the wait tells the slowed one from the others.
        waits = {name: Waits(0.1 if name == SLOWED else 0.0) for name in TWINS}
        pair = judge_pairs(here.study(number, waits))[SLOWED]
        found += pair.claim == "slower"
        held += pair.ratio.low <= 1.1 <= pair.ratio.high  # noqa: PLR2004
        halves.append((pair.ratio.high - pair.ratio.low) / 2)
        print(number, pair.ratio.shown(form=".4f"), pair.claim, flush=True)
    print(
        f"{found} of {studies} found slower, {held} intervals hold 1.10, median half-width "
        f"{np.median(halves):.2%}"
    )


def main() -> None:
    """Take the studies, print each and what they are worth."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("what", choices=("drift", "null", "plain", "busy", "slowed"))
    parser.add_argument("--studies", type=int, default=50)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    size = {"documents": asked.documents, "repeats": asked.repeats}
    if asked.what in ("drift", "null"):
        draw = np.random.default_rng(asked.seed)
        ratios = GRID if asked.what == "null" else dict.fromkeys(TWINS, 1.0)
        twins(asked.studies, lambda _: make_study(ratios, draw, **size))
        return
    here = Here(**size)
    if asked.what == "slowed":
        slowed(asked.studies, here)
        return
    with loops_that_come_and_go() if asked.what == "busy" else nullcontext():
        twins(asked.studies, here.study)


if __name__ == "__main__":
    main()
