"""Terminals and logs of bare nodes, which speak ASCII or Latin-1."""

# ruff: noqa: RUF001 - the sign of multiplication is meant

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import Command
from fdllm.cli import main
from fdllm.cli.output import console, say, say_json, show_every_character
from stubs import make_root

TASK = ("--task", "tiny_arithmetic")
# A node that nobody has set up: Python itself then reads and writes ASCII.
BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


class Stream:
    """Standard output of an encoding."""

    def __init__(self, encoding: str, patch: pytest.MonkeyPatch) -> None:
        self._bytes = io.BytesIO()
        self._stream = io.TextIOWrapper(self._bytes, encoding)
        patch.setattr(sys, "stdout", self._stream)
        show_every_character()

    def read(self) -> str:
        self._stream.flush()
        return self._bytes.getvalue().decode(self._stream.encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "+ 2 x 3 ... \\u00e9 \\u4e2d \\ud83d\\ude00 \\udcff\n"),
        ("latin-1", "+ 2 × 3 ... é \\u4e2d \\ud83d\\ude00 \\udcff\n"),
        ("utf-8", "✓ 2 × 3 … é 中 😀 \\udcff\n"),
    ],
)
def test_a_stream_shows_what_its_encoding_has(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(encoding, monkeypatch)
    say("✓ 2 × 3 … é 中 😀 \udcff")  # the last one is of a file's name that is no text
    assert stream.read() == shown
    console().print("✓ 2 × 3 … é 中 😀 \udcff", soft_wrap=True)
    assert stream.read().startswith(shown + shown[:9])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_programs_read_the_same_from_every_stream(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, data = Stream(encoding, monkeypatch), {"text": "✓ × … é 中 😀"}
    say_json(data)
    assert json.loads(stream.read()) == data


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    "command",
    [
        ("status", *TASK),
        ("sweep", *TASK, "--timing", "0"),
        ("eval", *TASK, "--config", "k1_first"),
        ("compare", "k1_first", "k2_middle", *TASK, "--flips", "2"),
        ("report", *TASK),
        ("report", "--check", *TASK),
    ],
    ids=lambda command: command[0],
)
def test_a_command_ends_as_it_does_elsewhere(
    finished: Command, command: tuple[str, ...], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = finished(*command)
    Stream(encoding, monkeypatch)
    assert main([*command, "--model", str(finished.root / "model")]) == usual


@pytest.mark.slow
def test_files_are_utf_8_on_a_bare_node(tmp_path: Path) -> None:
    root, results = make_root(tmp_path / "root"), tmp_path / "results"
    which = ("--model", "tiny", "--limit", "2", "--results", str(results))
    page = tmp_path / "page.html"
    for command in (
        ("doctor", "--task", "tiny_choice", *which),
        ("eval", "--task", "tiny_choice", "--config", "k1_first", *which),
        ("report", "--task", "tiny_choice", *which, "--html", str(page)),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "fdllm.cli", *command],
            env=os.environ | BARE | {"FDLLM_ROOT": str(root)},
            capture_output=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        assert done.stdout.isascii()
    assert not page.read_text(encoding="utf-8").isascii()
