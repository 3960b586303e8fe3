"""Where a step's time goes: by phase, then by operator, and as a trace to look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from fdllm.core.engine import Engine
from fdllm.core.reuse import LayerPlan
from fdllm.core.row_task import CacheRow, ForwardRequest, RowTask, Steps
from fdllm.core.schedule import Phase
from fdllm.fast.kernels import Kernels
from fdllm.timing.interleave import Clock
from fdllm_bench.command import BenchCommand
from fdllm_bench.floor import seconds
from fdllm_bench.models import BenchModel
from fdllm_bench.tables import text

_FORWARDS = 8
_OPERATORS = 12  # rows of a table
_MARK = "fdllm "
OUTSIDE = "outside of operators"


@dataclass(frozen=True)
class Operator:
    """An operator's share of a phase."""

    name: str  # torch's, or OUTSIDE for what no operator accounts for: Python, waiting
    calls: float  # a forward
    ms: float  # its own time a forward, without what it calls
    share: float  # of the phase's time


@dataclass(frozen=True)
class PhaseProfile:
    """A phase's time."""

    shape: str
    dtype: str
    phase: str
    columns: int
    ms: float  # of a forward while the profiler looked on, which slows it down
    plain_ms: float  # without the profiler
    floor_ms: float
    operators: tuple[Operator, ...]  # dearest first

    def show(self, console: Console) -> None:
        """Print it."""
        console.print(
            f"{self.shape}, {self.dtype}: {self.phase}, {self.columns} columns: "
            f"{text(self.plain_ms)} ms, {self.plain_ms / self.floor_ms:.2f} x floor "
            f"({text(self.ms)} ms under the profiler)",
            highlight=False,
        )
        table = Table("operator", "calls", "ms", "share")
        for one in self.operators[:_OPERATORS]:
            table.add_row(one.name, text(one.calls), text(one.ms), f"{one.share:.1%}")
        console.print(table)


def profile_model(bench: BenchModel, options: BenchCommand, path: Path) -> list[PhaseProfile]:
    """Profile every phase of a block on the engine's path, and write the trace."""
    bare, marked = _Marked(bench, options), _Marked(bench, options)
    bare.run()
    activities = [ProfilerActivity.CPU]
    if bench.model.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    plain = bench.model.accelerator
    if isinstance(plain, Kernels):  # which are no operators of torch
        bench.model.accelerator = plain.marked(record_function)
    with profile(activities=activities) as found:
        marked.run()
    bench.model.accelerator = plain
    found.export_chrome_trace(str(path))
    events: Sequence[Any] = list(found.events() or [])
    return [
        PhaseProfile(
            bench.name,
            bench.dtype,
            phase.name,
            len(request.ids),
            median(marked.seconds[phase]) * 1e3,
            median(bare.seconds[phase]) * 1e3,
            seconds(bench.floor.prepare(bench.shape_of(request, length)), _FORWARDS) * 1e3,
            operators_of(events, f"{_MARK}{phase.value}"),
        )
        for phase, (request, length) in marked.forwards.items()
    ]


class _Marked:
    """A row that makes each phase's forward some times, and marks it for the profiler."""

    def __init__(self, bench: BenchModel, options: BenchCommand) -> None:
        self._bench, block = bench, bench.block
        whole, length = LayerPlan(bench.model.n_layers), options.prompt_blocks * block
        commit = ForwardRequest(Phase.COMMIT, bench.tokens(block, 5), whole, read=(block - 1,))
        # With the tokens ahead of each; a COMMIT moves them on: the middle one's.
        self.forwards = {
            Phase.PREFILL: (ForwardRequest(Phase.PREFILL, bench.tokens(length), whole), 0),
            Phase.REFRESH: (bench.refresh(), length),
            Phase.DENOISE: (bench.denoise(), length),
            Phase.COMMIT: (commit, length + (_FORWARDS // 2 + 1) * block),
        }
        self.seconds: dict[Phase, list[float]] = defaultdict(list)
        self._capacity = length + (_FORWARDS + 2) * block

    def run(self) -> None:
        """Make them all."""
        engine = Engine(self._bench.model, self._bench.decoding, 1)
        for _ in engine.run([RowTask(self._steps, self._capacity)]):
            pass

    def _steps(self, task: RowTask[None], row: CacheRow) -> Steps[None]:  # noqa: ARG002
        """All phases; the first forward of each warms up and is not counted."""
        clock = Clock(self._bench.model.device)
        for phase, (request, _) in self.forwards.items():
            # A second PREFILL would see the first one's keys: there is one of them.
            for i in range(1) if phase is Phase.PREFILL else range(-1, _FORWARDS):
                began = clock.now()
                with record_function("warm-up" if i < 0 else f"{_MARK}{phase.value}"):
                    yield request
                    took = clock.now() - began
                if i >= 0:
                    self.seconds[phase].append(took)


def operators_of(events: Sequence[Any], mark: str) -> tuple[Operator, ...]:
    """What ran inside the spans of a mark, dearest first.

    Of a GPU's events only the host's side is added up; the trace shows both.
    """
    here = [event for event in events if event.device_type.name == "CPU"]
    spans = [event.time_range for event in here if event.name == mark]
    calls: Counter[str] = Counter()
    micros: Counter[str] = Counter()
    for event in here:
        begun = event.time_range.start
        if event.name != mark and any(span.start <= begun <= span.end for span in spans):
            calls[event.name] += 1
            micros[event.name] += event.self_cpu_time_total
    forwards, total = len(spans), sum(span.elapsed_us() for span in spans)
    micros[OUTSIDE] = max(total - sum(micros.values()), 0.0)
    return tuple(
        Operator(name, calls[name] / forwards, us / forwards / 1e3, us / total)
        for name, us in micros.most_common()
    )
