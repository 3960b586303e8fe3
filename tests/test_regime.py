"""Where the embedded model stands: half of its steps may skip, and skipping costs it answers.

Beside it the model that its training began from, which is sure of itself and has nothing to skip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

import fdllm
from fdllm.core.subsets import subset_bounds
from fdllm.experiment.load import load_experiment
from fdllm.tiny.vocabulary import decode
from helpers import ROOT
from tiny_training.questions import TaskName, held_out


@dataclass(frozen=True)
class Regime:
    """What a model came to on some rows.

    Attributes:
        right: share of the rows.
        tokens_a_forward: of those that decode, REFRESH and DENOISE.
        may_skip: share of those that are DENOISE.
    """

    right: float
    tokens_a_forward: float
    may_skip: float


def regime(model: fdllm.Model, task: TaskName, num_rows: int, k: int = 1) -> Regime:
    """As ``00_baseline`` decodes with period ``k``."""
    study = load_experiment("00_baseline", ROOT)
    decoding = study.decoding(study.cells[0], 56)
    strategy = fdllm.PeriodicReuse(k, *subset_bounds("middle", model.n_layers))
    rows = held_out(task, "test")[:num_rows]
    outs = fdllm.generate(model, [row.prompt_ids for row in rows], decoding, strategy=strategy)
    totals = [re.search(r"#### (\d+)", decode(out.tokens)) for out in outs]
    right = [m is not None and m[1] == row.target for m, row in zip(totals, rows, strict=True)]
    refresh, denoise = (
        sum(out.counts[phase].forwards for out in outs) for phase in ("refresh", "denoise")
    )
    tokens = sum(len(out.tokens) for out in outs)
    decoded = refresh + denoise
    return Regime(sum(right) / len(rows), tokens / decoded, denoise / decoded)


@pytest.mark.slow
def test_the_embedded_model_is_unsure_and_reuse_costs_it_answers() -> None:
    model = fdllm.load_model("tiny", device="cpu", dtype="float32")
    whole, second, third = (regime(model, "sums", 300, k) for k in (1, 2, 3))
    assert 1.3 <= whole.tokens_a_forward <= 3.2
    assert whole.may_skip >= 0.5
    assert 0.75 <= whole.right <= 0.95
    assert whole.right - 0.10 <= second.right <= whole.right - 0.02
    assert third.right < second.right


def test_the_model_that_it_began_from_is_sure_of_itself(sure_model: fdllm.Model) -> None:
    found = regime(sure_model, "arithmetic", 24)
    assert found.right >= 0.95
    assert found.tokens_a_forward > 4
    assert found.may_skip < 0.3
