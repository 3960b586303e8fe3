"""What skipping layers saves: of a step, and of a whole generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fdllm.core.reuse import LayerPlan, PeriodicReuse, Target
from fdllm.core.row_task import ForwardRequest
from fdllm.core.schedule import Phase, Step
from fdllm.core.subsets import SUBSETS, subset_bounds
from fdllm.selftest.subjects import SUB_BLOCK
from fdllm.timing.forwards import Scene, time_forwards
from fdllm.timing.interleave import Lane, Rounds, interleave
from fdllm_bench.command import BenchCommand
from fdllm_bench.floor import Work, seconds
from fdllm_bench.loads import forwards_of, generate, load_of, rounds_of
from fdllm_bench.models import BenchModel
from fdllm_bench.tables import Figure, Line, Section, ratio, section, times

PERIODS = (2, 3)
TARGETS: tuple[Target, ...] = ("output", "residual")
_STEPS = 6  # divisible by every period


@dataclass(frozen=True)
class Skipped:
    """A subset and what is stored of it."""

    name: str  # subset and target
    target: Target
    start: int  # its first layer
    stop: int  # one past its last
    n_layers: int  # of the model

    @property
    def share(self) -> float:
        """Share of the layers that is skipped."""
        return (self.stop - self.start) / self.n_layers

    def strategy(self, k: int, *, refresh_reuse: bool = False) -> PeriodicReuse:
        """Its strategy of period ``k``."""
        return PeriodicReuse(k, self.start, self.stop, self.target, refresh_reuse)

    def plan(self, k: int, index: int, phase: Phase = Phase.DENOISE) -> LayerPlan:
        """Of a step of the second sub-block."""
        step = Step(phase, index, (SUB_BLOCK, 2 * SUB_BLOCK), first=phase is Phase.REFRESH)
        return self.strategy(k).plan(step, self.n_layers)


def ideal_speed_up(share: float, k: int, fraction: float = 1.0) -> float:
    """The most that skipping a share of the layers can give.

    All but every ``k``-th step skip, of the ``fraction`` of the steps that may.
    """
    return 1.0 / (1.0 - fraction * share * (1.0 - 1.0 / k))


def every_subset(n_layers: int) -> list[Skipped]:
    """Every subset with every target."""
    return [
        Skipped(f"{subset} {target}", target, *subset_bounds(subset, n_layers), n_layers)
        for subset in SUBSETS
        for target in TARGETS
    ]


def bench_reuse(bench: BenchModel, options: BenchCommand) -> list[Section]:
    """Steps and generations; of these k=1 too, what the machinery costs where it skips nothing."""
    subsets = every_subset(bench.model.n_layers)
    size = f"{subsets[0].stop - subsets[0].start} of {bench.model.n_layers} layers"
    return [
        section(
            bench,
            "reuse",
            f"DENOISE steps that skip {size}, batch 1",
            [line for skipped in subsets for line in _steps(bench, options, skipped)],
            "skip: a step that skips; x share: its time by that of a whole step times the share "
            "of layers it computes",
            "ideal: 1 / (1 - share (1 - 1/k))",
            baseline="the same steps without reuse",
        ),
        section(
            bench,
            "reuse",
            f"whole generations with refresh_reuse, {size}, batch 1",
            [line for skipped in subsets for line in _generations(bench, options, skipped)],
            "possible: 1 / (1 - f share (1 - 1/k)), f being the fraction of the forwards that may "
            "skip: REFRESH and DENOISE but a block's first, neither PREFILL nor COMMIT",
            "possible by time: f weighted by each forward's floor",
            baseline="the same generation without reuse",
        ),
    ]


def _steps(bench: BenchModel, options: BenchCommand, skipped: Skipped) -> list[Line]:
    prompt = bench.tokens(options.prompt_blocks * bench.block)
    requests = {"k=1": [bench.denoise(seed=i) for i in range(_STEPS)]}
    for k in PERIODS:
        requests[f"k={k}"] = [bench.denoise(skipped.plan(k, i), seed=i) for i in range(_STEPS)]
    requests["skip"] = [requests["k=2"][1]]
    lanes = []
    for name, some in requests.items():
        floor = bench.floor.prepare_all(bench.shape_of(one, len(prompt)) for one in some)
        lanes += [Lane(name, tuple(some)), Lane(f"floor {name}", work=floor, num_steps=len(some))]
    scene = Scene(prompt, (bench.refresh(skipped.plan(2, 0, Phase.REFRESH)),))
    done = time_forwards(bench.model, bench.decoding, scene, lanes, rounds_of(options)).seconds
    whole, left = done["k=1"], 1.0 - skipped.share
    figures: dict[str, dict[str, Figure]] = {
        "k=1": {"ideal": 1.0},
        **{f"k={k}": {"ideal": ideal_speed_up(skipped.share, k)} for k in PERIODS},
        "skip": {"ideal": 1.0 / left, "x share": ratio(done["skip"], times(whole, left))},
    }
    return [
        Line(f"{skipped.name}, {name}", done[name], done[f"floor {name}"], whole, extra)
        for name, extra in figures.items()
    ]


def _generations(bench: BenchModel, options: BenchCommand, skipped: Skipped) -> list[Line]:
    # The prompt ends in mid-block.
    prompt, new = options.prompt_blocks * bench.block + 1, options.new_tokens
    load = load_of(bench, prompt, new, options.tokens_per_step)
    plain = forwards_of(bench, load)
    works: dict[str, Work] = {"none": partial(generate, bench, load)}
    saved, periods = {}, (1, *PERIODS)
    for k in periods:
        strategy = skipped.strategy(k, refresh_reuse=True)
        shapes = forwards_of(bench, load, strategy).shapes
        works[f"k={k}"] = partial(generate, bench, load, strategy)
        works[f"floor k={k}"] = bench.floor.prepare_all(shapes)
        calls = sum(len(shape.layers or range(skipped.n_layers)) for shape in shapes)
        saved[k] = 1.0 - calls / (len(shapes) * skipped.n_layers)
    done = interleave(works, bench.model.device, Rounds(options.repeats))
    may = may_skip(plain.requests)
    floors = {shape: seconds(bench.floor.prepare(shape)) for shape in set(plain.shapes)}
    weights = [floors[shape] for shape in plain.shapes]
    fraction = sum(may) / len(may)
    by_time = sum(weight for weight, may_it in zip(weights, may, strict=True) if may_it)
    return [
        Line(
            f"{skipped.name}, k={k}",
            done[f"k={k}"],
            done[f"floor k={k}"],
            done["none"],
            {
                "ideal": ideal_speed_up(skipped.share, k),
                "f": fraction,
                "possible": ideal_speed_up(skipped.share, k, fraction),
                "possible by time": ideal_speed_up(skipped.share, k, by_time / sum(weights)),
                "calls saved": saved[k],
                "floor speed-up": ratio(done["floor k=1"], done[f"floor k={k}"]),
                "tokens/s": tuple(new / second for second in done[f"k={k}"]),
            },
        )
        for k in periods
    ]


def may_skip(requests: Sequence[ForwardRequest]) -> list[bool]:
    """Which forwards of a row may skip under refresh_reuse: steps, but not a block's first."""
    out, first = [], True
    for request in requests:
        step = request.phase in (Phase.REFRESH, Phase.DENOISE)
        out.append(step and not first)
        first = not step
    return out
