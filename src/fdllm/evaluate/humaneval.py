"""humaneval's and mbpp's metric: programs that the model wrote, run in the sandbox. No harness.

The harness's definitions stay as they are, but for the functions of their ``utils.py``: those
modules fetch and execute a metric from the Hub when they are imported, and the metric would run the
programs next to the model, with the user's token in reach. Ours mean the same; where a chat
template wraps the prompts, the program is looked for in the reply.

A model without a chat template continues the prompt: its text is the function's body. A chat model
answers: with a fenced block, with the whole function, with prose around either. Nothing of a reply
is parsed as Python or run outside the sandbox.
"""

from __future__ import annotations

import ast
import math
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.tasks import TaskInfo
from fdllm.runs import CodeExecution
from fdllm.sandbox.confinement import ProgramResult, Sandbox

Replies = Sequence[Sequence[str]]
_MOST_AT_ONCE = 16
_LOOK_S = 0.5
# A fence that names a language and ends its line opens a block, whatever is open already.
_FENCE = re.compile(r"```(?:([\w+#.-]+)[ \t]*(?=\n|\Z))?")
_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")

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

    Attributes:
        form: ``completion`` where a text continues its prompt, ``instruct`` where the program is
            looked for in it; set by :meth:`take_over`.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.form = "completion"
        self._sandbox = sandbox
        self._verdicts: dict[tuple[str, str], ProgramResult] = {}
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
        """Run programs, each with its tests, ahead of :meth:`pass_at_k`.

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
                running = {pool.submit(self._sandbox.run, *one): one for one in todo}
                waiting = set(running)
                while waiting:
                    # A signal may arrive in another thread, and does not wake one that waits.
                    done, waiting = wait(waiting, _LOOK_S, FIRST_COMPLETED)
                    for one in done:
                        self._verdicts[running[one]] = one.result()
            except BaseException:
                self._sandbox.stop.set()  # Ctrl-C: end what runs, start no more
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def pass_at_k(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
    ) -> dict[str, float]:
        """The chance that one of k programs passes, estimated from n; mean over problems.

        Unbiased: 1 - C(n - c, k) / C(n, k) where c of n pass (Chen et al. 2021, equation 1).
        ``references`` are tests, a text a problem; ``predictions`` are programs of each.

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
        """Where programs were found, how they ended and what confined them, for the record."""
        counts = Counter(verdict.reason for verdict in self._verdicts.values())
        return {
            "form": self.form,
            "confined_by": str(self._sandbox.isolation),
            "outcomes": dict(sorted(counts.items())),
        }

    def reason(self, program: str, tests: str) -> str:
        """How a program ended, in a few words."""
        verdict = self._verdicts[program, tests]
        return f"{verdict.reason} {verdict.detail}".strip()

    def take_over(self, definition: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
        """The harness's definition, its functions replaced by ours.

        Args:
            definition: read without importing functions, which stand in it as paths.
            chat: whether a chat template wraps the prompts: the program is then looked for in the
                reply, and stop strings that would cut a function off are dropped.

        Raises:
            FdllmError: it names a function that we have none for.
        """
        ours = self._functions()

        def replaced(value: Any) -> Any:  # noqa: ANN401 - a YAML value
            if isinstance(value, Mapping):
                return {key: replaced(item) for key, item in value.items()}
            if isinstance(value, list):
                return [replaced(item) for item in value]
            if isinstance(value, str) and Path(value).is_absolute():
                name = "/".join(Path(value).parts[-2:])
                if name == "mbpp/utils.list_fewshot_samples":
                    return _returned(value)
                if name in ours:
                    return ours[name]
                if "/utils." in name:
                    raise FdllmError(
                        f"the harness's definition uses {value}, which fdllm has no safe form of; "
                        "install the pinned lm-eval"
                    )
            return value

        found: dict[str, Any] = {key: replaced(value) for key, value in definition.items()}
        begins_program = bool(found.get("gen_prefix"))
        self.form = "instruct" if chat or begins_program else "completion"
        if not begins_program:
            extract = {"function": "custom", "filter_fn": answered if chat else completed}
            name = found.get("filter_list", [{"name": "none"}])[0]["name"]
            found["filter_list"] = [{"name": name, "filter": [extract]}]
        if chat:
            asked = found["generation_kwargs"]
            until = [text for text in asked["until"] if not text.startswith("\n")]
            found["generation_kwargs"] = asked | {"until": until}
        return found

    def _functions(self) -> dict[str, Callable[..., Any]]:
        """Ours for the harness's, by folder, module and name."""

        # The harness copies its configuration deeply: functions as they are, methods with all
        # that they belong to.
        def pass_at_k(
            references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
        ) -> dict[str, float]:
            return self.pass_at_k(references, predictions, k)

        def pass_at_1(references: Sequence[str], predictions: Sequence[Sequence[str]]) -> float:
            return self.pass_at_k(references, predictions, [1])["pass@1"]

        return {
            "humaneval/utils.pass_at_k": pass_at_k,
            "humaneval/utils.build_predictions": completed,
            "humaneval/utils.build_predictions_instruct": begun,
            "mbpp/utils.pass_at_1": pass_at_1,
            "mbpp/utils.build_predictions": begun,
        }


def _returned(function: str) -> Any:  # noqa: ANN401 - a literal of a harness module
    """What a function of a module returns, where that is a literal; nothing of it is executed."""
    module, _, name = function.rpartition(".")
    tree = ast.parse(Path(f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            body = node.body[-1]
            if isinstance(body, ast.Return) and body.value is not None:
                return ast.literal_eval(body.value)
    raise FdllmError(f"{function} returns no literal; install the pinned lm-eval")


# --- the program in a reply -----------------------------------------------------------------------


def fenced_blocks(reply: str) -> list[str]:
    """What stands between fences, in order; a last block may lack its closing fence."""
    blocks, opened = [], None
    for fence in _FENCE.finditer(reply):
        if opened is not None:
            blocks.append(reply[opened : fence.start()])
        opened = fence.end() if opened is None or fence[1] else None
    if opened is not None:
        blocks.append(reply[opened:])
    return [block.lstrip(" \t").removeprefix("\n") for block in blocks if block.strip()]


def program_of(reply: str, doc: Mapping[str, Any]) -> str:
    """The program that a reply answers a document with.

    The last fenced block that defines the function; else a block, or a text ahead of all blocks,
    that is the function's body; else the whole reply. It stands behind the document's own code
    (its imports and helpers), where there is some. The document is humaneval's (``prompt``,
    ``entry_point``) or mbpp's (``test_list``).
    """
    ahead, names = _code_ahead(doc), _functions(doc)
    blocks = fenced_blocks(reply)
    defines = re.compile(
        rf"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+(?:{names})\b|(?:{names})[ \t]*=)", re.MULTILINE
    )
    for block in reversed(blocks):
        if defines.search(block):
            return ahead + textwrap.dedent(block)
    if not blocks:
        return ahead + reply
    bodies = [text for text in (reply.partition("```")[0], *blocks) if _is_indented(text)]
    if bodies or not ahead:
        return ahead + (bodies or blocks)[0]
    return ahead + textwrap.indent(blocks[0], "    ")


def completed(replies: Replies, docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The programs of texts that continue their prompts: the harness's ``build_predictions``."""
    return [
        [_code_ahead(doc) + reply for reply in row] for row, doc in zip(replies, docs, strict=True)
    ]


def answered(replies: Replies, docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The programs of a chat model's replies."""
    return [
        [program_of(reply, doc) for reply in row] for row, doc in zip(replies, docs, strict=True)
    ]


def begun(replies: Replies, docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The programs of replies to a prompt that ends in an open fence (``*_instruct``)."""
    return answered([["```python\n" + reply for reply in row] for row in replies], docs)


def _code_ahead(doc: Mapping[str, Any]) -> str:
    """Code that a document's prompt consists of; mbpp's prompts are prose."""
    return str(doc["prompt"]) if "entry_point" in doc else ""


def _functions(doc: Mapping[str, Any]) -> str:
    """The names of the functions that a document's tests call, as a pattern."""
    if "entry_point" in doc:
        return re.escape(str(doc["entry_point"]))
    return "|".join(sorted(set(_CALLED.findall("\n".join(doc["test_list"])))))


def _is_indented(text: str) -> bool:
    return text.strip() != "" and text.lstrip("\n")[:1] in (" ", "\t")
