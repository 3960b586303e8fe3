"""``fdllm bench`` as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fdllm.cli import bench, main
from fdllm.errors import FdllmError
from fdllm.record import identity
from fdllm_bench.command import SHAPE_NAMES, BenchCommand, busy_words
from fdllm_bench.command import TOPICS as TOPIC_NAMES
from fdllm_bench.growth import bench_growth
from fdllm_bench.memory import measure_apart
from fdllm_bench.models import SHAPES, make_model
from fdllm_bench.run import TOPICS
from helpers import ROOT

QUICK = ["--repeats", "2", "--new-tokens", "8", "--prompt-blocks", "1", "--stretch-ms", "1"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stp"], "unknown topic 'stp' (did you mean 'step'?); choose from step, reuse, batch"),
        (["--shape", "28x51"], "unknown shape '28x51' (did you mean '28x512'?); choose from tiny"),
        (["--shape", "tiny", "reuse"], "topics come first: fdllm bench reuse --shape tiny"),
        (["--device", "tpu"], "unknown device 'tpu'; use cpu, cuda or cuda:N"),
        (["--profile", "/nowhere/at/all.json"], "that exists; got '/nowhere/at/all.json'"),
        (["--profile", "/"], "--profile names a file in a folder that exists; got '/'"),
    ],
)
def test_mistakes(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""


@pytest.mark.parametrize("name", ["--repeats", "--threads"])
def test_amounts_are_whole_numbers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", name, "0"])
    assert f"{name}: must be a whole number, 1 or more; got '0'" in capsys.readouterr().err


def test_mistakes_are_found_before_torch_is_loaded() -> None:
    code = (
        "import sys; from fdllm.cli import main; code = main(['bench', 'stp']); "
        "sys.exit(code if 'torch' not in sys.modules else 9)"
    )
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert done.returncode == 2


def test_a_busy_machine_is_told() -> None:
    assert busy_words(0.4, 2) is None
    told = busy_words(12.0, 2)
    assert told is not None
    assert "load 12.0 on 2 cores" in told


def test_a_laptop_does_not_start_the_large_shapes_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made: list[str] = []

    def refuse(name: str, *_: object) -> None:
        made.append(name)
        raise FdllmError("no room")

    monkeypatch.setattr("fdllm_bench.run.make_model", refuse)
    assert main(["bench", "reuse", "batch", "--shape", "28x1024", "7B"]) == 2
    err = capsys.readouterr().err
    assert "7B has 7.6 billion parameters and this machine no GPU: 19 hours on a CPU" in err
    assert "try --shape 28x1024" in err
    assert made == []
    assert main(["bench", "step", "--shape", "7B"]) == 1  # minutes
    assert main(["bench", "batch", "--shape", "7B", "--device", "cpu"]) == 1
    assert made == ["7B", "7B"]


def test_names_agree() -> None:
    assert tuple(SHAPES) == SHAPE_NAMES
    assert list(TOPICS) == list(TOPIC_NAMES)


def test_without_a_checkout_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "BENCHMARKS", tmp_path)
    assert main(["bench", "step", "--shape", "tiny"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("fdllm bench: it works from a checkout, which this installation is not")
    assert "pip install --editable ." in told
    assert told.count("\n") == 1


def test_timing_is_no_part_of_a_run() -> None:
    assert not [path for path in identity.source_hashes() if "/timing/" in path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One small bench with everything it can write."""
    folder = tmp_path_factory.mktemp("bench")
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [
        *(sys.executable, "-m", "fdllm.cli", "bench", "step", "--shape", "tiny", *QUICK, "--json"),
        *("--device", "cpu"),
        *("--profile", str(folder / "trace.json")),
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        "json": json.loads(done.stdout),
        "trace": json.loads((folder / "trace.json").read_text(encoding="utf-8")),
    }


@pytest.mark.slow
def test_json_has_a_floor_and_a_spread_for_every_figure(made: dict[str, Any]) -> None:
    data = made["json"]
    assert data["schema"] == 1
    assert data["machine"]["repeats"] == 2
    assert {"device", "threads", "torch", "load"} <= set(data["machine"])
    assert [section["topic"] for section in data["sections"]] == ["step", "step"]
    for section in data["sections"]:
        assert (section["shape"], section["dtype"], section["unit"]) == ("tiny", "float32", "s")
        for line in section["lines"]:
            for name in ("measured", "floor", "over_floor"):
                spread = line[name]
                assert len(spread["values"]) == 2
                assert spread["low"] <= spread["median"] <= spread["high"]


@pytest.mark.slow
def test_a_profile_has_every_phase(made: dict[str, Any]) -> None:
    profiles = made["json"]["profiles"]
    assert [one["phase"] for one in profiles] == ["PREFILL", "REFRESH", "DENOISE", "COMMIT"]
    for one in profiles:
        names = [operator["name"] for operator in one["operators"]]
        assert "outside of operators" in names
        attention = {"kernels::attend", "aten::_scaled_dot_product_flash_attention_for_cpu"}
        assert attention & set(names)
        shares = [operator["share"] for operator in one["operators"]]
        assert shares == sorted(shares, reverse=True)
        assert 0.9 < sum(shares) < 1.2
        assert one["floor_ms"] > 0


@pytest.mark.slow
def test_the_trace_opens_in_a_viewer(made: dict[str, Any]) -> None:
    events = made["trace"]["traceEvents"]
    marks = [e for e in events if e.get("name") == "fdllm denoise" and e.get("ph") == "X"]
    assert marks
    assert all(mark["dur"] > 0 for mark in marks)


@pytest.mark.slow
def test_growth_is_fitted() -> None:
    short = BenchCommand(repeats=1, stretch_ms=1)
    tiny = make_model("tiny", "cpu", "float32")
    sections = bench_growth(tiny, short, (64, 128), (1, 2), ((64, 1),))
    token, batch, prompt, memory = sections
    assert [line.label for line in token.lines] == ["prompt 64, 1 row", "prompt 128, 1 row"]
    assert [line.label for line in batch.lines] == ["prompt 256, 1 row", "prompt 256, 2 rows"]
    assert all(section.notes[0].startswith("fit: ") for section in (token, batch, prompt))
    assert memory.unit == "B"
    assert all(min(line.measured) > 0 for line in memory.lines)
    assert Path("/proc").exists() or not memory.lines


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    found = measure_apart("tiny", "cpu", "float32", 64, 2)
    parameters = make_model("tiny", "cpu", "float32").model.spec
    assert found.caches == 2 * (
        2 * parameters.num_layers * 128 * parameters.num_kv_heads * parameters.head_dim * 4
    )
    assert found.held > found.caches // 2
