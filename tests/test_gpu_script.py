"""``benchmarks/gpu.py``: each part by itself, and whatever happens a file that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gpu
from fdllm_bench.memory import apart

QUICK = ["--quick", "--device", "cpu"]


def child(code: str) -> list[str]:
    """A part's process."""
    return ["-c", f"import sys, time; {code}"]


def test_a_part_s_figures() -> None:
    done = apart(child("print('some words'); print([1])"), 30)
    assert done["result"] == [1]
    assert done.keys() == {"seconds", "peak", "result"}


@pytest.mark.parametrize(
    ("code", "budget_s", "error"),
    [
        ("sys.exit('the device is gone')", 30, "the device is gone"),
        ("sys.exit(7)", 30, "exit code 7"),
        ("time.sleep(60)", 0.3, "not done within its 0 s"),
        ("pass", 30, "wrote no JSON: "),
        ("print('{')", 30, "wrote no JSON: {"),
    ],
)
def test_a_part_that_fails_is_an_error(code: str, budget_s: float, error: str) -> None:
    done = apart(child(code), budget_s)
    assert done["error"].startswith(error)
    assert "result" not in done


def test_the_rest_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And what there is stands in the file after every part."""
    out, seen = tmp_path / "gpu.json", []

    def apart(command: list[str], budget_s: float) -> dict[str, Any]:
        seen.append((command[command.index("--inside") + 1], out.exists()))
        assert budget_s == gpu.PARTS[seen[-1][0]].budget_s
        more: dict[str, Any] = (
            {"error": "no"} if seen[-1][0] == "step" else {"result": {"sections": []}}
        )
        return {"seconds": 1.0, **more}

    monkeypatch.setattr(gpu, "apart", apart)
    assert gpu.main([*QUICK, "--out", str(out)]) == 1
    assert seen == [(name, i > 0) for i, name in enumerate(gpu.PARTS)]
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert [name for name, part in parts.items() if "error" in part] == ["step"]
    assert "step: no (1 s)" in capsys.readouterr().out


def test_a_selftest_that_fails_is_told() -> None:
    assert gpu.said({"result": {"verdict": "failed: tiny"}}) == "failed: tiny"
    assert gpu.said({"result": {"verdict": "passed"}}) in gpu.GOOD
    assert gpu.said({"result": {}}) in gpu.GOOD


def test_it_fits_into_ten_minutes() -> None:
    assert sum(part.budget_s for part in gpu.PARTS.values()) < 600


def test_without_a_gpu_it_says_so_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert "asks for a GPU and torch sees none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_part_in_its_own_process(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main([*QUICK, "--part", "step compiled", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["machine"]["device"] == "cpu"
    result = found["parts"]["step compiled"]["result"]
    lines = [line for section in result["sections"] for line in section["lines"]]
    assert lines
    assert all(line["floor"]["median"] > 0 for line in lines)


@pytest.mark.slow
def test_a_rehearsal_of_everything(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main([*QUICK, "--out", str(out)]) == 0
    parts = json.loads(out.read_text())["parts"]
    assert not [name for name, part in parts.items() if "error" in part]
    told = json.dumps(parts["reuse"])
    assert all(
        f"{subset} {target}, k={k}" in told
        for subset in ("first", "middle", "last")
        for target in ("output", "residual")
        for k in (2, 3)
    )
    assert "2 rows" in json.dumps(parts["batch"])
