"""What ``noxfile.py`` asks of pip, git and apptainer, on machines that are set up otherwise."""

from __future__ import annotations

import runpy
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import ROOT

NOXFILE: dict[str, Any] = runpy.run_path(str(ROOT / "noxfile.py"))


class Session:
    """Keeps what it is asked to run."""

    posargs = ()

    def __init__(self) -> None:
        self.ran: list[tuple[list[str], dict[str, str] | None]] = []
        self.warned: list[str] = []

    def run(self, *command: str, env: dict[str, str] | None = None, **_: Any) -> str:
        self.ran.append(([str(part) for part in command], env))
        return f"{'c' * 40} 1700000000\n"

    def log(self, _: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def error(self, text: str) -> None:
        raise RuntimeError(text)


def test_what_a_user_set_for_pip_leads_into_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``PIP_USER=1``, or ``target`` in pip's own file, would install elsewhere."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / ".nox/fdllm/bin/pip"
    place.parent.mkdir(parents=True)
    place.touch()
    session = Session()
    NOXFILE["Environment"](session).pip("install", "x")
    [(command, env)] = session.ran
    assert command[-2:] == ["install", "x"]
    assert env is not None
    assert env["PIP_USER"] == "0"
    assert not env["PIP_TARGET"] + env["PIP_PREFIX"] + env["PIP_ROOT"] + env["PYTHONPATH"]


def test_a_python_that_cannot_make_an_environment_or_was_not_tried_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("venv.create", lambda *_, **__: None)
    session = Session()
    for version, told in (((3, 11), 0), ((3, 14), 0), ((3, 99), 1)):
        here = SimpleNamespace(major=version[0], minor=version[1])
        monkeypatch.setattr("sys.version_info", here)
        NOXFILE["Environment"](session)
        assert len(session.warned) == told
    assert "tried with Python 3.11, 3.12, 3.13, 3.14, and this is 3.99" in session.warned[0]

    def fail(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr("venv.create", fail)
    with pytest.raises(RuntimeError, match="apt install python3-venv"):
        NOXFILE["Environment"](session)


@pytest.mark.parametrize("uv", [None, "/bin/uv"])
def test_the_project_is_installed_by_hash_and_by_uv_where_there_is_one(
    uv: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("shutil.which", lambda name: uv if name == "uv" else None)
    session = Session()
    environment = NOXFILE["Environment"].__new__(NOXFILE["Environment"])
    environment.session, environment.folder = session, tmp_path
    environment.install("project", "lint", "bundle")
    hashed, project, lint, tools = (command for command, _ in session.ran)
    for command, env in session.ran:
        python = ["--python", str(tmp_path / "bin/python")]
        assert command[1:5] == (
            ["pip", "install", *python] if uv else ["-m", "pip", "install", command[4]]
        )
        assert env is not None
        assert not env["PYTHONPATH"]
    assert hashed[-4:] == [
        "--no-deps",
        "--require-hashes",
        "--requirement",
        "requirements.hashes.lock",
    ]
    assert project[-4:] == ["--constraint", "requirements.lock", "--editable", "."]
    assert "--constraint" in lint
    assert "--constraint" not in tools, "a tool's own dependencies are no run's"
    session.ran.clear()
    environment.install("project", "lint", "bundle")
    assert not session.ran


def test_pylock_is_refused_where_it_pins_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's packages and those of other systems may be more; no pin may be missing or differ."""
    monkeypatch.chdir(tmp_path)
    Path("requirements.lock").write_text("# made\nJinja2==3.1.6\ntorch==2.13.0\n")
    monkeypatch.setitem(NOXFILE["pylock"].func.__globals__, "_compile", lambda *_: "")
    package = '[[packages]]\nname = "{}"\nversion = "{}"\n'
    whole = [("jinja2", "3.1.6"), ("torch", "2.13.0"), ("triton", "3.7.1")]
    Path("pylock.toml").write_text("".join(package.format(*one) for one in whole))
    NOXFILE["pylock"].func(Session())
    Path("pylock.toml").write_text(package.format("jinja2", "3.1.5"))
    with pytest.raises(RuntimeError, match=r"differ in jinja2, torch: run nox -s lock"):
        NOXFILE["pylock"].func(Session())


@pytest.mark.parametrize(
    ("there", "commit", "epoch"), [(("git",), "c" * 40, "1700000000"), ((), "unknown", "315532800")]
)
def test_an_image_bears_its_commit_and_the_commits_time_where_there_is_git(
    there: tuple[str, ...],
    commit: str,
    epoch: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    programs = {"apptainer", *there}
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    session = Session()
    NOXFILE["container"].func(session)
    command, env = session.ran[-1]
    assert command[:2] == ["apptainer", "build"]
    assert f"--build-arg=commit={commit}" in command
    assert f"--build-arg=epoch={epoch}" in command
    assert env == {"SOURCE_DATE_EPOCH": epoch}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    NOXFILE["container"].func(session)
    assert session.ran[-1][1] == {"SOURCE_DATE_EPOCH": "7"}


@pytest.mark.parametrize("version", ["01", "02"])
def test_two_images_of_a_commit_are_equal(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    monkeypatch.setattr("shutil.which", lambda name: name)

    def built(time: int) -> bytes:
        """As Apptainer 1.4 writes it: one descriptor of two, an id and times of its own."""
        head = b"#!run".ljust(32, b"\0") + b"SIF_MAGIC\0" + version.encode() + b"\x0002\0"
        head += bytes([time]) * 16 + struct.pack("<8q", time, time, 1, 2, 128, 1170, 1298, 4)
        descriptors = bytes(41) + struct.pack("<2q", time, time) + bytes(528) + bytes(585)
        Path("fdllm.sif").write_bytes(head + descriptors + b"data")
        NOXFILE["container"].func(Session())
        return Path("fdllm.sif").read_bytes()

    assert (built(1) == built(2)) == (version == "01")
    assert built(7)[128:] == bytes(41) + struct.pack("<2q", 7, 7) + bytes(528 + 585) + b"data"
