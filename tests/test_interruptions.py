"""Full disks, kills, and two runners at once: nothing is lost, nothing is computed twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fdllm.plan import State
from fdllm.record.journal import read_journal
from fdllm.record.lock import locked
from fdllm.record.summary import read_summary
from fdllm.runs import Run
from helpers import ROOT
from stubs import (
    NUM_DOCS,
    StubMachine,
    do_run,
    do_sweep,
    interrupt,
    make_planner,
    make_root,
    make_run,
    make_sweep,
    paths_of,
    small_disk,
    without_times,
)

CONFIGS = ("k1_first", "k2_middle", "k3_last")


# --- places that cannot be written --------------------------------------------------------------


def test_a_disk_that_fills_up_loses_nothing(root: Path) -> None:
    run = make_run(root)
    ballast = root / "results" / "ballast"

    def fill(doc: int) -> None:
        if doc != 2:
            return
        with suppress(OSError), ballast.open("wb", 0) as file:
            while True:
                file.write(b"x" * 512)

    def long_answer(_: Run, doc: int) -> str:
        return str(doc) * 600  # so that three do not fit what is left of the journal's last page

    with small_disk(root / "results"):
        outcome = do_run(root, run, StubMachine(before=fill, answer=long_answer))
        assert outcome.state is State.FAILED
        assert "the disk is full" in outcome.reason
        ballast.unlink()
        again = do_run(root, run)
        assert again.state is State.DONE
        assert 0 < again.num_computed <= NUM_DOCS - 2


# --- killed, and two at once --------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from stubs import StubMachine, do_sweep, make_sweep
root = Path({root!r})
sweep = make_sweep(root, configs={configs!r})
print("go", flush=True)
for outcome in do_sweep(root, sweep, StubMachine(delay_s={delay_s}, computed=root / "computed")):
    print(outcome.run.cell.name, outcome.state.value, outcome.num_computed, flush=True)
"""


def start_sweep(root: Path, delay_s: float) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(ROOT / "tests"), root=str(root), configs=CONFIGS, delay_s=delay_s)
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True
    )


def records(root: Path) -> list[dict[str, Any]]:
    found = []
    for config in CONFIGS:
        paths = paths_of(root, make_run(root, config))
        data = without_times(read_summary(paths.summary))
        data["samples"] = paths.samples.read_text()
        data.pop("model")  # its folder's name
        data.pop("fingerprint")  # the source may be edited while the tests run
        found.append(data)
    return found


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again(root: Path, tmp_path: Path) -> None:
    other = make_root(tmp_path / "other")
    do_sweep(other, make_sweep(other, configs=CONFIGS))
    moments, kills, ended = random.Random(7), 0, False
    while not ended:
        assert kills < 40, "it never gets to its end"
        with start_sweep(root, delay_s=0.05) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.4 + 0.2 * kills))  # it ends on a slow machine too
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.stdout.read()
            process.wait()
        ended = process.returncode == 0
    assert kills >= 3, "the sweep was never really disturbed"
    assert records(root) == records(other)
    computed = len((root / "computed").read_text().splitlines())
    assert computed <= len(CONFIGS) * NUM_DOCS + kills


def test_two_runners_at_once_do_not_harm_each_other(root: Path, tmp_path: Path) -> None:
    other = make_root(tmp_path / "other")
    do_sweep(other, make_sweep(other, configs=CONFIGS))
    with start_sweep(root, 0.02) as one, start_sweep(root, 0.02) as two:
        out = [process.communicate()[0] for process in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0]
    assert records(root) == records(other)
    assert len((root / "computed").read_text().splitlines()) == len(CONFIGS) * NUM_DOCS
    assert sum(text.count("done") for text in out) >= len(CONFIGS)


@pytest.mark.usefixtures("impatient")
def test_who_comes_second_says_who_is_at_it(root: Path) -> None:
    run = make_run(root)
    with locked(paths_of(root, run)):
        outcome = do_run(root, run)
    assert outcome.state is State.RUNNING
    assert f"process {os.getpid()}" in outcome.reason


def test_asking_for_the_state_does_not_disturb_a_runner(root: Path) -> None:
    run = make_run(root)
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            make_planner(root).state(run)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert do_run(root, run, StubMachine(delay_s=0.01)).state is State.DONE
        assert do_run(root, run, force=True).state is State.DONE
    finally:
        ended.set()
        asking.join()


def test_the_total_is_known_as_soon_as_it_is_counted(root: Path) -> None:
    run = make_run(root)
    interrupt(root, run, 0)
    assert read_journal(paths_of(root, run).journal).total == NUM_DOCS
