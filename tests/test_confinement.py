"""What a program may use and where it may run, whole: limits, environment, kernels; and pass@k."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

import pytest

from fdllm.errors import FdllmError
from fdllm.evaluate.humaneval import Programs, prove
from fdllm.runs import CodeExecution
from fdllm.sandbox.confinement import ProgramResult, _environment
from fdllm.sandbox.support import Isolation, Limits

MIB = 1 << 20
HERE = Isolation("Linux", "x86_64", 3)


def test_the_kernel_is_told_every_limit() -> None:
    told = Limits().resources()
    assert told == {
        "RLIMIT_CPU": 5,
        "RLIMIT_AS": 1024 * MIB,
        "RLIMIT_FSIZE": 4 * MIB,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_CORE": 0,
    }
    assert all(hasattr(resource, name) for name in told)


def test_a_program_finds_nothing_of_ours_in_its_environment() -> None:
    assert _environment("/scratch") == {
        "HOME": "/scratch",
        "TMPDIR": "/scratch",
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }


@pytest.mark.parametrize(
    ("isolation", "confined", "readable"),
    [
        (HERE, "", ""),
        (replace(HERE, machine="aarch64", landlock=1), "", ""),
        (replace(HERE, landlock=0), "no Landlock", ""),
        (replace(HERE, system="Darwin"), "only be confined on Linux", "only be confined on Linux"),
        (replace(HERE, machine="riscv64"), "x86_64 or aarch64", "x86_64 or aarch64"),
    ],
)
def test_a_kernel_offers_enough_or_what_lacks_is_said(
    isolation: Isolation, confined: str, readable: str
) -> None:
    wanted: dict[CodeExecution, str] = {"confined": confined, "readable": readable}
    for consent, says in wanted.items():
        missing = isolation.missing(consent)
        assert bool(missing) == bool(says)
        assert says in (missing or "")
    assert str(HERE) == "seccomp and landlock"
    assert str(replace(HERE, landlock=0)) == "seccomp, files readable"


# --- what is tried out ahead of the first verdict -------------------------------------------------


@dataclass
class Scripted:
    """Stands in for a sandbox: ends each program as a table says, and keeps what it ran."""

    table: dict[str, ProgramResult]
    isolation: Isolation
    limits: Limits = field(default_factory=Limits)
    ran: list[str] = field(default_factory=list)

    def run(self, program: str, tests: str) -> ProgramResult:  # noqa: ARG002 - the sandbox's form
        """The first verdict whose mark stands in the program."""
        self.ran.append(program)
        found = (verdict for mark, verdict in self.table.items() if mark in program)
        return next(found, ProgramResult(passed=True, reason="passed"))


FORBIDDEN, FAILED = ProgramResult(False, "forbidden call"), ProgramResult(False, "failed")
TIGHT = {
    "AF_UNIX": FORBIDDEN,
    "socket.socket()": FORBIDDEN,
    "os.fork": FORBIDDEN,
    "os.kill": FORBIDDEN,
    "../escaped": FAILED,
    "os.chmod": FAILED,
    "environ": FAILED,
    "os.listdir": FAILED,
}


def scripted(table: dict[str, ProgramResult], landlock: int = 3) -> Any:
    return Scripted(table, replace(HERE, landlock=landlock))


def test_the_proof_tries_everything_that_must_be_stopped() -> None:
    sandbox = scripted(TIGHT)
    prove(sandbox)
    assert len(sandbox.ran) == 1 + len(TIGHT)
    readable = scripted(TIGHT, landlock=0)
    prove(readable)
    assert len(readable.ran) == len(TIGHT) - 1
    assert "'w'" in sandbox.ran[0]
    assert "'w'" not in readable.ran[0]


@pytest.mark.parametrize("mark", TIGHT)
@pytest.mark.parametrize(
    "verdict",
    [
        ProgramResult(True, "passed"),
        ProgramResult(False, "out of time"),
        ProgramResult(True, "forbidden call"),
    ],
)
def test_one_program_that_gets_through_stops_the_scoring(mark: str, verdict: ProgramResult) -> None:
    with pytest.raises(FdllmError, match="the sandbox is not tight: a program that"):
        prove(scripted(TIGHT | {mark: verdict}))


def test_a_harmless_program_that_is_stopped_stops_the_scoring() -> None:
    with pytest.raises(FdllmError, match=r"killed by SIGKILL"):
        prove(scripted(TIGHT | {"kept": ProgramResult(False, "killed", "by SIGKILL")}))


# --- pass@k ---------------------------------------------------------------------------------------


def chances(right: list[int], n: int, k: list[int]) -> dict[str, float]:
    """Of problems of which so many of n programs are right."""
    table: dict[str, ProgramResult] = {"wrong": FAILED} | TIGHT
    programs = Programs(scripted(table))
    texts = [
        [f"p{i} right {j}" if j < c else f"p{i} wrong {j}" for j in range(n)]
        for i, c in enumerate(right)
    ]
    return programs.pass_at_k([f"tests {i}" for i in range(len(right))], texts, k)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 1), (4, 2), (4, 4)])
def test_the_chance_that_one_of_k_programs_passes(n: int, k: int) -> None:
    right = [0, 1, n]
    expected = sum(1 - comb(n - c, k) / comb(n, k) for c in right) / 3
    assert chances(right, n, [k]) == pytest.approx({f"pass@{k}": expected})


def test_several_k_and_too_few_programs() -> None:
    assert chances([1], 2, [1, 2]) == {"pass@1": 0.5, "pass@2": 1.0}
    with pytest.raises(FdllmError, match="pass@3 needs 3 programs a problem; there are 2"):
        chances([1], 2, [3])


def test_programs_are_run_once_and_their_ends_are_told() -> None:
    sandbox = scripted({"wrong": ProgramResult(False, "failed", "AssertionError")} | TIGHT)
    programs = Programs(sandbox)
    wanted: list[Any] = [("right", "t"), ("wrong", "t"), ("right", "t"), ("right", "u")]
    programs.prepare([])
    assert sandbox.ran == []
    programs.prepare(wanted)
    programs.prepare(wanted)
    assert len(sandbox.ran) == 1 + len(TIGHT) + 3
    assert programs.reason("right", "t") == "passed"
    assert programs.reason("wrong", "t") == "failed AssertionError"
    told = programs.outcomes()
    assert told["outcomes"] == {"failed": 1, "passed": 2}
    assert told["confined_by"] == "seccomp and landlock"
