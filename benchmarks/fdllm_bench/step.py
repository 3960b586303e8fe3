"""A step against its floor, and a whole generation against the floor of its forwards."""

from __future__ import annotations

from dataclasses import replace

from fdllm.core.row_task import ForwardRequest
from fdllm.timing.forwards import Scene, time_forwards
from fdllm.timing.interleave import Lane, Rounds, interleave
from fdllm_bench.command import BenchCommand
from fdllm_bench.floor import Limits, measure_limits
from fdllm_bench.loads import forwards_of, generate, load_of, rounds_of
from fdllm_bench.models import BenchModel
from fdllm_bench.tables import Line, Section, ratio, section


def bench_step(bench: BenchModel, options: BenchCommand) -> list[Section]:
    """Both tables of a shape."""
    limits = measure_limits(bench.floor)
    layouts = ", ".join(f"{name} {layout}" for name, layout in bench.floor.layouts.items())
    requests = {"DENOISE": bench.denoise(), "REFRESH": bench.refresh()}
    steps = section(
        bench,
        "step",
        "a step on the engine's path, batch 1",
        [_step(bench, options, limits, name, request) for name, request in requests.items()],
        f"floor: products ({layouts}), attention, head on the columns read; nothing else",
        "plain floor: the same from the checkpoint's weights, by torch's own products",
        f"limit: the slower of reading at {limits.read / 1e9:.1f} GB/s and "
        f"{limits.product / 1e9:.0f} GFLOP/s, both measured just before",
    )
    return [steps, _generation(bench, options)]


def _step(
    bench: BenchModel, options: BenchCommand, limits: Limits, name: str, request: ForwardRequest
) -> Line:
    prompt = bench.tokens(options.prompt_blocks * bench.block)
    shape, width = bench.shape_of(request, len(prompt)), len(request.ids)
    # Of other tokens: two steps of a row never feed the same.
    varied = tuple(replace(request, ids=bench.tokens(width, seed)) for seed in (3, 4))
    lanes = [
        Lane("step", varied),
        Lane("floor", work=bench.floor.prepare(shape)),
        Lane("plain floor", work=bench.floor.prepare(shape, plain=True)),
    ]
    scene = Scene(prompt, (bench.refresh(),))
    done = time_forwards(bench.model, bench.decoding, scene, lanes, rounds_of(options)).seconds
    cost = bench.floor.cost(shape)
    limit = limits.seconds(cost)
    return Line(
        f"{name}, {width} columns, {shape.extent} keys",
        done["step"],
        done["floor"],
        extra={
            "x plain floor": ratio(done["step"], done["plain floor"]),
            "limit ms": limit * 1e3,
            "x limit": tuple(value / limit for value in done["step"]),
            "bound by": limits.bound(cost),
            "MB read": cost.num_bytes / 1e6,
            "MFLOP": cost.operations / 1e6,
        },
    )


def _generation(bench: BenchModel, options: BenchCommand) -> Section:
    new = options.new_tokens
    prompt = options.prompt_blocks * bench.block + bench.block // 2
    load = load_of(bench, prompt, new, options.tokens_per_step)
    whole = replace(load, block_cache=False)
    shapes = forwards_of(bench, load).shapes
    works = {
        "engine": lambda: generate(bench, load),
        "floor": bench.floor.prepare_all(shapes),
        "whole blocks": lambda: generate(bench, whole),
    }
    done = interleave(works, bench.model.device, Rounds(options.repeats))
    rates = {
        f"{name} tokens/s".removeprefix("engine "): tuple(new / second for second in seconds)
        for name, seconds in done.items()
    }
    label = f"{new} tokens, {options.tokens_per_step} a step, {len(shapes)} forwards"
    return section(
        bench,
        "step",
        "a whole generation, batch 1",
        [Line(label, done["engine"], done["floor"], done["whole blocks"], rates)],
        "floor: the floors of the same forwards, one behind the other",
        baseline="decoding without the block cache, every step a whole block",
    )
