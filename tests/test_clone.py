"""What git has is whole: a clone of this commit computes everything that it publishes anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fdllm.record.paths import COLUMNS
from helpers import ROOT

EXPERIMENTS = sorted(path.parent.name for path in ROOT.glob("experiments/[!_]*/results.md"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of HEAD: what is not committed counts for nothing."""
    folder = tmp_path_factory.mktemp("clone") / "fdllm"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


@pytest.mark.slow
def test_a_clone_computes_everything_published_anew(clone: Path) -> None:
    command = [sys.executable, "-m", "fdllm.cli", "report", "--all", "--check", "--json"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("FDLLM_")}
    done = subprocess.run(
        command,
        cwd=clone,
        env=plain | {"PYTHONPATH": str(clone / "src"), "FDLLM_ROOT": str(clone)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    published = [*clone.glob("artifacts/*/*/*/summary.json")]
    assert found["num_records"] == len(published) > 0
    assert not found["differences"]
    # Pages lie where the runs were; everything else is compared.
    pages = ("report.html is not there", "index.html is not there")
    assert [note for note in found["notes"] if not any(page in note for page in pages)] == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_committed_records_have_columns_and_a_clean_commit(experiment: str) -> None:
    """Small enough to lie in git for good, and computed by source that everybody can fetch."""
    summaries = sorted((ROOT / "artifacts" / experiment).glob("*/*/summary.json"))
    assert summaries
    for summary in summaries:
        columns = summary.with_name(COLUMNS)
        assert columns.is_file(), f"{columns} is not there: sweep again"
        assert columns.stat().st_size < 60_000
        sessions = json.loads(summary.read_text(encoding="utf-8"))["provenance"]["sessions"]
        assert sessions
        assert not any(session["git"]["dirty"] for session in sessions), summary
