"""A step against its floor, and a whole generation against the floor of its forwards."""

from __future__ import annotations

from dataclasses import replace

from fdllm.bench.asks import decoding_of, denoise, extents, refresh, tokens
from fdllm.bench.generation import FixedUnmask, Load, forwards_of, generate, plain_generate
from fdllm.bench.lanes import Lane, Scene, measure
from fdllm.bench.limits import Limits, measure_limits
from fdllm.bench.options import Options
from fdllm.bench.results import Line, Section, dtype_of
from fdllm.bench.shapes import Subject
from fdllm.bench.timing import Clock, interleave
from fdllm.core.row_task import ForwardRequest
from fdllm.core.sampler import GenerationRequest

TOPIC = "step"


def bench_step(subject: Subject, options: Options) -> list[Section]:
    """Both tables of a shape."""
    limits = limits_of(subject)
    return [_steps(subject, options, limits), _generation(subject, options)]


def limits_of(subject: Subject) -> Limits:
    """The machine's rates, for weights of this size."""
    model, floor = subject.model, subject.floor
    weight_bytes = floor.layer_bytes * model.n_layers + floor.head_bytes
    return measure_limits(model.device, model.dtype, weight_bytes)


def _steps(subject: Subject, options: Options, limits: Limits) -> Section:
    prompt = tokens(subject, options.prompt_blocks * subject.spec.block_size)
    asks = {"DENOISE": denoise(subject), "REFRESH": refresh(subject)}
    lines = []
    for name, ask in asks.items():
        forward = extents(ask, len(prompt), subject.spec.block_size)
        lanes = [
            Lane("step", _varied(subject, ask)),
            Lane("floor", work=subject.floor.prepare(forward)),
            Lane("plain floor", work=subject.floor.prepare_plain(forward)),
        ]
        scene = Scene(prompt, (asks["REFRESH"],))
        done = measure(subject.model, decoding_of(subject), scene, lanes, options)
        cost = subject.floor.cost(forward)
        limit = limits.seconds(cost)
        step = done.seconds["step"]
        lines.append(
            Line(
                f"{name}, {forward.width} columns, {forward.extent} keys",
                step,
                done.seconds["floor"],
                extra={
                    "x plain floor": step.over(done.seconds["plain floor"]),
                    "limit ms": limit * 1e3,
                    "x limit": step.median / limit,
                    "bound by": limits.bound(cost),
                    "MB read": cost.num_bytes / 1e6,
                    "MFLOP": cost.operations / 1e6,
                },
            )
        )
    layouts = ", ".join(f"{k} {v}" for k, v in subject.floor.layouts.items())
    return section(
        subject,
        "a step on the engine's path, batch 1",
        lines,
        notes=(
            f"floor: products ({layouts}), attention, head on the columns read; nothing else",
            "plain floor: the same from the checkpoint's weights, by torch's own products",
            (
                f"limit: the slower of reading at {limits.read.high / 1e9:.1f} GB/s and "
                f"{limits.product.high / 1e9:.0f} GFLOP/s, both measured just before"
            ),
        ),
    )


def _varied(subject: Subject, ask: ForwardRequest) -> tuple[ForwardRequest, ...]:
    """The same forward of other tokens: two steps of a row never feed the same."""
    width = len(ask.ids)
    return tuple(replace(ask, ids=tokens(subject, width, seed)) for seed in (3, 4))


def _generation(subject: Subject, options: Options) -> Section:
    block = subject.spec.block_size
    prompt = tokens(subject, options.prompt_blocks * block + block // 2)
    load = Load(
        (GenerationRequest(prompt, options.new_tokens),), FixedUnmask(options.tokens_per_step)
    )
    watched = forwards_of(subject, load)
    forwards, new = watched.seen, options.new_tokens
    floor = subject.floor.prepare_all(forwards)
    clock = Clock(subject.model.device)
    done = interleave(
        clock,
        {
            "engine": lambda: generate(subject, load),
            "floor": floor,
            "plain": lambda: plain_generate(subject, load.requests[0], load.unmask),
        },
        options.repeats,
    )
    subject.floor.forget()
    line = Line(
        f"{new} tokens, {options.tokens_per_step} a step, {len(forwards)} forwards",
        done["engine"],
        done["floor"],
        done["plain"],
        extra={
            "tokens/s": new / done["engine"].median,
            "floor tokens/s": new / done["floor"].median,
            "plain tokens/s": new / done["plain"].median,
        },
    )
    return section(
        subject,
        "a whole generation, batch 1",
        [line],
        baseline="the plain sampler (no caches, no batching)",
        notes=("floor: the floors of the same forwards, one behind the other",),
    )


def section(
    subject: Subject,
    title: str,
    lines: list[Line],
    *,
    baseline: str | None = None,
    notes: tuple[str, ...] = (),
) -> Section:
    """A table of this topic."""
    return Section(
        TOPIC, subject.name, dtype_of(subject.model), title, tuple(lines), baseline, notes
    )
