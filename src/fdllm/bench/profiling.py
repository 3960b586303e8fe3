"""Where a step's time goes: by phase, then by operator, and as a trace to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from fdllm.bench.asks import decoding_of, extents, tokens
from fdllm.bench.asks import denoise as denoise_ask
from fdllm.bench.asks import refresh as refresh_ask
from fdllm.bench.options import Options
from fdllm.bench.results import dtype_of
from fdllm.bench.shapes import Subject
from fdllm.bench.timing import Clock, Spread
from fdllm.core.engine import Engine
from fdllm.core.layerplan import LayerPlan
from fdllm.core.row_task import CacheRow, ForwardRequest, RowTask, Steps
from fdllm.core.schedule import Phase

_STEPS = 8
_MARK = "fdllm "
OUTSIDE = "outside of operators"


@dataclass(frozen=True)
class Operator:
    """An operator's share of a phase.

    Attributes:
        name: torch's, or :data:`OUTSIDE` for what no operator accounts for: Python, waiting.
        calls: calls a forward.
        ms: its own time a forward, without what it calls.
        share: of the phase's time.
    """

    name: str
    calls: float
    ms: float
    share: float


@dataclass(frozen=True)
class PhaseProfile:
    """A phase's time.

    Attributes:
        shape: the model's shape.
        dtype: its type.
        phase: which.
        columns: that it feeds.
        ms: a forward's time while the profiler looked on, which slows it down.
        plain_ms: a forward's time without the profiler.
        floor_ms: the floor's time.
        operators: dearest first.
    """

    shape: str
    dtype: str
    phase: str
    columns: int
    ms: float
    plain_ms: float
    floor_ms: float
    operators: tuple[Operator, ...]

    def as_dict(self) -> dict[str, object]:
        """JSON form."""
        return {**vars(self), "operators": [vars(operator) for operator in self.operators]}


def profile_subject(subject: Subject, options: Options, path: Path) -> list[PhaseProfile]:
    """Profile every phase of a block on the engine's path, and write the trace.

    Args:
        subject: the model.
        options: the prompt's length and the repeats.
        path: where the trace goes, in Chrome's format.
    """
    bare = _Marked(subject, options)
    _run(subject, bare)
    marked = _Marked(subject, options)
    activities = [ProfilerActivity.CPU]
    if subject.model.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    stepper = subject.model.network.prepare()
    fused = stepper.fused
    if fused is not None:  # which are no operators of torch
        stepper.fused = fused.marked(record_function)
    with profile(activities=activities) as found:
        _run(subject, marked)
    stepper.fused = fused
    found.export_chrome_trace(str(path))
    events: Sequence[Any] = list(found.events() or [])
    return [
        _phase(subject, marked, phase, Spread(tuple(bare.seconds[phase])).median * 1e3, events)
        for phase in marked.asks
    ]


class _Marked:
    """A job that makes each phase's forward some times, and marks it for the profiler."""

    def __init__(self, subject: Subject, options: Options) -> None:
        block = subject.spec.block_size
        whole = LayerPlan(subject.model.n_layers)
        self.prompt = options.prompt_blocks * block
        prompt = tokens(subject, self.prompt)
        self.asks = {
            Phase.PREFILL: ForwardRequest(Phase.PREFILL, prompt, whole),
            Phase.REFRESH: refresh_ask(subject),
            Phase.DENOISE: denoise_ask(subject),
            Phase.COMMIT: ForwardRequest(
                Phase.COMMIT, tokens(subject, block, 5), whole, read=(block - 1,)
            ),
        }
        self.prefix = dict.fromkeys(self.asks, self.prompt) | {Phase.PREFILL: 0}
        self.prefix[Phase.COMMIT] += (_STEPS // 2 + 1) * block  # it grows: the middle one's
        self.seconds: dict[Phase, list[float]] = defaultdict(list)
        # A PREFILL and a COMMIT move the prefix on: one warm-up of each stands ahead of the text.
        self.capacity = 2 * self.prompt + 2 * _STEPS * block
        self._clock = Clock(subject.model.device)

    def run(self, job: RowTask[None], row: CacheRow) -> Steps[None]:  # noqa: ARG002
        """All phases; the first forward of each warms up and is not counted."""
        for phase, ask in self.asks.items():
            # A second PREFILL would see the first one's keys: there is one of them.
            for i in range(1 if phase is Phase.PREFILL else _STEPS + 1):
                name = f"{_MARK}{phase.value}" if i or phase is Phase.PREFILL else "warm-up"
                began = self._clock.now()
                with record_function(name):
                    yield ask
                    took = self._clock.now() - began
                if name != "warm-up":
                    self.seconds[phase].append(took)


def _run(subject: Subject, marked: _Marked) -> None:
    engine = Engine(subject.model, decoding_of(subject), 1)
    for _ in engine.run([RowTask(marked.run, marked.capacity)]):
        pass


def _phase(
    subject: Subject, marked: _Marked, phase: Phase, bare_ms: float, events: Sequence[Any]
) -> PhaseProfile:
    ask = marked.asks[phase]
    forward = extents(ask, marked.prefix[phase], subject.spec.block_size)
    work, clock = subject.floor.prepare(forward), Clock(subject.model.device)
    work()
    floor = Spread(tuple(clock.time(work) for _ in range(_STEPS)))
    return PhaseProfile(
        subject.name,
        dtype_of(subject.model),
        phase.value.upper(),
        len(ask.ids),
        Spread(tuple(marked.seconds[phase])).median * 1e3,
        bare_ms,
        floor.median * 1e3,
        operators_of(events, f"{_MARK}{phase.value}"),
    )


def operators_of(events: Sequence[Any], mark: str) -> tuple[Operator, ...]:
    """What ran inside the spans of a mark, dearest first.

    Args:
        events: the profiler's; of a GPU's only the host's side is added up, the trace shows both.
        mark: the spans' name.
    """
    here = [event for event in events if event.device_type.name == "CPU"]
    spans = [event.time_range for event in here if event.name == mark]
    calls: dict[str, int] = defaultdict(int)
    micros: dict[str, float] = defaultdict(float)
    for event in here:
        begun = event.time_range.start
        if event.name == mark or not any(s.start <= begun <= s.end for s in spans):
            continue
        calls[event.name] += 1
        micros[event.name] += event.self_cpu_time_total
    count, total = len(spans), sum(span.elapsed_us() for span in spans)
    micros[OUTSIDE] = max(total - sum(micros.values()), 0.0)
    order = sorted(micros, key=lambda name: -micros[name])
    return tuple(
        Operator(name, calls[name] / count, micros[name] / count / 1e3, micros[name] / total)
        for name in order
    )
