"""A record beside a published figure, and the refusal where their protocols differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fdllm.core.config import Decoding
from fdllm.presets import Preset
from fdllm.record.identity import Fingerprint
from fdllm.record.summary import Summary
from fdllm.report.compare_text import Verdict
from fdllm.report.records import NotComparableError
from fdllm.report.stats import Estimate, wilson
from fdllm.runs import Evaluating


@dataclass(frozen=True, kw_only=True)
class AgainstPublished(Estimate):
    """One record's accuracy against the figure that was published for its protocol."""

    task: str
    config: str  # the record's cell
    preset: str  # the protocol both follow
    num_samples: int  # documents of the record
    published: float  # the published accuracy, in [0, 1]; it has no interval
    # ``worse`` where the whole interval lies below the published figure, ``same-or-better`` where a
    # loss of more than the margin is excluded
    verdict: Verdict
    exceptions: tuple[str, ...]  # where the protocols differ all the same

    @property
    def sentence(self) -> str:
        """All of it in words."""
        return (
            f"{self.task} / {self.config}: {self.shown(100, '.1f', ' %')} of {self.num_samples} "
            f"rows, published {100 * self.published:.1f} % under the same protocol (preset "
            f"{self.preset})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"difference": self.value - self.published}


def compare_published(summary: Summary, preset: Preset, margin: float) -> AgainstPublished:
    """Set a record beside the figure that was published for its protocol; ``margin`` in [0, 1].

    Raises:
        NotComparableError: it was measured in another way; the message names each difference.
    """
    figures = preset.figures
    if figures is None or summary.task not in figures.percent:
        known = "none" if figures is None else ", ".join(figures.percent)
        raise NotComparableError(
            f"no figure of {summary.task} is published for preset '{preset.name}'; there are "
            f"figures of {known}: name one with --task"
        )
    differing = differences(summary, preset, figures.model)
    if differing:
        raise NotComparableError(
            f"{summary.task} / {summary.config} must not stand beside a figure published for "
            f"preset '{preset.name}': {'; '.join(differing)}. A record that may is made by: "
            f"fdllm sweep --preset {preset.name} --config k1_first --task {summary.task}"
        )
    interval = wilson(summary.headline)
    if interval is None:
        raise NotComparableError(
            f"{summary.task} / {summary.config}: '{summary.headline.metric}' is not right or wrong "
            "for each document, so it has no interval to hold a published figure against"
        )
    published = figures.percent[summary.task] / 100
    verdict: Verdict = "cannot-tell"
    if interval.high < published:
        verdict = "worse"
    elif interval.low > published - margin:
        verdict = "same-or-better"
    return AgainstPublished(
        **vars(interval),
        task=summary.task,
        config=summary.config,
        preset=preset.name,
        num_samples=summary.headline.num_samples,
        published=published,
        verdict=verdict,
        exceptions=preset.exceptions,
    )


def differences(summary: Summary, preset: Preset, model: str) -> list[str]:
    """What keeps a record from standing beside the published figure; empty where nothing does."""
    found = []
    if summary.limit is not None:
        found.append(f"limit {summary.limit} -> all rows")
    if summary.model != model:
        found.append(f"model: {summary.model} -> {model}")
    if summary.strategy.reuses:
        found.append("it reuses layers, which the published model does not")
    sessions = summary.provenance.get("sessions", [])
    others = sorted({str(one.get("dtype")) for one in sessions} - {preset.dtype})
    found += [f"dtype: {dtype} -> {preset.dtype}" for dtype in others]
    asked = Evaluating.read(preset.evaluation_of(summary.task), preset.name)
    wanted = asked.identity() | {
        "preset": preset.name,
        "decoding": Decoding.read(preset.decoding_of(summary.task), preset.name).words,
        "scoring": asked.scoring if summary.kind == "loglikelihood" else "none",
    }
    fields = summary.fingerprint.fields
    recorded = {name: fields.get(name) or "unknown" for name in wanted}
    return found + Fingerprint(fields=dict(wanted)).differences(Fingerprint(fields=dict(recorded)))
