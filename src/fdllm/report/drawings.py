"""From a table's figures to its drawings."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from fdllm.record.measure import made
from fdllm.report.build import TablePage
from fdllm.report.charts import Bar, BarChart
from fdllm.report.measured import Measured
from fdllm.report.scatter import Point, Scatter, frontier
from fdllm.runs import CONFIG_NAME

PHASES = ("prefill", "refresh", "denoise", "commit")
_SUBSETS = ("first", "middle", "last")
_SHAPES = {1: "circle", 2: "square", 3: "triangle"}
_PERCENT = 100.0


def frontier_names(table: TablePage) -> list[str]:
    """Configs, and thresholds beside them, that nothing beats in both speed and accuracy."""
    every = [*table.cells, *table.alternative.cells]
    return [point.name for point in frontier([_point(cell, "circle", "") for cell in every])]


def draw_scatter(table: TablePage, width: float, height: float, suffix: str) -> Markup:
    """Accuracy against speed, at one width."""
    points = [_point(cell, *_look(cell)) for cell in table.cells]
    curve = [_point(cell, "cross", "s4") for cell in table.alternative.cells]
    best = ", ".join(frontier_names(table))
    listed = "; ".join(f"{p.name} {p.y:.1f} % at {p.x:.1f} {table.unit}" for p in [*points, *curve])
    title = "Accuracy against speed, with 95 % intervals"
    return Scatter(
        f"{table.key}-scatter-{suffix}",
        title,
        points,
        curve,
        f"{table.unit} (model time)",
        f"{listed}. On the frontier: {best}.",
        width,
        height,
    ).render()


def _look(cell: Measured) -> tuple[str, str]:
    """Shape by period, colour by subset; what reuses nothing is plain."""
    if not cell.reuses:
        return "circle", "s0"
    kind = f"s{_SUBSETS.index(cell.subset) + 1}" if CONFIG_NAME.match(cell.name) else "s1"
    return _SHAPES.get(cell.k, "diamond"), kind


def _point(cell: Measured, shape: str, kind: str) -> Point:
    return Point(
        cell.name,
        cell.speed,
        _PERCENT * cell.accuracy,
        None if cell.interval is None else _PERCENT * cell.interval.low,
        None if cell.interval is None else _PERCENT * cell.interval.high,
        shape,
        kind,
    )


def draw_speedups(table: TablePage) -> Markup | None:
    """Ideal, possible and measured speed-up of each config that reuses."""
    bars, words = [], []
    for cell in table.cells:
        against = table.against.get(cell.name)
        if not cell.reuses or against is None or against.speed is None:
            continue
        ratio = against.speed.ratio
        marks = [(cell.possible, "square", "possible"), (ratio.value, "circle", "measured")]
        text = f"{cell.name}: possible {cell.possible:.2f}, measured {ratio.value:.2f}"
        if cell.ideal is not None:
            marks.insert(0, (cell.ideal, "diamond", "ideal"))
            text += f", ideal {cell.ideal:.2f}"
        words.append(text)
        bars.append(Bar(cell.name, (), f"{ratio.value:.2f}", marks, (ratio.low, ratio.high)))
    if not bars:
        return None
    noise = None if table.floor is None else table.floor.floor
    lows = [mark[0] for bar in bars for mark in bar.marks]
    lows += [bar.interval[0] for bar in bars if bar.interval]
    return BarChart(
        f"{table.key}-speedup",
        "Ideal, possible and measured speed-up",
        bars,
        f"model time of {table.baseline} by that of the config",
        "; ".join(words) + ".",
        start=max(min(*lows, 1.0) - 0.08, 0.0),
        reference=1.0,
        legend=(
            ("ideal", "diamond", "ideal"),
            ("possible", "square", "possible"),
            ("measured", "circle", "measured, 95 %"),
            *((("band", "", "noise floor"),) if noise else ()),
        ),
        band=(1 / (1 + noise), 1 + noise) if noise else None,
    ).render()


def draw_calls(table: TablePage) -> Markup:
    """Layer calls by phase, for each token of the output."""
    bars, words = [], []
    for cell in table.cells:
        tokens = max(cell.tokens, 1)
        parts = [(made(cell.calls.get(p, {})) / tokens, p) for p in PHASES]
        reused = sum(_saved(count) for count in cell.calls.values()) / tokens
        said = ", ".join(f"{kind} {value:.2f}" for value, kind in parts)
        words.append(f"{cell.name}: {said}, reused {reused:.2f}")
        total = sum(value for value, _ in parts)
        bars.append(Bar(cell.name, [*parts, (reused, "reused")], f"{total:.1f}"))
    what = "generated" if table.kind == "generate" else "scored"
    return BarChart(
        f"{table.key}-calls",
        f"Layer calls by phase, for each {what} token",
        bars,
        f"layer calls a {what} token",
        "; ".join(words) + ".",
        legend=(*((phase, "", phase) for phase in PHASES), ("reused", "", "reused")),
    ).render()


def _saved(count: Mapping[str, float]) -> float:
    return count.get("reused", 0) + count.get("trimmed", 0)


def draw_lengths(table: TablePage) -> Markup | None:
    """How long the answers are."""
    bars, words = [], []
    for cell in table.cells:
        if (found := cell.lengths) is None:
            continue
        box = [(found.p25, "blank"), (found.p75 - found.p25, "box")]
        bars.append(
            Bar(
                cell.name,
                box,
                f"{found.mean:.0f}",
                ((found.p50, "circle", "measured"),),
                (found.p5, found.p95),
            )
        )
        words.append(
            f"{cell.name}: median {found.p50:.0f}, 5 to 95 %: {found.p5:.0f}-{found.p95:.0f}"
        )
    if not bars:
        return None
    return BarChart(
        f"{table.key}-lengths",
        "Length of the answers",
        bars,
        "tokens an answer; the figure is the mean",
        "; ".join(words) + ".",
        legend=(
            ("measured", "circle", "median"),
            ("box", "", "middle half"),
            ("rule", "", "5 % to 95 %"),
        ),
    ).render()
