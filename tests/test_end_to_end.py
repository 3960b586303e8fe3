"""The real engine, the real harness, the real command: on random weights, two rows a task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fdllm import tiny
from fdllm.cli import main
from fdllm.core.network import Network
from fdllm.record.summary import read_summary
from stubs import make_root
from tiny_training import files


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the embedded one's shape, with its tokenizer."""
    folder = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(0)
    network = Network(files.spec())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
                continue
            scale = 1.0 if name.startswith(("embedding", "head")) else 0.15
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    files.export(network, folder)
    for path in tiny.FOLDER.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.slow
def test_both_kinds_of_task_with_and_without_reuse(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_root(tmp_path / "root")
    monkeypatch.setenv("FDLLM_ROOT", str(root))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    chosen = ["--task", "tiny_arithmetic", "tiny_choice", "--config", "k1_first", "k1_last"]
    sweep = ["validate", *chosen, "k2_middle", "--limit", "2", "--model", str(weights)]
    assert main(sweep) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "6 of 6 done" in shown
    assert shown.count("A/A: k1_first = k1_last in all 2 samples") == 2

    for task, num_requests in (("tiny_arithmetic", 2), ("tiny_choice", 8)):
        place = root / "results/00_baseline" / f"{task}_limit_2@{weights.name}-"
        (folder,) = place.parent.glob(place.name + "*")
        plain = read_summary(folder / "k1_first" / "summary.json")
        reuse = read_summary(folder / "k2_middle" / "summary.json")
        assert plain.layer_calls.reused == 0
        assert reuse.layer_calls.reused > 0
        for summary in (plain, reuse):
            forwards = sum(count["forwards"] for count in summary.counts.values())
            calls = summary.layer_calls
            assert calls.computed + calls.reused == 12 * forwards
            assert summary.num_requests == num_requests
            assert summary.headline.num_samples == 2
            assert summary.speed > 0
        for phase in ("prefill", "refresh", "commit"):
            assert reuse.counts[phase]["reused"] == 0
        lines = (folder / "k1_first/samples.jsonl").read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        assert [sample["doc_id"] for sample in samples] == [0, 1]
        assert all(sample["forwards"] > 0 and sample["prompt"] for sample in samples)

    assert main(sweep) == 0
    assert "nothing to do: all 6 runs are done" in capsys.readouterr().out
