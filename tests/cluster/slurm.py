"""A real SLURM of one node, as `.ci/slurm.sh` starts it, for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import ROOT

SCRIPT = ROOT / ".ci" / "slurm.sh"
_CONTROLLER = {"slurmctld", "slurmscriptd", "munged"}  # on the one machine, but not of the node
REQUIRE = "FDLLM_REQUIRE_CLUSTER"


def require_or_skip(reason: str) -> None:
    """Skip, or fail where ``FDLLM_REQUIRE_CLUSTER=1`` says that these tests must run."""
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{reason}, and {REQUIRE}=1 forbids skipping")
    pytest.skip(reason)


def is_at_hand() -> bool:
    """Whether a SLURM can be started: its daemons are installed, or may be (with the variable)."""
    paths = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    installed = all(shutil.which(name, path=paths) for name in ("slurmctld", "slurmd", "munged"))
    return os.geteuid() == 0 and (installed or os.environ.get(REQUIRE) == "1")


def wait_until(true: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Ask until it is so.

    Args:
        true: asked ten times a second.
        seconds: patience; generous, as it only ever ends a test that has failed.
        what: told where patience ran out.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:.0f} s: {what()}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Slurm:
    """One cluster of one node.

    Attributes:
        folder: where its configuration, state and logs lie; short, as it holds a socket.
        port: slurmctld's; slurmd takes the next one.
        cpus: processors that it gives away.
    """

    folder: Path
    port: int
    cpus: int = 2

    @property
    def environment(self) -> dict[str, str]:
        """What makes ``sbatch`` and ``squeue`` talk to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start what does not run; the queue is as it was."""
        self._script("start", "--cpus", str(self.cpus))

    def stop(self) -> None:
        """Cancel all jobs and end the daemons."""
        self._script("stop")

    def stop_controller(self) -> None:
        """As when its machine is gone; jobs go on, and ``start`` brings it back."""
        pid = int((self.folder / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 30, lambda: "slurmctld ends")

    def ask(self, *command: str) -> str:
        """Run one of SLURM's commands; what it printed."""
        done = self._run(*command)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def queue(self) -> Mapping[str, str]:
        """State of each job that waits or runs, arrays expanded: ``{'7_2': 'RUNNING'}``."""
        lines = self.ask("squeue", "--array", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def running(self) -> list[str]:
        """Jobs that run."""
        return [job for job, state in self.queue().items() if state == "RUNNING"]

    def await_requeued(self, seconds: float = 240) -> None:
        """Wait until every job waits.

        A life that has just ended lingers as COMPLETING, and still counts as at work.
        """
        wait_until(
            lambda: set(self.queue().values()) == {"PENDING"},
            seconds,
            lambda: self.ask("squeue", "--array", "-l"),
        )

    def end_of_queue(self, seconds: float = 240) -> None:
        """Wait until nothing waits or runs."""

        def is_empty() -> bool:
            self._hurry()
            return not self.queue()

        wait_until(is_empty, seconds, lambda: self.ask("squeue", "--array", "-l"))

    def fail_node(self) -> None:
        """The node loses power: whatever ran there is gone. Afterwards it is there again."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                name = (folder / "comm").read_text().strip()
                ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
                if name in _CONTROLLER or ours not in (folder / "environ").read_bytes().split(
                    b"\0"
                ):
                    continue
                os.kill(int(folder.name), signal.SIGKILL)
        # It would notice by itself after five minutes.
        node = f"nodename={os.uname().nodename}"
        self.ask("scontrol", "update", node, "state=down", "reason=test")
        wait_until(lambda: not self.running(), 60, lambda: self.ask("squeue", "-l"))
        self.start()
        # The node reports the step it had; the controller cancels that, by the number of the job,
        # which must not have begun its next life by then.
        time.sleep(5)

    def _hurry(self) -> None:
        """Let requeued jobs begin: SLURM makes each wait two minutes.

        Not at once: within the second in which its first life was ended, slurmd takes a second one
        for the first, and SLURM drops the job ("already killed, do not launch batch job").
        """
        listed = self.ask("squeue", "--noheader", "--states=PENDING", "--format=%i %r")
        jobs = (line.partition(" ") for line in listed.splitlines())
        waiting = [job for job, _, reason in jobs if reason == "BeginTime"]
        if waiting:
            time.sleep(2)
        for job in waiting:
            self._run("scontrol", "update", f"jobid={job}", "starttime=now")

    def _script(self, *arguments: str) -> None:
        places = ("--folder", str(self.folder), "--port", str(self.port))
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments, *places],
            env={name: value for name, value in os.environ.items() if name != "SLURM_CONF"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{SCRIPT} {' '.join(arguments)}: {done.stderr}"


@contextmanager
def own_cluster() -> Iterator[Slurm]:
    """A SLURM that nobody else uses: one node, two processors; gone afterwards."""
    if not is_at_hand():
        require_or_skip("needs root and Debian's slurmctld, slurmd and munge")
    folder = Path(tempfile.mkdtemp(prefix="fdllm-slurm-"))  # its socket's path must be short,
    folder.chmod(0o711)  #   and everybody must be able to reach it
    cluster = Slurm(folder, free_port())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port of two that nobody listens on."""
    for _ in range(50):
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    pytest.fail("no two neighbouring ports are free")
