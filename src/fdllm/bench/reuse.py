"""What skipping layers saves: of a step, and of a whole generation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fdllm.bench.asks import SUB_BLOCK, decoding_of, denoise, extents, refresh, tokens
from fdllm.bench.floor import Forward
from fdllm.bench.generation import FixedUnmask, Load, forwards_of, generate
from fdllm.bench.lanes import Lane, Scene, measure
from fdllm.bench.options import Options
from fdllm.bench.results import Extra, Line, Section, dtype_of
from fdllm.bench.shapes import Subject
from fdllm.bench.timing import Clock, Spread, interleave
from fdllm.core.layerplan import Target
from fdllm.core.reuse import SUBSETS, NoReuse, PeriodicReuse, subset_bounds
from fdllm.core.row_task import ForwardRequest
from fdllm.core.sampler import GenerationRequest
from fdllm.core.schedule import Phase, Step

TOPIC = "reuse"
PERIODS = (2, 3)
TARGETS: tuple[Target, ...] = ("output", "residual")
_STEPS = 6  # divisible by every period


@dataclass(frozen=True)
class Cell:
    """A subset and what is stored of it.

    Attributes:
        subset: ``first``, ``middle`` or ``last``.
        target: ``output`` or ``residual``.
        start: its first layer.
        stop: one past its last.
        n_layers: layers of the model.
    """

    subset: str
    target: Target
    start: int
    stop: int
    n_layers: int

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.subset} {self.target}"

    @property
    def share(self) -> float:
        """Share of the layers that is skipped."""
        return (self.stop - self.start) / self.n_layers

    def strategy(self, k: int, *, refresh_reuse: bool = False) -> PeriodicReuse:
        """Its strategy of period ``k``."""
        return PeriodicReuse(k, self.start, self.stop, self.target, refresh_reuse)


def ideal_speed_up(share: float, k: int, fraction: float = 1.0) -> float:
    """The most that skipping can give.

    Args:
        share: share of the layers that a step may skip.
        k: reuse period: all but every k-th step skip.
        fraction: the fraction of all steps that may skip.
    """
    return 1.0 / (1.0 - fraction * share * (1.0 - 1.0 / k))


def cells_of(n_layers: int) -> list[Cell]:
    """Every subset with every target."""
    return [
        Cell(subset, target, *subset_bounds(subset, n_layers), n_layers)
        for subset in SUBSETS
        for target in TARGETS
    ]


def bench_reuse(subject: Subject, options: Options) -> list[Section]:
    """Steps, generations, and what the machinery costs where it skips nothing."""
    cells = cells_of(subject.model.n_layers)
    steps = [line for cell in cells for line in _steps(subject, options, cell)]
    whole = [line for cell in cells for line in _generations(subject, options, cell)]
    dtype = dtype_of(subject.model)
    size = f"{cells[0].stop - cells[0].start} of {subject.model.n_layers} layers"
    return [
        Section(
            TOPIC,
            subject.name,
            dtype,
            f"DENOISE steps that skip {size}, batch 1",
            tuple(steps),
            "the same steps without reuse",
            (
                (
                    "skip: a step that skips; x share: its time by that of a whole step times the "
                    "share of layers it computes"
                ),
                "ideal: 1 / (1 - share (1 - 1/k))",
            ),
        ),
        Section(
            TOPIC,
            subject.name,
            dtype,
            f"whole generations with refresh_reuse, {size}, batch 1",
            tuple(whole),
            "the same generation without reuse",
            (
                (
                    "possible: 1 / (1 - f share (1 - 1/k)), f being the fraction of the forwards "
                    "that may skip: REFRESH and DENOISE but a block's first, neither PREFILL nor "
                    "COMMIT"
                ),
                "possible by time: f weighted by each forward's floor",
            ),
        ),
        _machinery(subject, options, cells),
    ]


def _steps(subject: Subject, options: Options, cell: Cell) -> list[Line]:
    block = subject.spec.block_size
    prompt = tokens(subject, options.prompt_blocks * block)
    asks = {"k=1": tuple(denoise(subject, seed=i) for i in range(_STEPS))}
    for k in PERIODS:
        asks[f"k={k}"] = tuple(_periodic(subject, cell, k, i) for i in range(_STEPS))
    asks["skip"] = (_periodic(subject, cell, 2, 1),)
    lanes = []
    for name, some in asks.items():
        forwards = [extents(ask, len(prompt), block) for ask in some]
        floor = subject.floor.prepare_all(forwards)
        lanes += [Lane(name, some), Lane(f"floor {name}", work=floor, num_steps=len(some))]
    stored = refresh(subject, cell.strategy(2).plan(_step(0, Phase.REFRESH), cell.n_layers))
    scene = Scene(prompt, (stored,))
    done = measure(subject.model, decoding_of(subject), scene, lanes, options).seconds
    whole, skipped = done["k=1"], 1.0 - cell.share
    lines = [
        Line(
            f"{cell.name}, k={k}",
            done[f"k={k}"],
            done[f"floor k={k}"],
            whole,
            {"ideal": ideal_speed_up(cell.share, k)},
        )
        for k in PERIODS
    ]
    share = done["skip"].over(whole.times(skipped))
    extra: dict[str, Extra] = {"ideal": 1.0 / skipped, "x share": share}
    lines.append(Line(f"{cell.name}, skip", done["skip"], done["floor skip"], whole, extra))
    return [Line(f"{cell.name}, k=1", whole, done["floor k=1"], whole, {"ideal": 1.0}), *lines]


def _periodic(subject: Subject, cell: Cell, k: int, index: int) -> ForwardRequest:
    plan = cell.strategy(k).plan(_step(index, Phase.DENOISE), cell.n_layers)
    return denoise(subject, plan, seed=index)


def _step(index: int, phase: Phase) -> Step:
    return Step(phase, index, (SUB_BLOCK, 2 * SUB_BLOCK), first=phase is Phase.REFRESH)


def load_of(subject: Subject, options: Options) -> Load:
    """One text behind a prompt that ends in mid-block."""
    block = subject.spec.block_size
    prompt = tokens(subject, options.prompt_blocks * block + 1)
    request = GenerationRequest(prompt, options.new_tokens)
    return Load((request,), FixedUnmask(options.tokens_per_step))


def _generations(subject: Subject, options: Options, cell: Cell) -> list[Line]:
    load, clock = load_of(subject, options), Clock(subject.model.device)
    works: dict[str, Callable[[], object]] = {"k=1": lambda: generate(subject, load)}
    plain = forwards_of(subject, load)
    works["floor k=1"] = subject.floor.prepare_all(plain.seen)
    saved = {}
    for k in PERIODS:
        strategy = cell.strategy(k, refresh_reuse=True)
        watched = forwards_of(subject, load, strategy)
        works[f"k={k}"] = _work(subject, load, strategy)
        works[f"floor k={k}"] = subject.floor.prepare_all(watched.seen)
        calls = sum(len(f.layers or range(cell.n_layers)) for f in watched.seen)
        saved[k] = 1.0 - calls / (len(watched.seen) * cell.n_layers)
    done = interleave(clock, works, options.repeats)
    may = may_skip(plain.asks)
    fraction = sum(may) / len(may)
    by_time = _weighted(subject, clock, plain.seen, may)
    subject.floor.forget()
    return [
        Line(
            f"{cell.name}, k={k}",
            done[f"k={k}"],
            done[f"floor k={k}"],
            done["k=1"],
            {
                "ideal": ideal_speed_up(cell.share, k),
                "f": fraction,
                "possible": ideal_speed_up(cell.share, k, fraction),
                "possible by time": ideal_speed_up(cell.share, k, by_time),
                "calls saved": saved[k],
                "floor speed-up": done["floor k=1"].over(done[f"floor k={k}"]),
                "tokens/s": options.new_tokens / done[f"k={k}"].median,
            },
        )
        for k in PERIODS
    ]


def _work(subject: Subject, load: Load, strategy: PeriodicReuse) -> Callable[[], object]:
    return lambda: generate(subject, load, strategy)


def may_skip(asks: list[ForwardRequest]) -> list[bool]:
    """Which forwards of a row may skip under refresh_reuse: steps, but not a block's first."""
    out, first = [], True
    for ask in asks:
        step = ask.phase in (Phase.REFRESH, Phase.DENOISE)
        out.append(step and not first)
        first = not step
    return out


def _weighted(subject: Subject, clock: Clock, forwards: list[Forward], may: list[bool]) -> float:
    """The fraction of the floor's time that forwards make which may skip."""
    total = skippable = 0.0
    seconds = {}
    for forward in Counter(forwards):
        work = subject.floor.prepare(forward)
        seconds[forward] = Spread(tuple(clock.time(work) for _ in range(3))).median
    for forward, may_it in zip(forwards, may, strict=True):
        total += seconds[forward]
        skippable += seconds[forward] if may_it else 0.0
    return skippable / total


def _machinery(subject: Subject, options: Options, cells: list[Cell]) -> Section:
    """k=1 with a strategy that could skip, against none."""
    load, clock = load_of(subject, options), Clock(subject.model.device)
    one = cells[0].strategy(1, refresh_reuse=True)
    floor = subject.floor.prepare_all(forwards_of(subject, load).seen)
    works: dict[str, Callable[[], object]] = {
        "none": lambda: generate(subject, load, NoReuse()),
        "k=1": lambda: generate(subject, load, one),
        "floor": floor,
    }
    done = interleave(clock, works, 3 * options.repeats)
    subject.floor.forget()
    over = done["k=1"].over(done["none"])
    return Section(
        TOPIC,
        subject.name,
        dtype_of(subject.model),
        "the machinery where it skips nothing: a whole generation",
        (
            Line(
                "PeriodicReuse(k=1)", done["k=1"], done["floor"], done["none"], {"x NoReuse": over}
            ),
        ),
        "NoReuse",
    )
