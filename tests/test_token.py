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
from dataclasses import replace
from pathlib import Path

import pytest

from checkups import checkup, environment_of, of
from fdllm.caches import OFFLINE, TOKENS, check_token
from fdllm.checkpoint.folder import locate
from fdllm.doctor.examine import prefetch
from fdllm.doctor.findings import Checkup
from fdllm.doctor.remote import Mode, ask_node
from fdllm.errors import FdllmError
from fdllm.evaluate.hub_errors import ask_access
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


def told_by_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, asked: Checkup
) -> list[str]:
    """What a worker that tells its environment finds there."""
    package = tmp_path / "fdllm" / "doctor"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "worker.py").write_text(
        "import json, os, sys\n"
        "names = ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_HUB_OFFLINE')\n"
        "found = ','.join(name for name in names if os.environ.get(name))\n"
        "if sys.argv[1] == 'fetch': found = 'HF_TOKEN=' + os.environ['HF_TOKEN']\n"
        "json.dump([{'name': 'told', 'state': 'ok', 'found': found}], sys.stdout)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return [found.found for found in ask_node(asked, mode)]


def test_a_node_is_checked_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", GRANTED)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", GRANTED)
    assert told_by_a_worker(tmp_path, monkeypatch, "check", of(tmp_path)) == ["HF_HUB_OFFLINE"]


def test_that_of_a_login_is_found_wherever_models_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``hf auth login`` wrote it where HF_HOME was; the site's file names another one."""
    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "token").write_text(f"{GRANTED}\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    asked = replace(of(tmp_path), hf_home=tmp_path / "scratch")
    assert told_by_a_worker(tmp_path, monkeypatch, "fetch", asked) == [f"HF_TOKEN={GRANTED}"]


BAD = ("hf_übel", "hf_one\nhf_two", "hf_one hf_two", "“hf_quoted”", "hf_\x07bell")


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("where", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "file"])
def test_one_that_no_request_can_carry_is_one_sentence_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, text: str
) -> None:
    for name in (*TOKENS, *OFFLINE):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "token"
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(file))
    check_token()
    file.write_text(f"\t{GRANTED}\n")
    check_token()
    if where == "file":
        file.write_text(text)
    else:
        monkeypatch.setenv(where, text)
    shown = str(file) if where == "file" else where
    asks = (check_token, lambda: prefetch(of(tmp_path)), lambda: locate("org/name"))
    for ask in asks:
        with pytest.raises(FdllmError, match=f"^the Hub token in {shown} holds") as said:
            ask()
        assert "\n" not in str(said.value)
        assert not [part for part in text.split() if part in str(said.value)]
    answer = ask_access("org/name", "model")
    assert (answer.state, "settings/tokens" in answer.remedy) == ("unknown", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # nobody is asked, so nothing is carried
    check_token()
