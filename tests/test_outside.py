"""Whatever stands where a file should stand is named in a line, at once."""

from __future__ import annotations

import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from fdllm import strictjson
from fdllm.outside import AbsentError, OutsideError, parse_json, read_bytes, read_json, read_text


def _socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def _circle(path: Path) -> None:
    path.with_name("other").symlink_to(path)
    path.symlink_to(path.with_name("other"))


def _below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "is a folder, not a file"),
    "pipe": (os.mkfifo, "is a pipe, not a file"),
    "socket": (_socket, "is a socket, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "nowhere": (lambda path: path.symlink_to("gone"), "is a link that leads nowhere"),
    "circle": (_circle, "is a link in a circle"),
    "below a file": (_below_a_file, "cannot be read: a file stands where its folder should"),
    "large": (
        lambda path: path.write_bytes(bytes(101)),
        "holds more than 100 bytes, which no such file does",
    ),
    "no text": (
        lambda path: path.write_bytes(b'"\xff"'),
        "is no UTF-8 text: byte 2 of 3 is 0xff",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    put, wrong = KINDS[kind]
    put(folder / "x.json")
    with pytest.raises(OutsideError) as caught:
        read_json(folder / "x.json", most=100)
    assert not isinstance(caught.value, AbsentError)
    assert str(caught.value) == f"{folder / 'x.json'} {wrong}"


def test_refused_things_leave_nothing_open(tmp_path: Path) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(OutsideError):
            read_bytes(tmp_path, most=1)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_reading_takes_the_file_s_memory_and_not_the_bound_s(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    tracemalloc.start()
    assert read_bytes(tmp_path / "x", most=1 << 40) == b"x"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_absent_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="is absent$"):
        read_bytes(tmp_path / "x", most=1)
    with pytest.raises(OutsideError, match="cannot be read: .*embedded null"):
        read_bytes(tmp_path / "a\0b", most=1)


def test_a_file_is_read_whole_and_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("é{}".encode())
    (tmp_path / "link").symlink_to("x")
    assert read_bytes(tmp_path / "link", most=4) == "é{}".encode()
    assert read_text(tmp_path / "x", most=4) == "é{}"


DAMAGED = {
    "": "it is empty",
    " \n": "it is empty",
    "\0" * 9: "Expecting value: line 1 column 1 (char 0)",
    '{"a": ': "Expecting value: line 1 column 7 (char 6)",
    "\ufeff{}": "Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)",
    '{"a": 1, "b": 2, "a": 1}': "the key 'a' stands there twice",
    '{"a": NaN}': "NaN is no number of JSON's",
    '{"a": -Infinity}': "-Infinity is no number of JSON's",
    '{"a": 1e999}': "1e999 is more than a double holds",
    '{"a": 9223372036854775808}': "9223372036854775808 is more than 64 bits hold",
    f"[{'1' * 5000}]": f"{'1' * 40} is more than 64 bits hold",
    "[" * 64 + "[1]" + "]" * 64: "it is nested more than 64 deep",
    '{"a":' * 64 + "{}" + "}" * 64: "it is nested more than 64 deep",
    "[" * 100_000: "it is nested more than 64 deep",
}


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: repr(text[:20]))
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(OutsideError) as caught:
        parse_json(text, "x.json")
    assert str(caught.value) == f"x.json is no JSON: {DAMAGED[text]}"
    with pytest.raises(ValueError, match=r".") as told:
        strictjson.loads(text)
    assert not isinstance(told.value, OutsideError)


def test_what_is_json() -> None:
    deep = "[" * 63 + "[1]" + "]" * 63
    assert parse_json(deep) == strictjson.loads(deep)
    assert parse_json('{"a": [9223372036854775807, -9223372036854775808, 1e308]}') == {
        "a": [2**63 - 1, -(2**63), 1e308]
    }
