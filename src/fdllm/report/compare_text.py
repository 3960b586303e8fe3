"""Comparisons in words."""

from __future__ import annotations

from fdllm.report.agreement import stated
from fdllm.report.comparison import Comparison
from fdllm.report.speed import Speed

SMOKE_TEST = "SMOKE TEST"

_VERDICT = {
    "same-or-better": "is as accurate as",
    "worse": "is worse than",
    "cannot-tell": "cannot be told from",
}


def describe(comparison: Comparison) -> str:
    """The verdict, its figures, the speed, and what limits all of it; one paragraph."""
    sentences = [_verdict(comparison), _speed(comparison), _reach(comparison), *comparison.notes]
    text = " ".join(_sentence(part) for part in sentences if part)
    return f"{smoke_mark(comparison.limit)}{text}"


def smoke_mark(limit: int | None) -> str:
    """What stands ahead of everything that a limit has cut."""
    if limit is None:
        return ""
    return f"{SMOKE_TEST} (limit {limit}, says nothing about accuracy or speed): "


def points(value: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * value:+.1f} points"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _verdict(c: Comparison) -> str:
    change = c.difference
    figures = (
        f"{100 * c.value_b:.1f} % against {100 * c.value_a:.1f} % on {c.n} documents, "
        f"{points(change.value)} [{100 * change.low:+.1f}, {100 * change.high:+.1f}] "
        f"({c.interval}; {c.test}, {_p_value(c)}{_flips(c)})"
    )
    verb = _VERDICT[c.verdict]
    if c.verdict == "same-or-better" and change.low > 0 and c.p_holm < 0.05:  # noqa: PLR2004 - as decided
        verb = "is better than"
    if c.same_computation and c.identical:
        agrees = f"every output agrees{stated(c.tolerance)}"
        return f"{c.b} is one computation with {c.a}, and {agrees}: {figures}"
    excluded = ""
    if c.verdict == "same-or-better" and verb != "is better than":
        excluded = f"; a loss of more than {100 * c.margin:g} points is excluded"
    if c.verdict == "cannot-tell":
        excluded = f"; a loss of more than {100 * c.margin:g} points is neither shown nor excluded"
    return f"{c.b} {verb} {c.a} in accuracy: {figures}{excluded}"


def _p_value(c: Comparison) -> str:
    text = f"p {_small(c.p_value)}"
    return text if c.p_holm == c.p_value else f"{text}, by Holm {_small(c.p_holm)}"


def _small(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"= {p_value:.4f}"  # noqa: PLR2004 - digits shown


def _flips(c: Comparison) -> str:
    if not (c.losses or c.gains):
        return ""
    return f"; {len(c.losses)} right to wrong, {len(c.gains)} wrong to right"


def _speed(c: Comparison) -> str:
    if c.speed is None:
        return f"Speed is not compared: {c.speed_refused}"
    ratio = c.speed.ratio
    took = (
        f"{ratio.value:.2f}x the speed [{ratio.low:.2f}, {ratio.high:.2f}], by time on the same "
        "documents"
    )
    if c.collapsed:
        return (
            f"It has collapsed ({', '.join(c.collapsed)}), so its speed says nothing "
            f"(measured: {took})"
        )
    price = f", at the price of {points(c.difference.value)}" if c.verdict == "worse" else ""
    if c.speed.claim == "faster":
        return f"It is faster{price}: {took}{_floor(c.speed)}{_longer(c.speed)}"
    if c.speed.claim == "slower":
        return f"It is slower: {took}{_floor(c.speed)}{_longer(c.speed)}"
    return f"No difference in speed is claimed: {took}{_floor(c.speed)}{_longer(c.speed)}"


def _floor(speed: Speed) -> str:
    if speed.floor is None:
        return "; there are no A/A cells beside it, so the noise of the machine is unknown"
    floor = speed.floor
    return f"; noise floor {floor.floor:.1%} (A/A spread {floor.spread:.1%})"


def _longer(speed: Speed) -> str:
    """Says so where tokens/s and time disagree: answers have grown or shrunk."""
    if (speed.tokens_per_second - 1) * (speed.ratio.value - 1) >= 0:
        return ""
    grown = "grew" if speed.tokens > 1 else "shrank"
    return (
        f"; its tokens/s are {speed.tokens_per_second:.2f}x, but its answers {grown} to "
        f"{speed.tokens:.2f}x the tokens"
    )


def _reach(c: Comparison) -> str:
    if c.same_computation and c.identical:
        return ""
    if c.smallest_detectable >= 1:
        return "No difference could have been shown with so few documents"
    return (
        f"The smallest difference these documents could have shown with 80 % power is "
        f"{100 * c.smallest_detectable:.1f} points"
    )
