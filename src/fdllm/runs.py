"""What a sweep is made of: models, cells, how a task is asked, runs. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fdllm import tiny
from fdllm.core.config import BatchSize, Decoding, Estimator, Subset
from fdllm.presets import Preset
from fdllm.spec import Spec

Instruction = Literal["ending", "everywhere", "none"]  # see fdllm.evaluate.tasks
CodeExecution = Literal["refused", "confined", "readable"]  # see fdllm.sandbox.support
CONFIG_NAME = re.compile(r"^k(?P<k>[1-9]\d*)_(?P<subset>first|middle|last)$")
CELL_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
DEFAULT_MODEL = "Efficient-Large-Model/Fast_dLLM_v2_7B"
TINY_MODEL = "tiny"
FEWSHOT_SEED = 1234  # lm_eval.simple_evaluate draws worked examples with it


FREE = ("batch_size", "score_batch_size", "prefix_cache_gib", "compile")
"""What of :class:`Evaluating` changes no answer, and is no part of an identity."""


class Cell(Spec):
    """One config of an experiment's grid."""

    name: str  # its folder and flag; ``k2_middle`` where the grid is periods by subsets
    k: int = Field(1, ge=1)  # reuse period
    subset: Subset = "first"  # which layers
    # parameters of the strategy, on top of the experiment's
    params: dict[str, Any] = Field(default_factory=dict)
    # decoding settings that differ from the experiment's
    decoding: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _name_fits(self) -> Self:
        if not CELL_NAME.match(self.name):
            raise ValueError("a config's name is letters, digits and . _ + - (it names a folder)")
        if self.name == "timing":
            raise ValueError("no config may be named timing: the timing study's folder is")
        match = CONFIG_NAME.match(self.name)
        if match and (int(match["k"]), match["subset"]) != (self.k, self.subset):
            raise ValueError(f"the name says {self.name}, the values k={self.k}, {self.subset}")
        return self

    @classmethod
    def of(cls, k: int, subset: Subset, suffix: str = "") -> Cell:
        """The cell of a period and a subset, named after both and what else varies."""
        return cls(name=f"k{k}_{subset}{suffix}", k=k, subset=subset)


class ModelChoice(Spec):
    """Which checkpoint, and where it computes."""

    name: str = DEFAULT_MODEL  # ``tiny``, a folder, or a Hub id
    revision: str | None = None  # branch, tag or commit of a Hub id; None is its main branch
    # ``auto``, ``float32``, ``bfloat16`` or ``float16``
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"  # ``auto``, ``cpu``, ``cuda``, ``cuda:N``


class Evaluating(Spec):
    """How a task is asked; the ``[evaluation]`` table of ``experiment.toml``."""

    # what the experiment runs; None takes the model's own list
    tasks: tuple[str, ...] | None = None
    num_fewshot: int = Field(0, ge=0)  # worked examples ahead of each question
    chat_template: bool = True  # whether the model's chat template wraps the prompt
    # under a chat template each worked example is a turn of its own; else all of them stand in the
    # question's
    fewshot_as_multiturn: bool = True
    # where the step-by-step sentence stands in for a task's cue ("Answer:" of gsm8k, "Solution:" of
    # minerva_math): ``ending``, once, behind each question and worked example; ``everywhere``, at
    # every occurrence in the whole prompt, as the published evaluation has it; ``none`` sends the
    # harness's own words
    instruction: Instruction = "ending"
    ignore_until: bool = False  # a task's own strings that end a text are not looked for
    # ``max_new_tokens`` of the decoding settings holds for every task, whatever its definition
    # says, and a text ends with a block: ``max_new_tokens - len(prompt) % block_size`` new tokens
    # at most
    whole_blocks: bool = False
    # name of the one token that ends a text; None takes those of the checkpoint, or ``stop_token``
    # of the decoding settings
    stop_token: str | None = None
    # prompt and answer together, at most, where an answer is scored; a longer one is an error. None
    # is what the model holds.
    max_prompt_tokens: int | None = Field(None, ge=1)
    # figure that goes into tables, ``metric,filter``; None takes the task's
    headline: str | None = None
    # rows at once where text is generated, or ``auto``: as many as memory holds. It changes no
    # answer and is no part of an identity; nor are the next three.
    batch_size: BatchSize = 1
    score_batch_size: BatchSize = 16  # the same where answers are scored
    # memory for prompt blocks that scored requests share; 0 shares none
    prefix_cache_gib: float = Field(1.0, ge=0.0)
    compile: bool | None = None  # C kernels on a CPU, CUDA graphs on a GPU; None takes what pays
    scoring: Estimator = "denoise"  # the log-likelihood estimator
    # seed of the choice of worked examples; the default is the harness's, so that a prompt is the
    # one that everybody else sends. Sampling has another, see :class:`Decoding`.
    fewshot_seed: int = FEWSHOT_SEED
    allow_invalid: bool = False  # accept an estimator that the task makes meaningless, and say so

    def changed(self, values: dict[str, Any]) -> Evaluating:
        """The same with other values, which are checked."""
        return Evaluating.read(self.model_dump(exclude_unset=True) | values, "[evaluation]")

    def identity(self) -> dict[str, str]:
        """Fingerprint fields: what of it may change an answer or a figure, the estimator apart."""
        own = ("num_fewshot", "fewshot_seed", "chat_template")
        rest = ("fewshot_as_multiturn", "headline", "ignore_until", "instruction",
                "max_prompt_tokens", "stop_token", "whole_blocks")  # fmt: skip
        asking = ", ".join(f"{name}={getattr(self, name)}" for name in rest)
        return {name: str(getattr(self, name)) for name in own} | {"asking": asking}

    @property
    def turns(self) -> bool:
        """Whether worked examples are turns of a chat."""
        return self.chat_template and self.fewshot_as_multiturn


class Run(Spec):
    """One run: all that decides it, before it starts."""

    experiment: str  # folder under ``experiments/``
    task: str  # a name that :func:`fdllm.evaluate.tasks.task_info` knows
    cell: Cell  # the config
    model: ModelChoice = ModelChoice()  # the checkpoint
    limit: int | None = Field(None, ge=1)  # documents of each leaf task at most; None is all
    decoding: Decoding = Decoding()  # settings, the cell's overrides applied
    evaluating: Evaluating = Evaluating()  # how the task is asked
    subset_size: int | None = None  # layers of the subset
    # the strategy's parameters, the cell's applied
    params: dict[str, Any] = Field(default_factory=dict)
    # name of the protocol it follows; None where it is the experiment's own
    preset: str | None = None
    departures: tuple[str, ...] = ()  # flags that stand over the preset, as ``scoring=denoise``
    # where the preset differs from its evaluation all the same; said, and no part of an identity
    exceptions: tuple[str, ...] = ()
    # consent to run code that the model writes; no part of an identity
    code_execution: CodeExecution = "refused"
    # a folder with definitions of the user's tasks. What defines this run's task is part of its
    # identity, where it lies is not.
    include: Path | None = None

    @property
    def preset_words(self) -> str:
        """The preset as tables name it, with what stands over it; ``none`` where there is none."""
        return ", but ".join([self.preset or "none", *self.departures])

    def __str__(self) -> str:
        limit = "" if self.limit is None else f" (limit {self.limit})"
        preset = "" if self.preset is None else f" (preset {self.preset_words})"
        return f"{self.experiment} / {self.task}{limit}{preset} / {self.cell.name}"


class Sweep(Spec):
    """The runs of a grid, as asked for on the command line."""

    experiment: str  # folder under ``experiments/``
    tasks: tuple[str, ...] = Field(min_length=1)  # one or more
    configs: tuple[str, ...] = ()  # names of the cells; empty is the whole grid
    model: ModelChoice = ModelChoice()  # the checkpoint
    limit: int | None = Field(None, ge=1)  # documents of each leaf task at most; None is all
    evaluating: Evaluating = Evaluating()  # how the experiment asks its tasks
    preset: Preset | None = None  # the protocol that stands over the experiment's settings, or None
    # what was asked for by flags: keys of :class:`Evaluating`, over everything else
    flags: dict[str, Any] = Field(default_factory=dict)
    code_execution: CodeExecution = "refused"  # consent to run code that the model writes
    include: Path | None = None  # a folder with definitions of the user's tasks

    def asked(self, task: str) -> Evaluating:
        """How a task is asked: as the experiment does, under the preset, under the flags."""
        return self._under_preset(task).changed(self.flags)

    def departures(self, task: str) -> tuple[str, ...]:
        """Flags that ask a task otherwise than the preset would; empty without a preset."""
        if self.preset is None:
            return ()
        own = self._under_preset(task)
        changed = {n: v for n, v in self.flags.items() if n not in FREE and getattr(own, n) != v}
        return tuple(f"{name}={value}" for name, value in sorted(changed.items()))

    def _under_preset(self, task: str) -> Evaluating:
        return self.evaluating.changed(
            {} if self.preset is None else self.preset.evaluation_of(task)
        )


def home_model(task: str) -> str:
    """The model whose records of a task lie under the task's plain name."""
    return TINY_MODEL if task in tiny.TASK_NAMES else DEFAULT_MODEL
