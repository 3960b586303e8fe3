"""bfloat16 next to float32: the same forwards, in turn, in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fdllm.bench.asks import decoding_of, denoise, extents, refresh, tokens
from fdllm.bench.generation import forwards_of, generate
from fdllm.bench.lanes import Lane, Scene, measure
from fdllm.bench.options import Options
from fdllm.bench.results import Line, Section
from fdllm.bench.reuse import load_of
from fdllm.bench.shapes import Subject
from fdllm.bench.timing import Clock, Spread, interleave

TOPIC = "dtype"
DTYPES = ("float32", "bfloat16")


def bench_dtypes(subjects: dict[str, Subject], options: Options) -> list[Section]:
    """Steps and a whole generation in both types.

    Args:
        subjects: one shape, by type; the first is the baseline.
        options: how much to measure.
    """
    some = next(iter(subjects.values()))
    lines = [*_steps(subjects, options), *_generation(subjects, options)]
    return [
        Section(
            TOPIC,
            some.name,
            " and ".join(subjects),
            "types next to each other, batch 1",
            tuple(lines),
            f"{next(iter(subjects))}",
            ("floor: that of the same type",),
        )
    ]


def _steps(subjects: dict[str, Subject], options: Options) -> list[Line]:
    lines = []
    for name in ("DENOISE", "REFRESH"):
        steps: dict[str, list[float]] = {dtype: [] for dtype in subjects}
        floors: dict[str, list[float]] = {dtype: [] for dtype in subjects}
        for _ in range(options.repeats):
            for dtype, subject in subjects.items():
                step, floor = _step(subject, options, name)
                steps[dtype] += step.values
                floors[dtype] += floor.values
        spreads = {dtype: Spread(tuple(values)) for dtype, values in steps.items()}
        baseline = next(iter(spreads.values()))
        lines += [
            Line(f"{name}, {dtype}", spread, Spread(tuple(floors[dtype])), baseline)
            for dtype, spread in spreads.items()
        ]
    return lines


def _step(subject: Subject, options: Options, name: str) -> tuple[Spread, Spread]:
    block = subject.spec.block_size
    prompt = tokens(subject, options.prompt_blocks * block)
    ask = denoise(subject) if name == "DENOISE" else refresh(subject)
    floor = subject.floor.prepare(extents(ask, len(prompt), block))
    done = measure(
        subject.model,
        decoding_of(subject),
        Scene(prompt, (refresh(subject),)),
        [Lane("step", (ask,)), Lane("floor", work=floor)],
        replace(options, repeats=1),
    ).seconds
    return done["step"], done["floor"]


def _generation(subjects: dict[str, Subject], options: Options) -> list[Line]:
    works: dict[str, Callable[[], object]] = {}
    for dtype, subject in subjects.items():
        load = load_of(subject, options)
        works[dtype] = partial(generate, subject, load)
        works[f"floor {dtype}"] = subject.floor.prepare_all(forwards_of(subject, load).seen)
    clock = Clock(next(iter(subjects.values())).model.device)
    done = interleave(clock, works, options.repeats)
    baseline = done[next(iter(subjects))]
    lines = []
    for dtype, subject in subjects.items():
        rate = options.new_tokens / done[dtype].median
        label = f"{options.new_tokens} tokens, {options.tokens_per_step} a step, {dtype}"
        extra = {"tokens/s": rate}
        lines.append(Line(label, done[dtype], done[f"floor {dtype}"], baseline, extra))
        subject.floor.forget()
    return lines
