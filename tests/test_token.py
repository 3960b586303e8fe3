"""The token opens a gated data set, and its text is nowhere afterwards.

Not in a file, not in what is printed, not in an exception, not in any process's command line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkups import checkup, environment_of, of
from fdllm.doctor.remote import ask_node
from hub.server import GRANTED, STRANGER, Hub

GPQA = "gpqa_main_n_shot"
FEW = ("--task", GPQA, "--config", "k2_middle", "--limit", "2")


def holding(folder: Path, text: str) -> list[Path]:
    """Files below ``folder`` that hold ``text``, in their content or their name."""
    return [
        path
        for path in folder.rglob("*")
        if text in path.name or (path.is_file() and text.encode() in path.read_bytes())
    ]


@contextmanager
def command_lines() -> Iterator[set[str]]:
    """Every command line that any process has while the block lasts, as ``ps`` would show it."""
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    try:
                        line = Path(entry.path, "cmdline").read_bytes()
                    except OSError:
                        continue
                    seen.add(line.replace(b"\0", b" ").decode("utf-8", "replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_it_is_nowhere_afterwards(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": GRANTED}
    flags = (*FEW, "--model", "tiny", "--results", str(tmp_path / "records"), "--device", "cpu")
    run = [sys.executable, "-m", "fdllm.cli", "eval", *flags]
    with command_lines() as lines:
        doctor = checkup("doctor", *FEW[:2], home=home, **environment)
        prefetch = checkup("prefetch", *FEW[:2], home=home, **environment)
        done = subprocess.run(
            run,
            env=environment_of(home, **environment),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert prefetch.code == 0, prefetch.out
    assert any(token == GRANTED for _, _, token in hub.seen), "the Hub was not shown the token"
    assert any(GPQA in line for line in lines), "no command line was seen"

    said = [doctor.out, doctor.err, prefetch.out, prefetch.err, done.stdout, done.stderr]
    assert not [text for text in said if GRANTED in text]
    assert not [line for line in lines if GRANTED in line]
    assert list((tmp_path / "records").rglob("summary.json"))
    assert holding(tmp_path, GRANTED) == []


@pytest.mark.slow
@pytest.mark.parametrize("token", [STRANGER, "hf_expired"])
def test_it_is_in_no_exception(hub: Hub, tmp_path: Path, token: str) -> None:
    flags = (*FEW, "--model", "tiny", "--results", str(tmp_path / "records"), "--device", "cpu")
    done = subprocess.run(
        [sys.executable, "-m", "fdllm.cli", "eval", "--debug", *flags],
        env=environment_of(tmp_path / "home", HF_ENDPOINT=hub.url, HF_TOKEN=token),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "https://huggingface.co/datasets/Idavidrein/gpqa" in done.stdout + done.stderr
    assert token not in done.stdout + done.stderr
    assert holding(tmp_path, token) == []


def test_a_search_that_can_fail(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"the token is {GRANTED}")
    assert holding(tmp_path, GRANTED) == [tmp_path / "log"]


def test_a_node_is_checked_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is replaced by one that tells its environment."""
    package = tmp_path / "fdllm" / "doctor"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "worker.py").write_text(
        "import json, os, sys\n"
        "names = ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_HUB_OFFLINE')\n"
        "found = ','.join(name for name in names if os.environ.get(name))\n"
        "json.dump([{'name': 'told', 'state': 'ok', 'found': found}], sys.stdout)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", GRANTED)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", GRANTED)
    asked = of(tmp_path)
    assert [found.found for found in ask_node(asked, "check")] == ["HF_HUB_OFFLINE"]
