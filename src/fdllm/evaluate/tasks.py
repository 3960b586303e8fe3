"""The tasks, each with its headline metric: named here, never guessed. No torch, no harness."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fdllm import tiny
from fdllm.errors import FdllmError, UsageError, did_you_mean
from fdllm.plan import TaskFacts
from fdllm.record.identity import code_files
from fdllm.runs import Instruction

_PASS, _CANONICAL = "pass@1,create_test", "canonical_solution"
_HUMANEVAL, _MBPP = "openai/openai_humaneval", "google-research-datasets/mbpp"
_MBPP_PLUS = "evalplus/mbppplus"
# lm-eval also names base files "_default_template_yaml", without a suffix.
_DEFINITIONS = ("*.yaml", "*.yml", "*.py", "*.jsonl", "*.json", "*_yaml")


@dataclass(frozen=True)
class TaskInfo:
    """What the project knows of a task."""

    name: str  # the harness's name of the task or group
    # ``generate`` writes text, ``loglikelihood`` ranks choices
    kind: Literal["generate", "loglikelihood"]
    # the key of the figure that goes into a table, as the harness writes it: ``metric,filter``
    headline: str
    # new tokens a row may have (1 where nothing is generated): room enough that a right answer is
    # never cut. A limit in the task's own definition takes precedence.
    max_new_tokens: int
    description: str  # one line for people
    # where the documents live on the Hub; None where they are in the package
    dataset: str | None = None
    # files and folders of the definition, inside the harness's ``tasks``, or inside the package's
    # own where ``dataset`` is None
    sources: tuple[str, ...] = ()
    # whether the Hub asks for a token and for agreement to the dataset's conditions
    gated: bool = False
    cluster_by: str | None = None  # ``subject`` where the task is a group of subjects
    # whether its choices are letters: one token each, so that ``chain`` scores them in one forward
    one_token: bool = False
    # whether its metric runs programs that the model wrote, so that it needs consent
    runs_code: bool = False
    # field of a document that holds a text which is scored as right; an oracle answers with it.
    # None where the target itself is such a text.
    solution: str | None = None
    # field of a document with the answer that ``boxed_match`` compares a box with; None where no
    # box is asked for
    boxed: str | None = None
    is_usual: bool = True  # whether it is meant where no task is named; variants of a task are not


_ALL = (
    TaskInfo(
        "tiny_arithmetic",
        "generate",
        "exact_match,strict-match",
        56,
        "step-by-step sums, for the embedded model",
        sources=("tiny_arithmetic.yaml", "rows.py", "arithmetic.jsonl"),
        solution="answer",
    ),
    TaskInfo(
        "tiny_choice",
        "loglikelihood",
        "acc,none",
        1,
        "which result is right, for the embedded model",
        sources=("tiny_choice.yaml", "rows.py", "choice.jsonl"),
    ),
    TaskInfo(
        "gsm8k",
        "generate",
        # The published prompt asks for \boxed{}, so "#### n" (strict-match) never comes; the
        # published evaluation reads the last number.
        "exact_match,flexible-extract",
        2048,
        "grade school mathematics",
        dataset="openai/gsm8k",
        sources=("gsm8k",),
        boxed="answer",
    ),
    TaskInfo(
        "minerva_math",
        "generate",
        # exact_match looks for "Final Answer: The final answer is", which the published prompt
        # does not ask for; math_verify reads \boxed{}.
        "math_verify,none",
        2048,
        "competition mathematics, 7 subjects",
        dataset="EleutherAI/hendrycks_math",
        sources=("minerva_math", "benchmarks/minerva_math.yaml"),
        cluster_by="subject",
        solution="solution",
        boxed="solution",
    ),
    TaskInfo(
        "mmlu",
        "loglikelihood",
        "acc,none",
        1,
        "multiple choice, 57 subjects",
        dataset="cais/mmlu",
        sources=("mmlu/default",),
        cluster_by="subject",
        one_token=True,
    ),
    TaskInfo(
        "gpqa_main_n_shot",
        "loglikelihood",
        # All choices are three characters long, so acc_norm (log-likelihood by length) ranks them
        # exactly as acc does; acc is the figure that stands beside MMLU's.
        "acc,none",
        1,
        "graduate-level multiple choice",
        dataset="Idavidrein/gpqa",
        sources=("gpqa/n_shot",),
        gated=True,
    ),
    TaskInfo(
        "ifeval",
        "generate",
        "prompt_level_strict_acc,none",
        1280,
        "instructions that a program can check",
        dataset="google/IFEval",
        sources=("ifeval",),
    ),
)


def _code(
    name: str, headline: str, dataset: str, solution: str, *sources: str, is_usual: bool = False
) -> TaskInfo:
    """A task of programs: the sources lie in the folder that the name begins with."""
    folder = name.partition("_")[0]
    return TaskInfo(
        name,
        "generate",
        headline,
        1024,
        "Python functions, run against tests",
        dataset=dataset,
        sources=tuple(f"{folder}/{source}" for source in (f"{name}.yaml", *sources, "utils.py")),
        runs_code=True,
        solution=solution,
        is_usual=is_usual,
    )


_CODE = (
    _code("humaneval", _PASS, _HUMANEVAL, _CANONICAL, is_usual=True),
    _code("humaneval_instruct", _PASS, _HUMANEVAL, _CANONICAL, "humaneval.yaml"),
    _code("humaneval_plus", _PASS, "evalplus/humanevalplus", _CANONICAL, "humaneval.yaml"),
    _code("mbpp", "pass_at_1,none", _MBPP, "code"),
    _code("mbpp_instruct", "pass_at_1,extract_code", _MBPP, "code"),
    _code("mbpp_plus", "pass_at_1,none", _MBPP_PLUS, "code", "mbpp.yaml"),
    _code("mbpp_plus_instruct", "pass_at_1,extract_code", _MBPP_PLUS, "code", "mbpp_instruct.yaml"),
)

TASKS: dict[str, TaskInfo] = {info.name: info for info in (*_ALL, *_CODE)}


def task_info(name: str) -> TaskInfo:
    """Look a task up.

    Raises:
        UsageError: there is none of that name; the message lists all and names the nearest.
    """
    if name in TASKS:
        return TASKS[name]
    hint = did_you_mean(name, TASKS)
    raise UsageError(f"unknown task '{name}'{hint}; tasks are {', '.join(TASKS)}")


# --- prompts of the published evaluation, where they are not the harness's ------------------------

STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."
r"""The published figures of GSM8K and MATH were measured with the harness's prompt, its cue
("Answer:", "Solution:") replaced by this: at every occurrence in the whole prompt, also inside a
question or a worked answer. By default only the cue itself is replaced, the words a question ends
with. Either way every logged prompt is the one the model read. The braces are single: an earlier
system sent ``\boxed{{}}`` (a format string that nobody formatted), which is another prompt."""


@dataclass(frozen=True)
class PromptRule:
    """Replace the words a question ends with; part of a task's definition hash."""

    ending: str  # what the harness's text of a document ends with
    instruction: str  # what stands there instead
    everywhere: bool = False  # whether it stands in for every other occurrence in a prompt too

    def apply(self, text: str) -> str:
        """The text of a document as it is sent.

        Raises:
            FdllmError: the text does not end with ``ending``: the harness's definition is another
                than this rule was written for.
        """
        if not text.endswith(self.ending):
            raise FdllmError(
                f"the harness's prompt ends with {text[-40:]!r} and not with {self.ending!r}; this "
                "version of lm-eval words the task differently: install the pinned one"
            )
        if self.everywhere:
            return self.apply_everywhere(text)
        return text.removesuffix(self.ending) + self.instruction

    def apply_everywhere(self, prompt: str) -> str:
        """A whole prompt, every occurrence replaced."""
        return prompt.replace(self.ending, self.instruction)


PROMPT_RULES = {
    "gsm8k": PromptRule("Answer:", STEP_BY_STEP),
    "minerva_math": PromptRule("Solution:", STEP_BY_STEP),
}
"""Rules by task; every other task is sent as the harness words it."""


def prompt_rule(task: str, instruction: Instruction) -> PromptRule | None:
    """The rule for a task's prompts; None where they are the harness's."""
    rule = PROMPT_RULES.get(task)
    if rule is None or instruction == "none":
        return None
    return replace(rule, everywhere=instruction == "everywhere")


# --- definitions ----------------------------------------------------------------------------------


def definition_paths(name: str) -> tuple[Path, ...]:
    """Files and folders that define a task, found without importing the harness.

    Raises:
        UsageError: the task is unknown.
        FdllmError: the harness is not installed, or of a version that lacks the task.
    """
    info = task_info(name)
    if info.dataset is None:
        return tuple(tiny.TASKS / source for source in info.sources)
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise FdllmError(
            f"task '{name}' is defined by lm-eval, which is not installed; install fdllm with its "
            "dependencies (pip install fdllm)"
        )
    root = Path(next(iter(spec.submodule_search_locations))) / "tasks"
    paths = tuple(root / source for source in info.sources)
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise FdllmError(
            f"the installed lm-eval has no {', '.join(absent)}; task '{name}' needs the pinned "
            "version"
        )
    return paths


def definition_hash(name: str) -> str:
    """SHA-256 over all that defines a task: its files' names and bytes, and our prompt rule.

    The rows of embedded tasks count; those of Hub datasets have a fingerprint of their own
    (:attr:`fdllm.evaluate.recording.Evaluation.dataset`).

    Raises:
        UsageError: the task is unknown.
        FdllmError: its definition is not on this machine.
    """
    digest = hashlib.sha256()
    for root in definition_paths(name):
        for path in [root] if root.is_file() else code_files(root, *_DEFINITIONS):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root.parent).as_posix()} {content}\n".encode())
    digest.update(repr(PROMPT_RULES.get(name)).encode())
    return digest.hexdigest()


def task_facts(name: str) -> TaskFacts:
    """What planning needs to know of a task.

    Raises:
        UsageError: it is unknown.
    """
    info = task_info(name)
    return TaskFacts(info.kind, definition_hash(name), info.max_new_tokens, info.one_token)
