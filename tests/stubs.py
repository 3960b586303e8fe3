"""A model that answers at once, and everything around a run in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdllm.core.config import Unmask
from fdllm.core.cost import Cost
from fdllm.core.counts import Counts
from fdllm.core.reuse import LayerPlan, ReuseStrategy
from fdllm.core.schedule import Phase, Step
from fdllm.evaluate.attempt import (
    WHOLE,
    EndedEarly,
    Part,
    Reporter,
    RunOutcome,
    ShardAnswered,
    Store,
)
from fdllm.evaluate.recording import Evaluation
from fdllm.evaluate.runner import Runner
from fdllm.plan import Planner
from fdllm.record.measure import dataset
from fdllm.record.paths import Layout, RunPaths
from fdllm.record.study import Study
from fdllm.record.summary import PeakMemory, Summary
from fdllm.runs import Evaluating, ModelChoice, Run, Sweep
from fdllm.task_facts import TaskFacts
from fdllm.timing.wanted import WantedStudy, keep_study
from fdllm_bench.made_up_study import make_study
from helpers import ROOT

NUM_LAYERS = 12
NUM_DOCS = 5
METRIC = {"tiny_arithmetic": "exact_match,strict-match", "tiny_choice": "acc,none"}


@contextmanager
def small_disk(place: Path, size_kib: int = 64) -> Iterator[None]:
    """A small file system of its own; the test is skipped where none can be mounted."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (it needs root)")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """A folder on a file system that cannot be written, also not by root."""
    if subprocess.run(["mount", "--bind", place, place], check=False).returncode:
        pytest.skip("a folder cannot be mounted read-only here (it needs root)")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def make_root(folder: Path) -> Path:
    """A checkout: the baseline, the template, and a model folder that only has an identity."""
    for name in ("00_baseline", "_template"):
        shutil.copytree(ROOT / "experiments" / name, folder / "experiments" / name)
    (folder / "experiments/00_baseline/results.md").unlink()  # whose records are not here
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"num_hidden_layers": NUM_LAYERS}))
    (model / "model.safetensors").write_bytes(b"weights")
    return folder


def facts(name: str) -> TaskFacts:
    """Two tasks."""
    kind: Any = "generate" if name == "tiny_arithmetic" else "loglikelihood"
    return TaskFacts(kind, f"definition of {name}")


def make_planner(root: Path, task_facts: Callable[[str], TaskFacts] = facts) -> Planner:
    """A planner of a checkout; it remembers nothing of an earlier one."""
    return Planner(root, Layout.of(root), task_facts)


def make_sweep(root: Path, **changes: Any) -> Sweep:
    """The whole grid of the baseline on one task."""
    values: dict[str, Any] = {
        "experiment": "00_baseline",
        "tasks": ("tiny_arithmetic",),
        "model": ModelChoice(name=str(root / "model")),
        "evaluating": Evaluating(),
        "limit": None,
    }
    return Sweep(**(values | changes))


def make_run(root: Path, config: str = "k2_middle", **changes: Any) -> Run:
    """One run."""
    (run,) = make_planner(root).runs(make_sweep(root, configs=(config,), **changes))
    return run


def paths_of(root: Path, run: Run) -> RunPaths:
    """Where its files lie."""
    return make_planner(root).layout.run(run)


def change_code(root: Path) -> None:
    """The baseline's code is another from now on."""
    code = root / "experiments/00_baseline/generation_functions.py"
    code.write_text(code.read_text() + "\n# changed\n")


@dataclass
class Notes:
    """A reporter that keeps what it is told."""

    notes: list[str] = field(default_factory=list)
    begun: list[tuple[int, int]] = field(default_factory=list)

    def start(self, run: Run) -> None:
        """Nothing."""

    def begin(self, total: int, done: int) -> None:
        """Keep it."""
        self.begun.append((total, done))

    def advance(self, entry: dict[str, Any]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)


@dataclass
class StubMachine:
    """Answers documents by rule, and notes which it had to compute.

    Attributes:
        num_docs: documents of the task.
        delay_s: how long an answer takes.
        computed: file that gets a line for each computed answer.
        before: called ahead of each answer; may raise, or kill.
        answer: what a document's answer is.
        count_reuse: False counts layer calls as if nothing had been reused.
    """

    num_docs: int = NUM_DOCS
    delay_s: float = 0.0
    computed: Path | None = None
    before: Callable[[int], None] = lambda _: None
    answer: Callable[[Run, int], str] = lambda run, doc: f"{run.cell.k}: {doc}"
    count_reuse: bool = True

    @property
    def n_layers(self) -> int:
        """As the configuration says."""
        return NUM_LAYERS

    def facts(self, asked: Evaluating) -> dict[str, str | int | None]:
        """A machine."""
        return {
            "accelerator": None,
            "device": "cpu",
            "dtype": "float32",
            "threads": 1,
            "batch_size": asked.batch_size,
            "score_batch_size": asked.score_batch_size,
        }

    def peak_memory(self) -> PeakMemory:
        """A number."""
        return PeakMemory(bytes=1, kind="resident")

    def evaluate(
        self,
        run: Run,
        store: Store,
        progress: Reporter,
        *,
        strategy: ReuseStrategy[Any],
        unmask: Unmask | None = None,  # noqa: ARG002
        part: Part = WHOLE,
    ) -> Evaluation:
        """Ask for every document of the part, as the harness does."""
        docs = part.select(range(self.num_docs), lambda doc: doc)
        known = {i: store.get(f"{run.task}-{i}") for i in docs}
        done = sum(entry is not None for entry in known.values())
        store.set_total(len(docs))
        progress.begin(len(docs), done)
        samples, entries = [], []
        for i, kept in known.items():
            entry = kept
            if entry is None:
                if not part.go_on():
                    raise EndedEarly(f"{done} of {len(docs)} requests")
                done += 1
                self.before(i)
                time.sleep(self.delay_s)
                entry = self._entry(run, strategy, i)
                if self.computed is not None:
                    with self.computed.open("a") as file:
                        file.write(f"{i}\n")
                store.put(f"{run.task}-{i}", entry)
                progress.advance(entry)
            entries.append(entry)
            samples.append(self._sample(run, i, entry))
        if part.shard is not None:
            raise ShardAnswered
        metric = METRIC[run.task]
        value = sum(s["metrics"][metric] for s in samples) / len(samples)
        results = {"results": {run.task: {metric: value}}}
        return Evaluation(
            results, samples, metric, value, dataset(samples), {run.task: 1}, len(samples), entries
        )

    def _entry(self, run: Run, strategy: ReuseStrategy[Any], doc: int) -> dict[str, Any]:
        shared: dict[str, Any] = {
            "task": run.task,
            "doc_id": doc,
            "index": 0,
            "prompt_hash": f"p{doc}",
        }
        cost = {"seconds": 0.5, "counts": self._counts(strategy)}
        text = self.answer(run, doc)
        if run.task == "tiny_arithmetic":
            tokens = [ord(c) for c in text]
            answer: dict[str, Any] = {
                "kind": "generate",
                "text": text,
                "tokens": tokens,
                "steps": [1],
            }
            answer |= {"num_tokens": len(tokens), "finish": "stop"}
        else:
            answer = {"kind": "loglikelihood", "target": "A", "is_greedy": True}
            answer |= {"loglikelihood": -float(len(text) + run.cell.k), "scored_tokens": 1}
            answer |= {"scored_step": 5, "reused_tokens": int(strategy.reuses)}
        return shared | answer | cost

    def _counts(self, strategy: ReuseStrategy[Any]) -> dict[str, Any]:
        counts = Counts()
        state = strategy.init(NUM_LAYERS)
        for index in range(6):
            phase = Phase.DENOISE if index else Phase.REFRESH
            step = Step(phase, index, (0, 8), first=index == 0)
            plan = strategy.plan(step, state)
            assert isinstance(plan, LayerPlan), "the stub looks at no activations"
            counts.add(
                phase, plan if self.count_reuse else LayerPlan(NUM_LAYERS), 8, Cost(100, 20, 3)
            )
        return counts.as_dict()

    def _sample(self, run: Run, doc: int, entry: dict[str, Any]) -> dict[str, Any]:
        return {
            "task": run.task,
            "doc_id": doc,
            "doc_hash": f"d{doc}",
            "prompt_hash": f"p{doc}",
            "output": entry.get("text", [entry.get("loglikelihood")]),
            "metrics": {METRIC[run.task]: float(doc % 2)},
            "tokens": entry.get("num_tokens", entry.get("scored_tokens")),
            "seconds": entry["seconds"],
            "counts": entry["counts"],
        }


def loading(machine: StubMachine | None = None) -> Callable[[ModelChoice], Any]:
    """What loads a checkpoint, with a stub in the place of the model."""
    return lambda _: machine or StubMachine()


def do_run(
    root: Path, run: Run, machine: StubMachine | None = None, *, force: bool = False
) -> RunOutcome:
    """Do one run in a new planner, as a new process would."""
    return Runner(make_planner(root), Notes(), loading(machine)).run(run, force=force)


def do_sweep(root: Path, sweep: Sweep, machine: StubMachine | None = None) -> Sequence[RunOutcome]:
    """Do every run of a sweep."""
    planner = make_planner(root)
    runner = Runner(planner, Notes(), loading(machine))
    return [runner.run(run) for run in planner.runs(sweep)]


def signal_at(doc: int, number: int) -> StubMachine:
    """A machine whose process gets a signal ahead of one document."""

    def before(now: int) -> None:
        if now == doc:
            os.kill(os.getpid(), number)

    return StubMachine(before=before)


def stop_at(doc: int, error: BaseException) -> StubMachine:
    """A machine that raises ahead of one document."""

    def before(now: int) -> None:
        if now == doc:
            raise error

    return StubMachine(before=before)


def interrupt(root: Path, run: Run, doc: int) -> None:
    """Do a run that is interrupted ahead of one document."""
    with pytest.raises(KeyboardInterrupt):
        do_run(root, run, stop_at(doc, KeyboardInterrupt()))


def made_up_study(planner: Planner, wanted: WantedStudy, documents: int = NUM_DOCS) -> Study:
    """A study of these runs in which no config differs from another."""
    made = make_study(
        dict.fromkeys(wanted.runs, 1.0), np.random.default_rng(0), documents=documents
    )
    configs = {}
    for name, run in wanted.runs.items():
        fields = {n: str(v) for n, v in planner.fingerprint(run).fields.items()}
        now = {"fingerprint": fields, "k": run.cell.k, "reuses": run.cell.k > 1}
        configs[name] = made.configs[name].model_copy(update=now)
    run = wanted.baseline
    return made.model_copy(
        update={"experiment": run.experiment, "task": run.task, "configs": configs}
    )


def take_at_once(planner: Planner, wanted: WantedStudy, *_: Any) -> Study:
    """Stands in for taking a study."""
    study = made_up_study(planner, wanted)
    keep_study(planner, wanted, study)
    return study


def without_times(summary: Summary) -> dict[str, Any]:
    """What must agree between an undisturbed run and a resumed one."""
    return summary.model_dump(exclude={"provenance", "peak_memory"})
