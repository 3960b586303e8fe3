"""``scripts/damage.py``: what it damages, and that whoever reads it says so in a line."""

from __future__ import annotations

import json
import lzma
import random
import subprocess
import sys
from pathlib import Path

import pytest

import faults
from helpers import ROOT


def _tree(root: Path) -> None:
    cell = root / "results" / "00_baseline" / "tiny_choice" / "k1_first"
    cell.mkdir(parents=True)
    (cell / "summary.json").write_text(json.dumps({"a": [1, 2], "b": {"c": "text", "d": 0.5}}))
    (cell / "samples.jsonl").write_text('{"doc_id": 0, "tokens": [1]}\n{"doc_id": 1}\n')
    (cell / "columns.json.xz").write_bytes(lzma.compress(b'{"tokens": [1, 2]}'))


def _seen(root: Path) -> dict[str, object]:
    """What stands where: a file's content, or what kind of thing is there."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else path.lstat().st_mode
        for path in root.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


def test_one_thing_is_damaged_and_the_same_for_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "bomb", lambda: b"half a gigabyte takes long to pack")
    _tree(tmp_path / "whole")
    whole, said = _seen(tmp_path / "whole"), set()
    for seed in range(40):
        told = []
        for root in (tmp_path / f"{seed}", tmp_path / f"{seed} again"):
            _tree(root)
            path, what = faults.damage(root, random.Random(seed))
            told.append((path.relative_to(root), what, _seen(root)))
        assert told[0] == told[1]
        said.add(told[0][1])
        changed = {
            name for name in {**whole, **told[0][2]} if whole.get(name) != told[0][2].get(name)
        }
        place = told[0][0].as_posix()
        assert all(name == place or name.startswith(f"{place}/") for name in changed)
    assert len(said) > 20


@pytest.mark.slow
def test_whatever_is_damaged_is_named_in_a_line(tmp_path: Path) -> None:
    """Records of the embedded model, a dozen faults, every command that reads them."""
    command = [sys.executable, str(ROOT / "scripts" / "damage.py"), str(tmp_path / "root")]
    done = subprocess.run(
        [*command, "--number", "12", "--seed", "500"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "12 damaged: 0 unexpected, 0 hangs, 0 lies, " in done.stdout
