"""Frozen specifications: what is decided before a run. Unknown keys raise and list the valid ones.

No torch here. Each class is a pydantic model, so a TOML file, a command line and Python code are
checked by the same rules.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fdllm.errors import UsageError
from fdllm.reuse import SUBSETS

Estimator = Literal["first-token", "denoise"]
CONFIG_NAME = re.compile(r"^k(?P<k>[1-9]\d*)_(?P<subset>first|middle|last)$")


class Spec(BaseModel):
    """Base of every specification: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str) -> Self:
        """Check ``data`` and build the specification.

        Args:
            data: keys and values, say one table of a TOML file.
            where: what to call it in an error.

        Raises:
            UsageError: a key is unknown (with the valid ones and the nearest) or a value is wrong.
        """
        try:
            return cls(**data)
        except ValidationError as error:
            raise UsageError(f"{where}: {_explain(cls, error)}") from None


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    sentences = []
    valid = sorted(cls.model_fields)
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            sentences.append(f"unknown key '{name}'{hint}; valid keys are {', '.join(valid)}")
        else:
            given = "" if problem["type"] == "missing" else f"; got {problem['input']!r}"
            subject = f"'{name}': " if name else ""
            sentences.append(f"{subject}{problem['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(sentences)


class Decoding(Spec):
    """How text is decoded, and how an answer is scored as the decoder would write it.

    Attributes:
        block_size: tokens decoded together.
        small_block_size: columns of a sub-block; divides ``block_size``.
        threshold: confidence above which a masked column is unmasked; 1.0 unmasks one column a
            step.
        use_block_cache: False forwards the whole block on every step.
        max_new_tokens: new tokens a row may have; a task's own limit takes precedence.
        stop_token: token or tokens that end a row; None takes the checkpoint's.
        mask_id: the mask token; None takes the checkpoint's.
        temperature: 0 is greedy, the published setting.
        top_p: share of the probability mass that sampling draws from.
        seed: seed of sampling; each row draws from a generator of its own.
        scoring_steps: rounds in which the ``denoise`` estimator unmasks what stands behind the
            target before it scores it.
    """

    block_size: int = Field(32, ge=1)
    small_block_size: int = Field(8, ge=1)
    threshold: float = Field(0.95, ge=0.0, le=1.0)
    use_block_cache: bool = True
    max_new_tokens: int = Field(512, ge=1)
    stop_token: int | tuple[int, ...] | None = None
    mask_id: int | None = None
    temperature: float = Field(0.0, ge=0.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int = 0
    scoring_steps: int = Field(5, ge=0)

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.block_size % self.small_block_size:
            raise ValueError(
                f"small_block_size {self.small_block_size} must divide block_size "
                f"{self.block_size}"
            )
        return self

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """``stop_token`` as a tuple."""
        if self.stop_token is None:
            return ()
        return self.stop_token if isinstance(self.stop_token, tuple) else (self.stop_token,)


class Reuse(Spec):
    """One cell of a grid: reuse period and layer subset, written ``k2_middle``."""

    k: int = Field(ge=1)
    subset: Literal["first", "middle", "last"]

    @property
    def name(self) -> str:
        """The config's name, as folders and flags spell it."""
        return f"k{self.k}_{self.subset}"

    @classmethod
    def parse(cls, name: str) -> Reuse:
        """Read ``k2_middle``.

        Raises:
            UsageError: the name has another form.
        """
        match = CONFIG_NAME.match(name)
        if not match:
            raise UsageError(
                f"unknown config '{name}'; a config is k<period>_<subset> with subset one of "
                f"{', '.join(SUBSETS)}, for example k2_middle"
            )
        return cls(k=int(match["k"]), subset=match["subset"])  # type: ignore[arg-type]
