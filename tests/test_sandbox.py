"""Hostile programs, each stopped; harmless ones, each passed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fdllm.errors import FdllmError
from fdllm.evaluate.humaneval import prove
from fdllm.sandbox.confinement import ProgramResult, Sandbox
from fdllm.sandbox.support import Isolation, Limits
from helpers import ROOT
from programs import ENDLESS, HARMLESS, WRONG

LIMITS = Limits(cpu_s=1, memory_mb=256)
CONFINED = Sandbox("confined", LIMITS)
TESTS = "assert answer() == 42"
RIGHT = "def answer():\n    return 42\n"


def children() -> set[str]:
    """Processes started from here that run still, or that nobody has waited for."""
    found = set[str]()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found |= {*(task / "children").read_text().split()}
    return found


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    # What ran before in this process may have left some: chat templates are rendered in one.
    before = children()
    yield
    assert not children() - before


# --- what is right ------------------------------------------------------------------------------


@pytest.mark.parametrize("program", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_harmless_program_passes(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    verdict = CONFINED.run(RIGHT + program, TESTS)
    assert verdict == ProgramResult(passed=True, reason="passed")


def test_the_order_of_a_set_is_the_same_every_time() -> None:
    program = "def answer():\n    return ''.join({'a', 'b', 'c', 'd', 'e', 'f', 'g'})\n"
    orders = [
        CONFINED.run(program, f"assert answer()[0] == '{letter}'").passed for letter in "abcdefg"
    ]
    assert sum(orders) == 1


# --- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(("program", "ends"), WRONG.values(), ids=WRONG.keys())
def test_a_hostile_program_is_stopped(program: str, ends: str | None) -> None:
    verdict = CONFINED.run(RIGHT + program, TESTS)
    assert not verdict.passed
    said = f"{verdict.reason} {verdict.detail}".strip()
    # Without `ends` how it dies is the machine's choice: a deep stack faults or runs out of time.
    assert ends is None or said.startswith(ends), said


def test_nothing_outside_the_scratch_folder_changes(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    tries = [
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'r+')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os; os.open({str(kept)!r}, os.O_RDONLY | os.O_TRUNC)",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.rename({str(kept)!r}, 'mine')",
        f"import os; os.link({str(kept)!r}, 'mine')",
        f"import os; os.utime({str(kept)!r})",
    ]
    for program in tries:
        assert CONFINED.run(program, "").detail == "PermissionError", program
    before = CONFINED.run("open('left', 'w').write('behind')", "")
    assert before.passed
    assert not CONFINED.run("open('left').read()", "").passed  # a folder of its own each time
    assert kept.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize(("program", "ends"), ENDLESS.values(), ids=ENDLESS.keys())
def test_a_program_that_waits_is_ended_by_the_clock(
    program: str, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fdllm.sandbox.confinement._GRACE_S", 0.5)
    verdict = Sandbox("confined", Limits(wall_s=0.5)).run(program, "")
    assert (verdict.passed, verdict.reason) == (False, ends)


@pytest.mark.parametrize(
    "program",
    [
        "raise type('E\\x1b[2J\\n' + 'x' * 999, (Exception,), {})",
        (
            "import os\nfor file in range(3, 9):\n    try:\n"
            "        os.write(file, b'failed E\\x1b[2J\\xff' + b'x' * 999 + b'\\n')\n"
            "    except OSError:\n        pass"
        ),
    ],
    ids=["by its error", "by itself"],
)
def test_its_last_words_are_cut_and_clean(program: str) -> None:
    verdict = CONFINED.run(program, "")
    assert (verdict.passed, verdict.reason) == (False, "failed")
    assert verdict.detail.startswith("E")
    assert verdict.detail.isprintable()
    assert len(verdict.detail) == 80


def test_what_runs_can_be_stopped() -> None:
    sandbox = Sandbox("confined", Limits(cpu_s=60, wall_s=60.0))
    timer = threading.Timer(0.5, sandbox.stop.set)
    timer.start()
    assert sandbox.run("import time\ntime.sleep(50)", "").reason == "interrupted"


# --- where a kernel lacks a part ----------------------------------------------------------------


def test_without_consent_nothing_runs() -> None:
    with pytest.raises(FdllmError, match="--allow-code-execution"):
        Sandbox("refused").run(RIGHT, TESTS)


def test_what_cannot_be_confined_is_refused() -> None:
    sandbox = Sandbox("confined", isolation=Isolation("Linux", "x86_64", 0))
    with pytest.raises(FdllmError, match=r"no Landlock.*read every file.*--allow-readable-files"):
        sandbox.run(RIGHT, TESTS)


def test_a_kernel_that_refuses_the_filter_gives_no_verdict() -> None:
    # The right machine's name is another's: the first call under its filter ends the process.
    other = "aarch64" if Isolation.here().machine == "x86_64" else "x86_64"
    with pytest.raises(FdllmError, match="not run, because its process could not be confined"):
        Sandbox("confined", isolation=Isolation("Linux", other, 1)).run(RIGHT, TESTS)


def test_without_landlock_programs_write_nowhere(tmp_path: Path) -> None:
    sandbox = Sandbox("readable", LIMITS, Isolation("Linux", Isolation.here().machine, 0))
    prove(sandbox)
    assert sandbox.run(RIGHT, TESTS).passed
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for program in (
        f"open({str(kept)!r}, 'a')",
        "open('scratch', 'w')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.open({str(kept)!r}, os.O_RDONLY | os.O_TRUNC)",
    ):
        assert sandbox.run(program, "").detail == "PermissionError", program
    assert sandbox.run(f"assert open({str(kept)!r}).read() == 'as it was'", "").passed
    assert sandbox.run("import socket\nsocket.socket()", "").reason == "forbidden call"


def test_the_confinement_here_is_tight() -> None:
    prove(CONFINED)


# --- ended from outside --------------------------------------------------------------------------


INTERRUPTED = """
import sys
from fdllm.evaluate.humaneval import Programs
from fdllm.sandbox.support import Limits
from fdllm.sandbox.confinement import Sandbox
programs = Programs(Sandbox("confined", Limits(wall_s=900.0)))
programs.check()
print("begun", flush=True)
programs.prepare([("import time; time.sleep(900)", str(i)) for i in range(9)])
"""


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_programs_end_with_the_process_that_runs_them(by: signal.Signals, tmp_path: Path) -> None:
    """The scratch folders, beneath a folder of this test's own, tell which programs are alive."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    wait_for(lambda: bool(living_in(tmp_path)))
    process.send_signal(by)
    process.communicate(timeout=120)
    wait_for(lambda: not living_in(tmp_path))


def living_in(folder: Path) -> list[int]:
    """Processes whose working folder lies below ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(folder):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to that")
