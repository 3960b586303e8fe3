"""``config.json``, typed: each key that changes the mathematics is honoured or refused by name.

What is not named here cannot change them (dropout, initialisation, caching, the library's version)
and passes. Adding a key is adding a field, or a line of ``_ALONE``. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from fdllm.core.model_spec import ModelSpec
from fdllm.spec import Spec, short

_MOST = (1 << 63) - 1
_Size = Annotated[int, Field(ge=1, le=_MOST)]
_Token = Annotated[int, Field(ge=0, le=_MOST)]
_LARGEST_THETA = 1e30
_Theta = Annotated[float, Field(gt=0.0, lt=_LARGEST_THETA, allow_inf_nan=False)]
DEFAULT_THETA = 1e4
"""Base of the rotary embedding where none is named: the architecture's own default."""
_KINDS = {
    "model_type": re.compile(r"Fast_dLLM\w*|qwen2"),
    "architectures": re.compile(r"(Fast_dLLM\w*|Qwen2)ForCausalLM"),
}
_LONGEST = 1 << 20  # positions; the published checkpoints have 32,768

# The only values under which the mathematics are those of docs/algorithm.md 3, beside null and the
# key's absence. Other architectures have these keys, and weights of the same names.
_ALONE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "attention_bias": (True,),
    "qkv_bias": (True,),
    "attention_out_bias": (False,),
    "mlp_bias": (False,),
    "use_bias": (False,),
    "lm_head_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rotary_pct": (1, 1.0),
    "use_dynamic_ntk": (False,),
    "use_logn_attn": (False,),
    "use_mrope": (False,),
    "alibi": (False,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "position_embedding_type": ("rope", "rotary"),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "qk_layernorm": (False,),
    "clip_qkv": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logits_soft_cap": (),
    "query_pre_attn_scalar": (),
    "attention_multiplier": (),
    "residual_multiplier": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "scale_embeddings": (False,),
    "scale_emb": (1, 1.0),
    "attention_chunk_size": (),
    "dual_chunk_attention_config": (),
    "attention_sinks": (False, 0),
    "parallel_attn": (False,),
    "use_parallel_residual": (False,),
    "norm_type": ("rms_norm", "rmsnorm"),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "text_config": (),
    "vision_config": (),
    "quantization_config": (),
    "compression_config": (),
}


class HubConfig(Spec):
    """The keys that are honoured, under the Hub's names; :meth:`read` tells of wrong ones."""

    # Strict: a width as text is a mistake, not a number.
    model_config = ConfigDict(extra="ignore", strict=True)

    vocab_size: _Size
    hidden_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size | None = None
    intermediate_size: _Size
    head_dim: _Size | None = None
    max_position_embeddings: Annotated[int, Field(ge=1, le=_LONGEST)] = 32768
    rope_theta: _Theta | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    rms_norm_eps: float = Field(1e-6, gt=0.0, lt=1.0, allow_inf_nan=False)
    tie_word_embeddings: bool = False
    use_sliding_window: bool | None = None
    sliding_window: int | None = None
    max_window_layers: int | None = None
    layer_types: list[str] | None = None
    bd_size: _Size | None = None
    mask_token_id: _Token | None = None
    pad_token_id: _Token | None = None
    eos_token_id: tuple[int, ...] = ()

    @property
    def theta(self) -> float:
        """Base of the rotary embedding, whichever key names it."""
        return max(self._thetas(), default=DEFAULT_THETA)

    @field_validator("eos_token_id", mode="before")
    @classmethod
    def _several(cls, value: object) -> tuple[int, ...]:
        return end_tokens(value)

    @model_validator(mode="before")
    @classmethod
    def _of_this_architecture(cls, data: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        for key, form in _KINDS.items():
            value = data.get(key) or []
            for one in value if isinstance(value, list) else [value]:
                if not isinstance(one, str) or not form.fullmatch(one):
                    raise ValueError(
                        f"'{key}' is {_short(one)}; Qwen2.5's architecture is needed, with blocks "
                        "(Fast_dLLM_Qwen) or without (qwen2)"
                    )
        for key, alone in _ALONE.items():
            value = data.get(key)
            if value is not None and not any(value == one for one in alone):
                allowed = " or ".join(map(repr, dict.fromkeys(alone)))
                raise ValueError(
                    f"'{key}' is {_short(value)}, which this architecture (Qwen2.5 with blocks) "
                    f"does not have; {f'only {allowed}' if allowed else 'only null'} can be loaded"
                )
        return data

    @model_validator(mode="after")
    def _fit(self) -> Self:
        heads = self.num_attention_heads
        kv_heads = self.num_key_value_heads or heads
        if self.hidden_size % heads or heads % kv_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size}, {heads} query heads and {kv_heads} key/value "
                "heads do not divide"
            )
        width = self.hidden_size // heads
        if self.head_dim not in (None, width) or width % 2:
            raise ValueError(
                f"'head_dim' is {self.head_dim or width}; an even hidden_size / "
                f"num_attention_heads is needed, and that is {self.hidden_size} / {heads}"
            )
        for rope in self._ropes():
            _check_rope(rope)
        if len(self._thetas()) > 1:
            raise ValueError(
                f"'rope_theta' is {' and '.join(f'{one:g}' for one in sorted(self._thetas()))} "
                "here and in the rope parameters; one of them must go"
            )
        self._check_window()
        return self

    def _ropes(self) -> list[dict[str, Any]]:
        return [rope for rope in (self.rope_parameters, self.rope_scaling) if rope]

    def _thetas(self) -> set[float]:
        named = (self.rope_theta, *(rope.get("rope_theta") for rope in self._ropes()))
        return {float(one) for one in named if one is not None}

    def _check_window(self) -> None:
        kinds = self.layer_types
        if kinds is not None and set(kinds) != {"full_attention"}:
            raise ValueError(
                f"'layer_types' names {_short(sorted(set(kinds)))}; only 'full_attention' of "
                "every layer can be loaded"
            )
        if kinds is not None and len(kinds) != self.num_hidden_layers:
            raise ValueError(
                f"'layer_types' names {len(kinds)} layers, and num_hidden_layers is "
                f"{self.num_hidden_layers}"
            )
        full = 28 if self.max_window_layers is None else self.max_window_layers  # Qwen2's default
        sliding = self.use_sliding_window and full < self.num_hidden_layers and kinds is None
        if sliding:
            raise ValueError(
                f"'use_sliding_window' is true for layers {full} .. {self.num_hidden_layers - 1}; "
                "only full attention can be loaded"
            )


def spec_of(config: Mapping[str, Any], where: str) -> ModelSpec:
    """The shape that a parsed ``config.json`` tells.

    Args:
        config: the file's keys.
        where: what to call it in an error.

    Raises:
        UsageError: a key is missing or wrong, or asks for other mathematics; it is named.
    """
    given = HubConfig.read(config, where)
    return ModelSpec(
        vocab_size=given.vocab_size,
        hidden_size=given.hidden_size,
        num_layers=given.num_hidden_layers,
        num_heads=given.num_attention_heads,
        num_kv_heads=given.num_key_value_heads or given.num_attention_heads,
        intermediate_size=given.intermediate_size,
        max_positions=given.max_position_embeddings,
        rope_theta=given.theta,
        rms_norm_eps=given.rms_norm_eps,
        tie_embeddings=given.tie_word_embeddings,
        block_size=given.bd_size or ModelSpec.block_size,
        block_is_fixed=given.bd_size is not None,
        mask_id=given.mask_token_id,
        stop_tokens=given.eos_token_id,
        pad_id=given.pad_token_id,
    )


def end_tokens(value: object) -> tuple[int, ...]:
    """One token, several or none, as ``eos_token_id`` has them.

    Raises:
        ValueError: it is anything else.
    """
    several = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in several):
        raise ValueError("Input should be a token id or a list of them")
    return tuple(several)


def _check_rope(rope: dict[str, Any]) -> None:
    """Refuse a rotary embedding other than the plain one."""
    kinds = {rope[key] for key in ("rope_type", "type") if isinstance(rope.get(key), str)}
    others = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if kinds - {"default"} or others or rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(
            f"'rope_scaling' or 'rope_parameters' is {_short(rope)}; only the type 'default', with "
            "a rope_theta and nothing else, can be loaded"
        )
    theta = rope.get("rope_theta")
    number = isinstance(theta, int | float) and not isinstance(theta, bool)
    if theta is not None and not (number and 0 < theta < _LARGEST_THETA):
        raise ValueError(f"'rope_theta' of the rope parameters is {_short(theta)}; it must be > 0")


def _short(value: object) -> str:
    return short(repr(value))
