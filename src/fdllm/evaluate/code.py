"""humaneval's metric: programs that the model wrote, each run in the sandbox. No torch, no harness.

The harness's definition stays as it is, but for two functions that its ``utils.py`` defines: that
module fetches and executes a metric from the Hub when it is imported, and the metric would run the
programs next to the model, with the user's token in reach. Ours mean the same.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fdllm.config import CodeExecution
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.sandbox import Sandbox, Verdict
from fdllm.evaluate.tasks import TaskInfo

_MOST_AT_ONCE = 16

# A program that must pass, and what must be stopped and how, before any verdict is believed.
_PROOF_PASSES = "open('kept', 'w').write('text')\nassert open('kept').read() == 'text'"
_PROOF_READS = "assert open(__import__('os').__file__).read(1)"
_PROOF_STOPPED = {
    "opened a socket": ("import socket\nsocket.socket()", "forbidden call"),
    "opened a local socket": ("import socket\nsocket.socket(socket.AF_UNIX)", "forbidden call"),
    "started a process": ("import os\nos.fork()", "forbidden call"),
    "signalled its parent": ("import os\nos.kill(os.getppid(), 0)", "forbidden call"),
    "wrote outside its folder": ("open('../escaped', 'w')", "failed"),
    "changed a folder outside": ("import os\nos.chmod('..', 0o700)", "failed"),
}
_PROOF_UNREADABLE = {
    "read its parent's environment": (
        "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
        "failed",
    ),
    "listed the root folder": ("import os\nos.listdir('/')", "failed"),
}


def check_consent(info: TaskInfo, consent: CodeExecution) -> None:
    """A task that runs code is only begun with the user's word.

    Raises:
        UsageError: the word was not given; the message says how to.
    """
    if info.runs_code and consent == "refused":
        raise UsageError(
            f"task '{info.name}' runs programs that the model writes; say that you agree with "
            "--allow-code-execution (each runs confined: no network, no token, limits on time and "
            "memory, a scratch folder of its own), or leave the task out"
        )


def prove(sandbox: Sandbox) -> None:
    """Try the confinement out on this machine.

    Raises:
        FdllmError: it cannot be had, or lets something through.
    """
    writes = bool(sandbox.isolation.landlock)
    harmless = _PROOF_PASSES if writes else _PROOF_READS
    found = sandbox.run(harmless, "pass")
    if not found.passed:
        raise FdllmError(
            f"the sandbox stops a harmless program ({found.reason} {found.detail}): with its "
            f"limits no program can run here ({sandbox.isolation}; {sandbox.limits})"
        )
    for what, (program, reason) in (_PROOF_STOPPED | (_PROOF_UNREADABLE if writes else {})).items():
        found = sandbox.run(program, "pass")
        if found.passed or found.reason != reason:
            raise FdllmError(
                f"the sandbox is not tight: a program that {what} ended as '{found.reason}' where "
                f"'{reason}' was due ({sandbox.isolation}); no program was scored on this machine"
            )


class Programs:
    """Runs the programs of one evaluation, several at a time, each once.

    Args:
        sandbox: runs them.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._proved = False

    def check(self) -> None:
        """Try the confinement out, ahead of hours of answers that could not be scored.

        Raises:
            FdllmError: programs cannot be confined on this machine.
        """
        if not self._proved:
            prove(self._sandbox)
            self._proved = True

    def prepare(self, wanted: Sequence[tuple[str, str]]) -> None:
        """Run programs ahead of :meth:`pass_at_k`.

        Args:
            wanted: programs with their tests.

        Raises:
            FdllmError: programs cannot be confined on this machine; none was scored.
        """
        todo = [one for one in dict.fromkeys(wanted) if one not in self._verdicts]
        if not todo:
            return
        self.check()
        workers = min(len(os.sched_getaffinity(0)), _MOST_AT_ONCE, len(todo))
        with ThreadPoolExecutor(workers) as pool:
            try:
                verdicts = list(pool.map(lambda one: self._sandbox.run(*one), todo))
            except BaseException:
                self._sandbox.stop.set()  # Ctrl-C: end what runs, start no more
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._verdicts.update(zip(todo, verdicts, strict=True))

    def pass_at_k(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
    ) -> dict[str, float]:
        """The chance that one of k programs passes, estimated from n; mean over problems.

        Unbiased: 1 - C(n - c, k) / C(n, k) where c of n pass (Chen et al. 2021, equation 1).

        Args:
            references: tests, a text a problem.
            predictions: programs of each problem.
            k: how many may be tried.

        Raises:
            FdllmError: fewer programs than k, or they cannot be confined.
        """
        pairs = [(p, t) for t, ps in zip(references, predictions, strict=True) for p in ps]
        self.prepare(pairs)
        found: dict[str, float] = {}
        for tries in k:
            chances = []
            for tests, programs in zip(references, predictions, strict=True):
                n = len(programs)
                if tries > n:
                    raise FdllmError(
                        f"pass@{tries} needs {tries} programs a problem; there are {n}"
                    )
                c = sum(self._verdicts[program, tests].passed for program in programs)
                chances.append(1.0 - math.comb(n - c, tries) / math.comb(n, tries))
            found[f"pass@{tries}"] = sum(chances) / len(chances)
        return found

    def outcomes(self) -> dict[str, Any]:
        """How programs ended and what confined them, for the record."""
        counts = Counter(verdict.reason for verdict in self._verdicts.values())
        return {
            "confined_by": str(self._sandbox.isolation),
            "outcomes": dict(sorted(counts.items())),
        }

    def reason(self, program: str, tests: str) -> str:
        """How a program ended, in a few words."""
        verdict = self._verdicts[program, tests]
        return f"{verdict.reason} {verdict.detail}".strip()

    def take_over(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """The harness's definition, its functions replaced by ours.

        Args:
            definition: read without importing functions, which stand in it as paths.

        Raises:
            FdllmError: it names a function that we have none for.
        """

        # The harness copies its configuration deeply: functions as they are, methods with all
        # that they belong to.
        def pass_at_k(
            references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
        ) -> dict[str, float]:
            return self.pass_at_k(references, predictions, k)

        ours: dict[str, Callable[..., Any]] = {
            "pass_at_k": pass_at_k,
            "build_predictions": build_predictions,
        }

        def replaced(value: Any) -> Any:  # noqa: ANN401 - a YAML value
            if isinstance(value, Mapping):
                return {key: replaced(item) for key, item in value.items()}
            if isinstance(value, list):
                return [replaced(item) for item in value]
            if isinstance(value, str) and Path(value).is_absolute():
                module, _, name = value.rpartition(".")
                if Path(module).name == "utils":
                    if name not in ours:
                        raise FdllmError(
                            f"the harness's definition uses {value}, which fdllm has no safe form "
                            "of; install the pinned lm-eval"
                        )
                    return ours[name]
            return value

        return {key: replaced(value) for key, value in definition.items()}


def build_predictions(
    resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    """The program of every response: the prompt it continues, and the response."""
    return [
        [str(doc["prompt"]) + response for response in responses]
        for responses, doc in zip(resps, docs, strict=True)
    ]
