"""How time grows with the prompt and the batch, and what memory a batch takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np
from scipy.optimize import nnls

from fdllm.selftest.subjects import SUB_BLOCK
from fdllm.timing.forwards import Scene, time_forwards
from fdllm.timing.interleave import Lane, Rounds, interleave
from fdllm_bench.command import BenchCommand
from fdllm_bench.loads import forwards_of, generate, load_of, rounds_of
from fdllm_bench.memory import measure_apart
from fdllm_bench.models import BenchModel
from fdllm_bench.tables import Line, Section, section, times

PROMPTS = (64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8)
MEMORY = ((64, 1), (1024, 1), (1024, 8))
TERMS = {"1/n": -1, "1": 0, "n": 1, "n²": 2}
"""Terms of a fit, with the power of each."""
_PROMPT_OF_BATCHES = 256


def bench_growth(
    bench: BenchModel,
    options: BenchCommand,
    prompts: Sequence[int] = PROMPTS,
    batches: Sequence[int] = BATCHES,
    memory: Sequence[tuple[int, int]] = MEMORY,
) -> list[Section]:
    """Time of a new token, time of the prompt, memory.

    Prompts are whole blocks; those that the model has no room for are left out, which is said.
    """
    most = bench.model.spec.max_positions - 2 * bench.block
    fit_in = [n for n in prompts if n <= most]
    left_out = [n for n in prompts if n > most]
    note = [f"left out, no room for 2 more blocks: {left_out}"] if left_out else []
    sections = [
        _fitted(
            bench,
            "time of a new token against the prompt's length, batch 1",
            {n: _token(bench, options, n, 1) for n in fit_in},
            ("1", "n"),
            *note,
        ),
        _fitted(
            bench,
            f"time of a new token against the batch, prompts of {_PROMPT_OF_BATCHES}",
            {rows: _token(bench, options, _PROMPT_OF_BATCHES, rows) for rows in batches},
            ("1/n", "1"),
            "the time is that of a token of any row: a step of n rows by n",
        ),
        _fitted(
            bench,
            "time of a prompt against its length, batch 1",
            {n: _prompt(bench, options, n) for n in fit_in},
            ("1", "n", "n²"),
            *note,
        ),
    ]
    lines = [_memory(bench, options, n, rows) for n, rows in memory if n <= most]
    told = "formula: weights, and keys and values of every row to the length it needs"
    title = "memory of making a model and decoding, above a process without one"
    held = replace(section(bench, "growth", title, lines, told), unit="B")
    return [*sections, held] if lines else sections


def _token(bench: BenchModel, options: BenchCommand, prompt: int, rows: int) -> Line:
    """A block's steps, by its tokens."""
    halves = bench.block // SUB_BLOCK
    each = -(-SUB_BLOCK // options.tokens_per_step)
    # A COMMIT makes the forward of a REFRESH, and moves the prefix on: a REFRESH stands for it.
    steps = (bench.refresh(),) * (halves + 1) + (bench.denoise(),) * (halves * (each - 1))
    floor = bench.floor.prepare_all(bench.shape_of(step, prompt, rows) for step in steps)
    lanes = [Lane("block", steps), Lane("floor", work=floor, num_steps=len(steps))]
    scene = Scene(bench.tokens(prompt), (bench.refresh(),), rows)
    done = time_forwards(bench.model, bench.decoding, scene, lanes, rounds_of(options)).seconds
    share = len(steps) / (bench.block * rows)
    token = times(done["block"], share)
    label = f"prompt {prompt}, {rows} row{'s' if rows > 1 else ''}"
    rate = {"tokens/s": tuple(1.0 / value for value in token)}
    return Line(label, token, times(done["floor"], share), extra=rate)


def _prompt(bench: BenchModel, options: BenchCommand, prompt: int) -> Line:
    """A PREFILL alone: a row of one new token ends at the look-ahead."""
    load = load_of(bench, prompt, 1, 1)
    works = {
        "prefill": lambda: generate(bench, load),
        "floor": bench.floor.prepare_all(forwards_of(bench, load).shapes),
    }
    done = interleave(works, bench.model.device, Rounds(options.repeats))
    rate = {"tokens/s": tuple(prompt / value for value in done["prefill"])}
    return Line(f"prompt {prompt}", done["prefill"], done["floor"], extra=rate)


def fit(at: Sequence[float], seconds: Sequence[float], terms: Sequence[str]) -> list[float]:
    """The terms' coefficients, none below zero, by least squares of the relative error."""
    x, y = np.asarray(at, dtype=float), np.asarray(seconds, dtype=float)
    columns = np.stack([x ** TERMS[name] for name in terms], axis=1)
    coefficients, _ = nnls(columns / y[:, None], np.ones_like(y))
    return [float(value) for value in coefficients]


def _fitted(
    bench: BenchModel, title: str, lines: dict[int, Line], terms: Sequence[str], *notes: str
) -> Section:
    """A table with what the terms give beside each line."""
    measured = {x: median(line.measured) for x, line in lines.items()}
    found = dict(zip(terms, fit(list(measured), list(measured.values()), terms), strict=True))
    fitted = {x: sum(c * float(x) ** TERMS[name] for name, c in found.items()) for x in lines}
    told = [
        replace(line, extra={**line.extra, "fit ms": fitted[x] * 1e3}) for x, line in lines.items()
    ]
    formula = " + ".join(
        f"{c * 1e3:.3g}" + ("" if name == "1" else f" {name}") for name, c in found.items()
    )
    worst = max(abs(fitted[x] / measured[x] - 1) for x in lines)
    told_fit = f"fit: {formula} ms; at most {worst:.1%} from what was measured"
    return section(bench, "growth", title, told, told_fit, *notes)


def _memory(bench: BenchModel, options: BenchCommand, prompt: int, rows: int) -> Line:
    """Bytes held while decoding, by the bytes of the formula."""
    device = str(bench.model.device)
    found = [
        measure_apart(bench.name, device, bench.dtype, prompt, rows)
        for _ in range(min(options.repeats, 3))
    ]
    return Line(
        f"prompt {prompt}, {rows} row{'s' if rows > 1 else ''}",
        tuple(float(one.held) for one in found),
        tuple(float(one.weights + one.caches) for one in found),
        extra={
            "weights MB": found[0].weights / 1e6,
            "caches MB": found[0].caches / 1e6,
        },
    )
