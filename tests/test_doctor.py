"""The check-up: each thing that can be missing is named, with what to do about it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from checkups import checkup, fdllm, of
from fdllm.doctor.checks_model import check_model, weight_bytes
from fdllm.doctor.checks_node import folders, source, versions
from fdllm.doctor.findings import Finding
from fdllm.errors import FdllmError
from fdllm.record.identity import source_hashes
from fdllm.record.paths import Layout
from fdllm.tiny import FOLDER
from helpers import ROOT, move_hub
from hub.server import GRANTED, STRANGER, Hub

GPQA = "gpqa_main_n_shot"
PAGE = "https://huggingface.co/datasets/Idavidrein/gpqa"


@pytest.mark.slow
def test_a_whole_checkout_is_ready(tmp_path: Path) -> None:
    ended = checkup("doctor", home=tmp_path)
    assert ended.code == 0, ended.out
    assert json.loads(ended.out)["ready"] is True
    assert {"disk", "versions", "source", "folder results", "GPU", "model"} < set(ended.findings)
    assert ended.findings["task tiny_choice"]["found"].startswith("1000 documents")
    assert ended.findings["compiler"]["state"] == "ok"
    # A check-up changes nothing.
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_slower_and_ready(tmp_path: Path) -> None:
    ended = checkup("doctor", home=tmp_path, CC="/nowhere/cc")
    assert json.loads(ended.out)["ready"] is True
    found = ended.findings["compiler"]
    assert found["state"] == "warn"
    assert "'/nowhere/cc' does not run" in found["found"]
    assert "gcc" in found["remedy"]


@pytest.mark.slow
def test_the_table_says_what_to_do(tmp_path: Path) -> None:
    flags = ("--model", "tiny", "--task", "humaneval", "--executor", "local")
    ended = fdllm("doctor", *flags, home=tmp_path)
    assert ended.code == 1
    assert "give --allow-code-execution" in ended.out
    assert "fdllm prefetch --task humaneval" in ended.out
    assert "not ready: 2 of" in ended.out


@pytest.mark.slow
def test_a_gated_data_set_is_asked_about(hub: Hub, tmp_path: Path) -> None:
    """Which answer is told in which words, test_hub_errors.py says."""
    asked = ("doctor", "--task", GPQA)
    refused = checkup(*asked, home=tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=STRANGER)
    assert refused.code == 1
    finding = refused.findings[f"access {GPQA}"]
    assert finding["state"] == "fail"
    assert PAGE in finding["remedy"]
    assert STRANGER not in refused.out + refused.err
    # With access it is only a matter of fetching.
    granted = checkup(*asked, home=tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=GRANTED)
    assert granted.findings[f"access {GPQA}"]["state"] == "ok"
    assert "prefetch --task" in granted.findings[f"task {GPQA}"]["remedy"]


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_no_refusal(tmp_path: Path) -> None:
    ended = checkup("doctor", "--task", GPQA, home=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert ended.findings[f"access {GPQA}"]["state"] == "warn"
    assert "cannot be asked" in ended.findings[f"access {GPQA}"]["found"]


def test_versions_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    place = tmp_path / "requirements.lock"
    (found,) = versions(of(tmp_path))
    assert (found.state, found.found) == (
        "warn",
        "the checkout has no requirements.lock to compare with",
    )
    place.write_text(lock)
    (found,) = versions(of(tmp_path))
    assert found.state == "ok"
    assert f"all {lock.count('==')} packages" in found.found
    torch = next(line for line in lock.splitlines() if line.startswith("torch=="))
    place.write_text(lock.replace(torch, "torch==1.0 # of old") + "no-such-package==2\n")
    (found,) = versions(of(tmp_path))
    assert found.state == "fail"
    assert "torch" in found.found
    assert "(locked: 1.0)" in found.found
    assert "no-such-package not installed" in found.found


@pytest.mark.parametrize("told", [True, False])
def test_a_package_ahead_of_the_environment_is_named(tmp_path: Path, told: bool) -> None:
    """A site's module often sets PYTHONPATH; what lies there may even say no version."""
    ahead = tmp_path / "ahead"
    (ahead / "numpy").mkdir(parents=True)
    (ahead / "numpy/__init__.py").write_text("")
    if told:
        (ahead / "numpy-1.26.4.dist-info").mkdir()
        (ahead / "numpy-1.26.4.dist-info/METADATA").write_text("Name: numpy\nVersion: 1.26.4\n")
    (tmp_path / "requirements.lock").write_text("numpy==2.4.6\nscipy==1.17.1\n")
    code = "from checkups import of; from fdllm.doctor.checks_node import versions; import sys\n"
    code += "from pathlib import Path; [found] = versions(of(Path(sys.argv[1])))\n"
    code += "print(found.state, found.found, found.remedy, sep='|')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{ahead}:{ROOT / 'src'}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    state, what, remedy = done.stdout.split("|")
    version = f"1.26.4 from {ahead}" if told else f"from {ahead}, of whatever version"
    assert (state, what) == ("fail", f"numpy {version} (locked: 2.4.6)")
    assert "unset it" in remedy


@pytest.mark.parametrize("image", [True, False])
def test_other_source_than_the_checkouts(tmp_path: Path, image: bool) -> None:
    asked = replace(of(tmp_path), image=tmp_path / "fdllm.sif" if image else None)
    (found,) = source(replace(asked, source=source_hashes()))
    assert found.state == "ok"
    edited = source_hashes() | {"src/fdllm/core/reuse.py": "0" * 64}
    (found,) = source(replace(asked, source=edited))
    assert found.state == "fail"
    assert "src/fdllm/core/reuse.py" in found.found
    assert ("nox -s container" in found.remedy) == image


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    layout = Layout(Path("/proc/results"), tmp_path / "not" / "yet", tmp_path)
    results, artifacts, _ = folders(replace(of(tmp_path), layout=layout))
    assert (results.name, results.state) == ("folder results", "fail")
    assert "--results" in results.remedy
    assert (artifacts.name, artifacts.state) == ("folder yet", "ok")


def model(folder: Path) -> Finding:
    """What is found of a checkpoint."""
    (found,) = check_model(of(folder, model=str(folder)))
    return found


def test_a_checkpoint_that_was_cut_short(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    weights = next(folder.glob("*.safetensors"))
    assert weight_bytes(folder) == weights.stat().st_size
    assert model(folder).state == "ok"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FdllmError, match="was cut short"):
        weight_bytes(folder)
    weights.write_bytes(b"version https://git-lfs")
    with pytest.raises(FdllmError, match="is no safetensors file"):
        weight_bytes(folder)
    weights.unlink()
    with pytest.raises(FdllmError):
        weight_bytes(folder)


def test_weights_that_are_not_read_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    assert "not read" not in model(folder).found
    for i in range(5):
        (folder / f"part-{i}.safetensors").write_bytes(b"")
    found = model(folder)
    assert found.state == "ok"
    parts = "part-0.safetensors, part-1.safetensors, part-2.safetensors and 2 more"
    assert f"({parts} beside it: not read)" in found.found


def test_a_text_without_an_end_is_found_before_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    for name, key in (("config.json", "eos_token_id"), ("tokenizer_config.json", "eos_token")):
        data = json.loads((folder / name).read_text())
        del data[key]
        (folder / name).write_text(json.dumps(data))
    with pytest.raises(FdllmError, match="names no end of a text: eos_token_id is looked for in"):
        model(folder)


def test_a_checkpoint_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move_hub(monkeypatch, tmp_path)
    (found,) = check_model(of(tmp_path, model="someone/something", revision="v2"))
    assert found.state == "fail"
    assert found.remedy.endswith("fdllm prefetch --model someone/something --revision v2")


@pytest.mark.slow
def test_an_environment_that_lacks_a_library(tmp_path: Path) -> None:
    """What breaks in a check is a finding, and the other checks go on."""
    broken = tmp_path / "broken"
    (broken / "lm_eval").mkdir(parents=True)
    (broken / "lm_eval" / "__init__.py").write_text("raise ImportError('libcuda is gone')")
    path = f"{broken}:{ROOT / 'src'}"
    ended = checkup("doctor", "--task", "tiny_choice", home=tmp_path, PYTHONPATH=path)
    assert ended.code == 1
    assert "libcuda is gone" in ended.findings["task tiny_choice"]["found"]
    assert ended.findings["model"]["state"] == "ok"


def test_a_wrong_name_is_a_usage_error(tmp_path: Path) -> None:
    ended = checkup("doctor", "--task", "tiny_choise", home=tmp_path)
    assert ended.code == 2
    assert "did you mean 'tiny_choice'?" in ended.err
