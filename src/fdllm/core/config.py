"""How a row is decoded, and what a strategy is built from. No torch.

A TOML file, a command line and Python code are checked by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fdllm.core.subsets import subset_bounds
from fdllm.spec import Spec

Estimator = Literal["first-token", "denoise", "chain"]
Subset = Literal["first", "middle", "last"]
Unmask = Callable[[Sequence[float], float], list[int]]
"""Which masked columns to unmask, given how sure the model is of each, and the threshold: indices,
ascending, at least one. An experiment that changes unmasking supplies one."""
BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]


class Decoding(Spec):
    """How text is decoded, and how an answer is scored as the decoder would write it.

    Attributes:
        block_size: tokens decoded together.
        small_block_size: columns of a sub-block; divides ``block_size``.
        threshold: confidence above which a masked column is unmasked; 1.0: one column a step.
        use_block_cache: False forwards the whole block on every step.
        max_new_tokens: new tokens a row may have; a task's own limit takes precedence.
        stop_token: token or tokens that end a row; None takes the checkpoint's.
        mask_id: the mask token; None takes the checkpoint's.
        temperature: 0 is greedy, the published setting.
        top_p: share of the probability mass that sampling draws from.
        seed: seed of sampling; each row draws from a generator of its own.
        scoring_steps: rounds in which the ``denoise`` estimator unmasks what stands behind the
            target before it scores it.
        end_token: what the ``first-token`` estimator puts behind a target; None takes the
            tokenizer's end token.
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
    end_token: int | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.block_size % self.small_block_size:
            raise ValueError(
                f"small_block_size {self.small_block_size} must divide block_size {self.block_size}"
            )
        return self

    @property
    def words(self) -> str:
        """All settings, as a fingerprint has them."""
        return ", ".join(f"{name}={value}" for name, value in sorted(self))

    @property
    def mask(self) -> int:
        """``mask_id`` of resolved settings, see :func:`fdllm.core.engine.resolve`."""
        if self.mask_id is None:
            raise ValueError("decoding is not resolved: mask_id is None")
        return self.mask_id

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """``stop_token`` as a tuple."""
        if self.stop_token is None:
            return ()
        return self.stop_token if isinstance(self.stop_token, tuple) else (self.stop_token,)


class StrategyConfig(Spec):
    """What an experiment's ``strategy(config)`` is given.

    Attributes:
        k: reuse period.
        subset: which layers.
        n_layers: layers of the model.
        subset_size: layers of the subset; None takes docs/algorithm.md 4's default.
        params: the experiment's own parameters, from ``experiment.toml`` and the cell.
    """

    k: int = Field(ge=1)
    subset: Subset
    n_layers: int = Field(ge=2)
    subset_size: int | None = Field(None, ge=1)
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def bounds(self) -> tuple[int, int]:
        """First layer of the subset, and one past its last.

        Raises:
            UsageError: the size does not fit the model.
        """
        return subset_bounds(self.subset, self.n_layers, self.subset_size)
