"""A record that used an estimator where it is invalid says so wherever it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fdllm.record.summary import Summary
from fdllm.report.records import load_records
from made_up import baseline_grid, write_grid


@pytest.mark.parametrize("scoring", ["denoise", "first-token, allowed where invalid"])
def test_the_estimators_name_carries_the_leave(tmp_path: Path, scoring: str) -> None:
    write_grid(tmp_path, baseline_grid(), task="mmlu")
    [first, *_] = load_records(tmp_path, "00_baseline")
    data = first.summary.model_dump(mode="json")
    data["estimator"] = scoring.partition(",")[0]
    data["fingerprint"]["fields"]["scoring"] = scoring
    assert Summary(**data).estimator_words == scoring
    assert Summary(**(data | {"estimator": None})).estimator_words is None
