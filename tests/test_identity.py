"""What stands in an identity: pinned whole, and asked of whoever owns it."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from fdllm.caches import hub_home
from fdllm.cli import main
from fdllm.evaluate.nltk_data import sentence_folder
from fdllm.record import identity
from fdllm.record.identity import PACKAGE, source_hashes
from helpers import ROOT

# Where the Hub's client looks, by the variables that say so.
PLACES = [
    ({}, "home/.cache/huggingface", "home/.cache/huggingface/hub"),
    ({"XDG_CACHE_HOME": "xdg"}, "xdg/huggingface", "xdg/huggingface/hub"),
    ({"HF_HOME": "hf"}, "hf", "hf/hub"),
    ({"HUGGINGFACE_HUB_CACHE": "old"}, "home/.cache/huggingface", "old"),
    ({"HF_HUB_CACHE": "new", "HUGGINGFACE_HUB_CACHE": "old"}, "home/.cache/huggingface", "new"),
    ({"XDG_CACHE_HOME": "xdg", "HF_HOME": "hf", "HF_HUB_CACHE": "new"}, "hf", "new"),
]


def test_a_changed_c_file_changes_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    path = PACKAGE / "fast/kernels.c"
    assert source_hashes()["src/fdllm/fast/kernels.c"] == sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(identity, "_hash", lambda path: path.suffix)
    source_hashes.cache_clear()
    assert source_hashes()["src/fdllm/fast/kernels.c"] == ".c"
    source_hashes.cache_clear()


def test_a_relative_place_is_this_folders_for_whatever_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job runs in another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", "hf")
    monkeypatch.setenv("HF_HUB_CACHE", "$HOME/hub")
    monkeypatch.setenv("HF_DATASETS_CACHE", "~/data")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert main(["prompts"]) == 2  # any command
    assert os.environ["HF_HOME"] == str(tmp_path / "hf")
    assert os.environ["HF_HUB_CACHE"] == "/home/me/hub"
    assert os.environ["HF_DATASETS_CACHE"] == "/home/me/data"
    assert "XDG_CACHE_HOME" not in os.environ


@pytest.mark.parametrize(("variables", "home", "cache"), PLACES)
def test_caches_are_where_the_hubs_client_has_them(
    tmp_path: Path, variables: dict[str, str], home: str, cache: str
) -> None:
    """Asked of it, so that a run's revision is found wherever its weights are."""
    commit = "c" * 40
    place = tmp_path / cache / "models--org--name"
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "snapshots" / commit / "config.json").write_text('{"num_hidden_layers": 7}')
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)
    code = """
from fdllm.caches import hub_cache, hub_home
from fdllm.runs import ModelChoice
from fdllm.record.identity import model_identity
found = model_identity(ModelChoice(name="org/name"))
print(hub_home(), hub_cache(), found.revision, found.n_layers)
"""
    names = ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment |= {name: str(tmp_path / value) for name, value in variables.items()}
    environment |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / home), str(tmp_path / cache), commit, "7"]


def test_the_sentence_tokenizer_goes_where_its_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLTK_DATA", f"/mine{os.pathsep}/site")
    assert sentence_folder() == Path("/mine")
    monkeypatch.delenv("NLTK_DATA")
    assert sentence_folder() == hub_home() / "nltk_data"
