"""What terminal and page say in the same words."""

from __future__ import annotations

from fdllm.plain import one_line
from fdllm.trace.steps import ForwardTrace, RowTrace, Trace, layer_names

_SHOWN = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", " ": "\u2423", "": "\u2205"}
PHASES = ("prefill", "refresh", "denoise", "commit")


def visible(piece: str) -> str:
    """A token's text with its white space to be seen."""
    if piece in _SHOWN:
        return _SHOWN[piece]
    for space in "\n\t\r":
        piece = piece.replace(space, _SHOWN[space])
    return one_line(piece)


def span(forward: ForwardTrace) -> str:
    """Columns that were fed, as people write them."""
    first, stop = forward.columns
    return f"{first}-{stop - 1}" if stop - first > 1 else f"{first}"


def confidence(forward: ForwardTrace) -> str:
    """Confidence of what was unmasked: one number, or the lowest and the highest."""
    values = [guess.confidence for guess in forward.taken]
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}-{high:.2f}"


def staleness(forward: ForwardTrace) -> str:
    """Mean and largest relative distance of the reused values; empty where none were."""
    distances = [d for one in forward.stale for d in one.distances]
    if not distances:
        return ""
    return f"{sum(distances) / len(distances):.3f} (to {max(distances):.3f})"


_VERBS = (("computed", "c"), ("reused", "r"), ("left out", "o"), ("in part", "p"))


def layer_calls(forward: ForwardTrace) -> str:
    """What became of the layers, in words."""
    parts = [
        f"{verb} {names}"
        for verb, letter in _VERBS
        if (names := layer_names(forward.layers, letter))
    ]
    return "; ".join(parts)


def taken(forward: ForwardTrace, pieces: dict[int, str]) -> str:
    """What was unmasked, column by column."""
    return ", ".join(
        f"{'next block' if g.column >= max(len(forward.before), 1) else g.column}: "
        f"{visible(pieces[g.token])} {g.confidence:.2f}"
        for g in forward.taken
    )


def settings(trace: Trace) -> str:
    """How the document was decoded."""
    decoding = trace.decoding
    return (
        f"model {trace.run.model.name}, {trace.n_layers} layers; blocks of {decoding.block_size}, "
        f"sub-blocks of {decoding.small_block_size}, threshold {decoding.threshold:g}; "
        f"{trace.strategy}"
    )


def outcome(row: RowTrace) -> str:
    """How a row ended."""
    if row.loglikelihood is not None:
        each = "every token" if row.is_greedy else "not every token"
        return f"log-likelihood {row.loglikelihood:.4f}, {each} the most probable one"
    ends = {
        "stop": "ended by its stop token",
        "length": "cut at its token limit",
        "until": "ended by an until string",
    }
    return f"{len(row.tokens)} tokens, {ends.get(row.finish or '', 'ended')}"


def totals(row: RowTrace) -> str:
    """Forwards by phase, and layer calls, as the run's counters have them."""
    forwards = [f"{row.counts[p]['forwards']} {p}" for p in PHASES if row.counts[p]["forwards"]]
    computed = sum(count["computed"] for count in row.counts.values())
    reused = sum(count["reused"] for count in row.counts.values())
    trimmed = sum(count["trimmed"] for count in row.counts.values())
    share = reused / max(computed + reused, 1)
    part = f", {trimmed:.1f} more inside layers computed in part" if trimmed else ""
    return (
        f"{sum(c['forwards'] for c in row.counts.values())} forwards ({', '.join(forwards)}); "
        f"layer calls: {computed} computed, {reused} reused ({share:.0%}){part}"
    )


def answers(trace: Trace) -> str:
    """The task's figures for this document, and what it expected."""
    figures = ", ".join(f"{name} = {value}" for name, value in trace.metrics.items())
    return f"{figures}; expected {visible(trace.expected)}"
