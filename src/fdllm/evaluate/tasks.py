"""The tasks, each with its headline metric: named here or by the user, never guessed.

Those of :data:`TASKS` are known by name; any other of the harness, or of a user's folder, by what
its YAML says (:mod:`fdllm.evaluate.task_definition`). No torch, no harness.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from fdllm import tiny
from fdllm.errors import FdllmError, UsageError, did_you_mean
from fdllm.evaluate import boxed
from fdllm.evaluate.task_definition import Definition, define, files_of
from fdllm.evaluate.task_index import harness_index, harness_tasks, own_index
from fdllm.record.identity import code_files
from fdllm.runs import Instruction
from fdllm.task_facts import TaskFacts

_PASS, _CANONICAL = "pass@1,create_test", "canonical_solution"
_HUMANEVAL, _MBPP = "openai/openai_humaneval", "google-research-datasets/mbpp"
_MBPP_PLUS, _BOXED = "evalplus/mbppplus", f"{boxed.METRIC},none"
# lm-eval also names base files "_default_template_yaml", without a suffix.
_DEFINITIONS = ("*.yaml", "*.yml", "*.py", "*.jsonl", "*.json", "*_yaml")


@dataclass(frozen=True)
class TaskInfo:
    """What the project knows of a task."""

    name: str  # the harness's name of the task or group
    # ``generate`` writes text, ``loglikelihood`` ranks choices
    kind: Literal["generate", "loglikelihood"]
    # the key of the figure that goes into a table, as the harness writes it: ``metric,filter``.
    # Empty where several could, and a user names one.
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
    # all figures that may be the headline, which is the only one where none are named
    metrics: tuple[str, ...] = ()


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
        metrics=("exact_match,flexible-extract", "exact_match,strict-match", _BOXED),
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
        metrics=("math_verify,none", "exact_match,none", _BOXED),
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
        metrics=("acc,none", "acc_norm,none"),
    ),
    TaskInfo(
        "ifeval",
        "generate",
        "prompt_level_strict_acc,none",
        1280,
        "instructions that a program can check",
        dataset="google/IFEval",
        sources=("ifeval",),
        metrics=("prompt_level_strict_acc,none", "prompt_level_loose_acc,none"),
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


_HEADLINES = dict.fromkeys(("arc_challenge", "arc_easy", "hellaswag"), "acc_norm,none")
"""Where a definition has several figures and everybody reports the same one."""
_ROOM = 1024  # new tokens where a definition says nothing


def task_info(name: str, include: Path | None = None) -> TaskInfo:
    """Look a task up.

    Args:
        name: the task, group or tag.
        include: a folder with definitions of the user's.

    Raises:
        UsageError: there is none of that name, with the nearest; or it cannot be run here.
    """
    definition = definition_of(name, include)
    if definition is None:
        return TASKS[name]
    if definition.refused:
        raise UsageError(f"task '{name}' {definition.refused}")
    return info_of(definition)


def definition_of(name: str, include: Path | None = None) -> Definition | None:
    """What a task consists of by its YAML; None where :data:`TASKS` knows it.

    Raises:
        UsageError: there is none of that name, or two.
    """
    own = {} if include is None else own_index(include)
    if name in own:
        if name in TASKS or name in harness_index():
            raise UsageError(
                f"{own[name].path or include} defines '{name}', which is the name of a task that "
                "is there without it; give yours another, so that their records lie apart"
            )
        return define(name, ChainMap({**own}, {**harness_index()}))
    if name in TASKS:
        return None
    if name in harness_index():
        return _of_harness(name)
    hint = did_you_mean(name, [*TASKS, *own, *harness_index()])
    where = "" if include is None else f"; {include} has {', '.join(sorted(own))}"
    raise UsageError(
        f"unknown task '{name}'{hint}; tasks are {', '.join(TASKS)}, and lm-eval's others: 'fdllm "
        f"tasks PATTERN' lists them; your own need --include-path{where}"
    )


@cache
def _of_harness(name: str) -> Definition:
    return define(name, harness_index())


def info_of(definition: Definition) -> TaskInfo:
    """What the YAML of a task says of it."""
    is_text = "generate_until" in definition.output_types
    figures = definition.metrics
    hub = next((name for name in definition.datasets if "/" in name), None)
    return TaskInfo(
        definition.name,
        "generate" if is_text else "loglikelihood",
        figures[0] if len(figures) == 1 else _HEADLINES.get(definition.name, ""),
        _ROOM if is_text else 1,
        f"{definition.kind} of {len(definition.leaves)}",
        dataset=hub,
        gated=hub in {info.dataset for info in TASKS.values() if info.gated},
        cluster_by="subject" if definition.kind == "group" else None,
        one_token=definition.one_token,
        is_usual=False,
        metrics=figures,
    )


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
    """Files and folders that define a task of :data:`TASKS`, found without importing the harness.

    Raises:
        UsageError: the task is unknown.
        FdllmError: the harness is not installed, or of a version that lacks the task.
    """
    info = TASKS[name]
    if info.dataset is None:
        return tuple(tiny.TASKS / source for source in info.sources)
    paths = tuple(harness_tasks() / source for source in info.sources)
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise FdllmError(
            f"the installed lm-eval has no {', '.join(absent)}; task '{name}' needs the pinned "
            "version"
        )
    return paths


def definition_hash(name: str, include: Path | None = None) -> str:
    """SHA-256 over all that defines a task: its files' names and bytes, and our prompt rule.

    The rows of embedded tasks count, and those of a user's ``data_files``; those of Hub datasets
    have a fingerprint of their own (:attr:`fdllm.evaluate.recording.Evaluation.dataset`).

    Raises:
        UsageError: the task is unknown.
        FdllmError: its definition is not on this machine.
    """
    definition = definition_of(name, include)
    digest = hashlib.sha256()
    for label, path in (_files(name) if definition is None else files_of(definition)).items():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{label} {content}\n".encode())
    digest.update(repr(PROMPT_RULES.get(name)).encode())
    return digest.hexdigest()


def _files(name: str) -> dict[str, Path]:
    """What defines a task of :data:`TASKS`, in order, by a name that holds on every machine."""
    return {
        path.relative_to(root.parent).as_posix(): path
        for root in definition_paths(name)
        for path in ([root] if root.is_file() else code_files(root, *_DEFINITIONS))
    }


def task_facts(name: str, include: Path | None = None) -> TaskFacts:
    """What planning needs to know of a task.

    Raises:
        UsageError: it is unknown, or cannot be run here.
    """
    info = task_info(name, include)
    return TaskFacts(
        info.kind,
        definition_hash(name, include),
        info.max_new_tokens,
        info.one_token,
        info.headline,
        info.metrics or (info.headline,),
    )
