"""What ``noxfile.py`` asks of pip, git and apptainer, on machines that are set up otherwise."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT

NOXFILE: dict[str, Any] = runpy.run_path(str(ROOT / "noxfile.py"))


class Session:
    """Keeps what it is asked to run."""

    posargs = ()

    def __init__(self) -> None:
        self.ran: list[tuple[list[str], dict[str, str] | None]] = []

    def run(self, *command: str, env: dict[str, str] | None = None, **_: Any) -> str:
        self.ran.append(([str(part) for part in command], env))
        return "c" * 40

    def log(self, _: str) -> None: ...


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


@pytest.mark.parametrize(("there", "commit"), [(("git",), "c" * 40), ((), "unknown")])
def test_an_image_is_built_where_there_is_no_git(
    there: tuple[str, ...], commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    programs = {"apptainer", *there}
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    session = Session()
    NOXFILE["container"].func(session)
    command, _ = session.ran[-1]
    assert command[:2] == ["apptainer", "build"]
    assert f"--build-arg=commit={commit}" in command
