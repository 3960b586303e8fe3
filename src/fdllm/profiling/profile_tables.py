"""A profile in words and tables, for terminal, Markdown and page alike. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from fdllm.profiling.record import BINS, PhaseMap, Profile
from fdllm.profiling.redundancy import ComparedSet, LayerFigures
from fdllm.report.columns import Column, Table
from fdllm.report.figures import span
from fdllm.report.table import percent

PHASES = ("denoise", "refresh")
SHARES = [f"to {100 * (i + 1) // BINS} %" for i in range(BINS)]
"""Names of the shares of masked columns."""
MAPS: Mapping[str, str] = {
    "similarity": "Cosine of a layer's input and output: at 1 the layer only lengthens it.",
    "change": (
        "Relative change of a layer's residual (output minus input) since its columns were last "
        "computed: at 0 reusing it changes nothing."
    ),
}
"""What each figure of a map says."""


def settings(profile: Profile) -> str:
    """What was profiled."""
    limit = "" if profile.limit is None else f", limit {profile.limit}"
    preset = "" if profile.preset is None else f", preset {profile.preset}"
    return (
        f"{profile.num_documents} documents{limit}{preset}; model {profile.model}, "
        f"{profile.n_layers} layers, {profile.dtype} on {profile.device}; decoding of "
        f"{profile.experiment}: {profile.decoding}"
    )


def oracle_sentence(profile: Profile) -> str:
    """What skipping could save at all; empty where no oracle was asked."""
    found = profile.oracle
    if found is None:
        return ""
    return (
        f"An oracle spares {100 * found.layer_calls_saved / found.layer_calls_whole:.1f} % of the "
        f"layer calls ({100 * found.denoise_share:.0f} % of them in DENOISE) and leaves "
        f"{found.equal_texts} of {profile.num_documents} texts as they are."
    )


def layer_table(profile: Profile, figures: list[LayerFigures]) -> Table:
    """A row a layer."""
    columns = [
        Column("layer", [f"{one.layer}" + " chosen" * one.chosen for one in figures]),
        Column("similarity", [_figure(one.similarity) for one in figures]),
        Column("change", [_figure(one.change) for one in figures]),
        Column("accuracy alone", [percent(one.accuracy) for one in figures]),
        Column("same answers", [percent(one.same) for one in figures]),
    ]
    caption = (
        "Each layer, over all documents. Similarity and change: over DENOISE forwards. Alone: "
        f"this layer's residual is reused at k = {profile.k}, and no other."
    )
    if profile.oracle is not None:
        columns.append(Column("oracle skip", [percent(one.oracle_skip) for one in figures]))
        caption += " Oracle skip: share of the denoising steps in which the oracle spares it."
    return Table(columns, caption)


def tested_table(profile: Profile, rows: list[ComparedSet]) -> Table:
    """A row a set of layers."""
    plain = profile.testing.plain.values
    return Table(
        [
            Column("layers", [one.name for one in rows], is_words=True),
            Column("numbers", [span(one.layers) for one in rows], is_words=True),
            Column("right", [percent(one.accuracy) for one in rows]),
            Column(
                "than without reuse",
                [one.than_plain.difference.shown(100, "+.1f") for one in rows],
            ),
            Column(
                "chosen, than these",
                [
                    "" if one.than_chosen is None
                    else one.than_chosen.difference.shown(100, "+.1f")
                    for one in rows
                ],
            ),
            Column("verdict", [one.verdict for one in rows], is_words=True),
            Column("calls saved", [percent(one.saved) for one in rows]),
        ],
        f"Residual reuse at k = {profile.k} on the {len(plain)} documents that nothing was chosen "
        f"on; without reuse {percent(sum(plain) / len(plain))} are right. Differences are in "
        "points, with paired 95 % intervals.",
    )  # fmt: skip


def map_table(maps: Mapping[str, PhaseMap], name: str) -> Table:
    """A row a layer, a column a phase and share of masked columns."""
    columns = []
    for phase in PHASES:
        for i, share in enumerate(SHARES):
            values = [row[i] for row in getattr(maps[phase], name)]
            columns.append(Column(f"{phase.upper()} {share}", [_figure(v) for v in values]))
    layers = [str(i) for i in range(len(columns[0].texts))]
    return Table([Column("layer", layers), *columns], MAPS[name])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
