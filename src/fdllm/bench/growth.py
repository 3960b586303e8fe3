"""How time grows with the prompt and the batch, and what memory a batch takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from fdllm.bench.asks import SUB_BLOCK, decoding_of, denoise, extents, refresh, tokens
from fdllm.bench.generation import FixedUnmask, Load, forwards_of, generate
from fdllm.bench.lanes import Lane, Scene, measure
from fdllm.bench.memory import measure_apart
from fdllm.bench.options import Options
from fdllm.bench.results import Curve, Line, Section, dtype_of
from fdllm.bench.shapes import Subject
from fdllm.bench.timing import Clock, Spread, interleave
from fdllm.core.sampler import GenerationRequest

TOPIC = "growth"
PROMPTS = (64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8)
_PROMPT_OF_BATCHES = 256
MEMORY = ((64, 1), (1024, 1), (1024, 8))


def bench_growth(
    subject: Subject,
    options: Options,
    prompts: Sequence[int] = PROMPTS,
    batches: Sequence[int] = BATCHES,
    memory: Sequence[tuple[int, int]] = MEMORY,
) -> list[Section]:
    """Time of a new token, time of the prompt, memory.

    Args:
        subject: the model.
        options: how much to measure.
        prompts: lengths of prompts, whole blocks; those that the model has no room for are left
            out, and the table says so.
        batches: rows at once.
        memory: prompts and rows whose memory is measured.
    """
    block = subject.spec.block_size
    left_out = [n for n in prompts if n + 2 * block > subject.spec.max_positions]
    prompts = [n for n in prompts if n not in left_out]
    note = f"left out, beyond the model's {subject.spec.max_positions} positions: {left_out}"
    notes = (note,) if left_out else ()
    return [
        _section(
            subject,
            "time of a new token against the prompt's length, batch 1",
            Axis("prompt tokens", prompts, ("1", "n")),
            [_token(subject, options, n, 1) for n in prompts],
            notes,
        ),
        _section(
            subject,
            f"time of a new token against the batch, prompts of {_PROMPT_OF_BATCHES}",
            Axis("rows", batches, ("1/n", "1")),
            [_token(subject, options, _PROMPT_OF_BATCHES, rows) for rows in batches],
            ("the time is that of a token of any row: a step of n rows by n",),
        ),
        _section(
            subject,
            "time of a prompt against its length, batch 1",
            Axis("prompt tokens", prompts, ("1", "n", "n²")),
            [_prompt(subject, options, n) for n in prompts],
            notes,
        ),
        _memory(subject, options, memory),
    ]


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        name: in words.
        at: its values.
        terms: what the fit is made of, names in :data:`TERMS`.
    """

    name: str
    at: Sequence[int]
    terms: Sequence[str]


def _token(subject: Subject, options: Options, prompt: int, rows: int) -> Line:
    """A block's steps, by its tokens."""
    block = subject.spec.block_size
    halves = block // SUB_BLOCK
    each = -(-SUB_BLOCK // options.tokens_per_step)
    # A COMMIT makes the forward of a REFRESH, and moves the prefix on: a REFRESH stands for it.
    steps = (refresh(subject),) * (halves + 1) + (denoise(subject),) * (halves * (each - 1))
    forwards = [extents(ask, prompt, block, rows) for ask in steps]
    lanes = [
        Lane("block", steps),
        Lane("floor", work=subject.floor.prepare_all(forwards), num_steps=len(steps)),
    ]
    scene = Scene(tokens(subject, prompt), (refresh(subject),), rows)
    done = measure(subject.model, decoding_of(subject), scene, lanes, options).seconds
    subject.floor.forget()
    share = len(steps) / (block * rows)
    label = f"prompt {prompt}, {rows} row{'s' if rows > 1 else ''}"
    spread = done["block"].times(share)
    return Line(label, spread, done["floor"].times(share), extra={"tokens/s": 1.0 / spread.median})


def _prompt(subject: Subject, options: Options, prompt: int) -> Line:
    """A PREFILL alone: a row of one new token ends at the look-ahead."""
    load = Load((GenerationRequest(tokens(subject, prompt), 1),), FixedUnmask(1))
    floor = subject.floor.prepare_all(forwards_of(subject, load).seen)
    clock = Clock(subject.model.device)
    done = interleave(
        clock, {"prefill": lambda: generate(subject, load), "floor": floor}, options.repeats
    )
    subject.floor.forget()
    rate = prompt / done["prefill"].median
    return Line(f"prompt {prompt}", done["prefill"], done["floor"], extra={"tokens/s": rate})


TERMS = {"1/n": -1, "1": 0, "n": 1, "n²": 2}
"""Terms of a fit, with the power of each."""


def fit(at: Sequence[float], seconds: Sequence[float], terms: Sequence[str]) -> list[float]:
    """The terms' coefficients, none below zero, by least squares of the relative error.

    Args:
        at: where it was measured.
        seconds: what was measured.
        terms: names in :data:`TERMS`.
    """
    x, y = np.asarray(at, dtype=float), np.asarray(seconds, dtype=float)
    columns = np.stack([x ** TERMS[name] for name in terms], axis=1)
    coefficients, _ = nnls(columns / y[:, None], np.ones_like(y))
    return [float(value) for value in coefficients]


def _section(
    subject: Subject,
    title: str,
    axis: Axis,
    lines: Sequence[Line],
    notes: tuple[str, ...],
) -> Section:
    at, terms = axis.at, axis.terms
    coefficients = fit(at, [line.measured.median for line in lines], terms)

    def fitted(x: float) -> float:
        pairs = zip(coefficients, terms, strict=True)
        return sum(c * x ** TERMS[name] for c, name in pairs)

    lines = [
        Line(
            line.label,
            line.measured,
            line.floor,
            extra={**line.extra, "fit ms": fitted(x) * 1e3},
        )
        for line, x in zip(lines, at, strict=True)
    ]
    formula = " + ".join(
        f"{c * 1e3:.3g}" + ("" if name == "1" else f" {name}")
        for c, name in zip(coefficients, terms, strict=True)
    )
    worst = max(
        abs(fitted(x) / line.measured.median - 1) for line, x in zip(lines, at, strict=True)
    )
    curve = Curve(
        axis.name,
        tuple(float(x) for x in at),
        {
            "measured": tuple(line.measured.median for line in lines),
            "floor": tuple(line.floor.median for line in lines),
            "fit": tuple(fitted(x) for x in at),
        },
    )
    told = f"fit: {formula} ms, n being {axis.name}; at most {worst:.1%} from what was measured"
    dtype = dtype_of(subject.model)
    notes = (told, *notes)
    return Section(TOPIC, subject.name, dtype, title, tuple(lines), notes=notes, curve=curve)


def _memory(subject: Subject, options: Options, cells: Sequence[tuple[int, int]]) -> Section:
    """Bytes held while decoding, by the bytes of the formula. Lines are of bytes, not seconds."""
    lines = []
    block, dtype = subject.spec.block_size, dtype_of(subject.model)
    for prompt, rows in cells:
        if prompt + 2 * block > subject.spec.max_positions:
            continue
        found = [
            measure_apart(subject.name, str(subject.model.device), dtype, prompt, rows)
            for _ in range(min(options.repeats, 3))
        ]
        lines.append(
            Line(
                f"prompt {prompt}, {rows} row{'s' if rows > 1 else ''}",
                Spread(tuple(float(one.held) for one in found)),
                Spread(tuple(float(one.formula) for one in found)),
                extra={
                    "weights MB": found[0].weights / 1e6,
                    "caches MB": found[0].caches / 1e6,
                    "loading MB": max(one.loading for one in found) / 1e6,
                },
            )
        )
    return Section(
        TOPIC,
        subject.name,
        dtype,
        "memory while decoding, above a process that has loaded no model",
        tuple(lines),
        notes=(
            (
                "formula: weights, and keys and values of every row to the length it needs; "
                "loading: the peak while the model was made"
            ),
        ),
        unit="MB",
    )
