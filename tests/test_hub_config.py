"""``config.json``: each key that changes the mathematics is honoured or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

import fdllm
from fdllm.checkpoint.hub_config import HubConfig, spec_of
from fdllm.errors import FdllmError
from models import MASK, SPEC, STOP, forward_all, hub_shape

SHAPE = hub_shape(replace(SPEC, num_layers=4))
OURS = {"mask_token_id": MASK, "eos_token_id": STOP}
LENGTH = 200
TOLERANCE = 1e-3  # of log p, as the cases have it

# Beside the shared cases: other members of each kind.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("linear", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("new yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters"),
    ("dynamic", {"rope_scaling": {"type": "dynamic"}}, "rope_scaling"),
    ("unnamed", {"rope_scaling": {"factor": 4.0}}, "rope_scaling"),
    ("mrope", {"rope_scaling": {"type": "default", "mrope_section": [2, 1, 1]}}, "mrope_section"),
    ("part", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("part above", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("two thetas", {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta"),
    ("theta 0", {"rope_theta": 0}, "rope_theta"),
    ("theta nan", {"rope_theta": float("nan")}, "rope_theta"),
    ("theta inf", {"rope_theta": float("inf")}, "rope_theta"),
    ("inner theta nan", {"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta"),
    ("inner theta text", {"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta"),
    ("theta text", {"rope_theta": "1e6"}, "rope_theta"),
    ("eps 0", {"rms_norm_eps": 0.0}, "rms_norm_eps"),
    ("eps nan", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("eps text", {"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
    ("relu", {"hidden_act": "relu"}, "hidden_act"),
    ("gelu_pytorch_tanh", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
    ("wider heads", {"head_dim": 16}, "head_dim"),
    ("odd heads", {"hidden_size": 20}, "head_dim"),
    ("sliding late", {"use_sliding_window": True, "max_window_layers": 3}, "use_sliding_window"),
    ("layer types", {"layer_types": ["full_attention", "sliding_attention"] * 2}, "layer_types"),
    ("short layer types", {"layer_types": ["full_attention"]}, "layer_types"),
    ("bias of o", {"attention_bias": False}, "attention_bias"),
    ("mlp bias", {"mlp_bias": True}, "mlp_bias"),
    ("soft cap", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("final soft cap", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("chunks", {"dual_chunk_attention_config": {"chunk_size": 9}}, "dual_chunk_attention_config"),
    ("scaled", {"logits_scaling": 8.0}, "logits_scaling"),
    ("awq", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ("llama", {"model_type": "llama"}, "model_type"),
    ("experts", {"model_type": "qwen2_moe"}, "model_type"),
    ("qwen3", {"architectures": ["Qwen3ForCausalLM"]}, "architectures"),
    ("classifier", {"architectures": ["Qwen2ForSequenceClassification"]}, "architectures"),
    ("kind of no text", {"model_type": 7}, "model_type"),
    ("no layers", {"num_hidden_layers": 0}, "num_hidden_layers"),
    ("half a layer", {"num_hidden_layers": 4.5}, "num_hidden_layers"),
    ("true layers", {"num_hidden_layers": True}, "num_hidden_layers"),
    ("negative width", {"intermediate_size": -48}, "intermediate_size"),
    ("null width", {"hidden_size": None}, "hidden_size"),
    ("no heads", {"num_attention_heads": 0}, "num_attention_heads"),
    ("heads", {"num_attention_heads": 3}, "do not divide"),
    ("key heads", {"num_key_value_heads": 3}, "do not divide"),
    ("positions", {"max_position_embeddings": 10**18}, "max_position_embeddings"),
    ("tied text", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ("block text", {"bd_size": "32"}, "bd_size"),
    ("mask text", {"mask_token_id": "<mask>"}, "mask_token_id"),
    ("end text", {"eos_token_id": "<|im_end|>"}, "eos_token_id"),
    ("end list", {"eos_token_id": [2, -1]}, "eos_token_id"),
    ("10^18 layers", {"num_hidden_layers": 10**18}, "num_hidden_layers 10{18}, .* are of 4"),
    ("10^18 wide", {"hidden_size": 4 * 10**18}, "tensor .* has shape"),
    ("10^18 words", {"vocab_size": 10**18}, r"config.json asks for \[10{18}, 32\]"),
]
LOADED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # name, config.json, what transformers is told in its place
    ("theta", {"rope_theta": 12345.0}, {"rope_theta": 12345.0}),
    ("inner theta", {"rope_parameters": {"rope_theta": 5e5}}, {"rope_theta": 5e5}),
    ("inner theta of scaling", {"rope_scaling": {"rope_theta": 5e5}}, {"rope_theta": 5e5}),
    ("default rope", {"rope_scaling": {"type": "default"}}, {}),
    ("null rope", {"rope_scaling": None, "rope_parameters": None}, {}),
    ("eps", {"rms_norm_eps": 1e-3}, {"rms_norm_eps": 1e-3}),
    ("swish", {"hidden_act": "swish"}, {"hidden_act": "swish"}),
    ("the same head_dim", {"head_dim": 8}, {"head_dim": 8}),
    ("no sliding layer", {"use_sliding_window": True, "max_window_layers": 4}, {}),
    ("full layers", {"layer_types": ["full_attention"] * 4}, {}),
    ("neutral", {"attention_bias": True, "final_logit_softcapping": None, "head_dim": None}, {}),
    ("unknown to all", {"attention_dropout": 0.1, "use_cache": False, "note": [1]}, {}),
]


def save(folder: Path, config: dict[str, Any], **told: Any) -> Qwen2ForCausalLM:
    """A random checkpoint of transformers' own, under a ``config.json`` of ours."""
    torch.manual_seed(0)
    asked: Any = Qwen2Config(**SHAPE, initializer_range=0.3, **told)  # type: ignore[no-untyped-call]
    model: Qwen2ForCausalLM = Qwen2ForCausalLM(asked)  # type: ignore[no-untyped-call]
    model.eval()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(SHAPE | OURS | config))
    return model


def log_p(folder: Path) -> Tensor:
    """Ours, in the causal limit."""
    model = fdllm.load_model(folder, device="cpu", dtype="float32")
    return forward_all(model, tokens()).log_softmax(-1)


def tokens() -> Tensor:
    return torch.randint(3, MASK, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def check_equal(folder: Path, theirs: Qwen2ForCausalLM) -> None:
    with torch.no_grad():
        want = theirs(tokens()).logits.log_softmax(-1)
    assert float((log_p(folder) - want).abs().max()) < TOLERANCE


@pytest.mark.parametrize(("config", "told"), [c[1:] for c in LOADED], ids=[c[0] for c in LOADED])
def test_what_is_loaded_computes_what_transformers_does(
    tmp_path: Path, config: dict[str, Any], told: dict[str, Any]
) -> None:
    check_equal(tmp_path, save(tmp_path, config, **told))


def test_theta_matters_here(tmp_path: Path) -> None:
    """The test above can fail: another theta is far off."""
    theirs = save(tmp_path, {"rope_theta": 1e6}, rope_theta=1e4)
    with pytest.raises(AssertionError):
        check_equal(tmp_path, theirs)


@pytest.mark.parametrize(("config", "match"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_is_not_this_architecture_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], match: str
) -> None:
    save(tmp_path, config)
    with pytest.raises(FdllmError, match=match) as told:
        fdllm.load_model(tmp_path, device="cpu", dtype="float32")
    assert "\n" not in str(told.value)
    assert str(tmp_path) in str(told.value)


def test_the_shared_cases(shared: Path, tmp_path: Path) -> None:
    """Each as transformers has it, or refused; those that must load do."""
    cases = json.loads((shared / "cases/cases.json").read_text())["config_json"]
    assert len(cases) >= 9
    for i, case in enumerate(cases):
        folder = tmp_path / str(i)
        given = {"rope_theta": 10000.0, "rope_scaling": None, "hidden_act": "silu"}
        config = {k: v for k, v in given.items() if k not in case["remove"]} | case["add"]
        theirs = save(folder, config, rope_theta=1e4)
        if "bd_size" in case["add"]:
            model = fdllm.load_model(folder, device="cpu")
            with pytest.raises(FdllmError, match=r"blocks of 8 \(bd_size"):
                fdllm.generate(model, [[5]], fdllm.Decoding(block_size=32))
        elif case["name"].startswith(("theta", "no theta", "sliding window, named")):
            check_equal(folder, theirs)
        else:
            key = next(iter(case["add"]))
            with pytest.raises(FdllmError, match=key):
                fdllm.load_model(folder, device="cpu")


@pytest.mark.parametrize("text", ["[]", "null", '"text"', "{", "1" * 9999, "[" * 99999])
def test_a_file_that_is_no_object_is_one_line(tmp_path: Path, text: str) -> None:
    save(tmp_path, {})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FdllmError, match=r"config\.json") as told:
        fdllm.load_model(tmp_path, device="cpu")
    assert "\n" not in str(told.value)


def test_the_published_form_is_read_whole() -> None:
    """Every key of a published configuration, off or neutral, passes."""
    published = SHAPE | {
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"},
        "bd_size": 32,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": 28,
        "model_type": "Fast_dLLM_Qwen",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.53.1",
        "use_cache": True,
        "use_sliding_window": False,
    }
    spec = spec_of(published, "config.json")
    assert (spec.rope_theta, spec.block_size, spec.block_is_fixed) == (1e6, 32, True)
    assert spec.stop_tokens == (151645,)
    assert spec_of(SHAPE, "config.json").rope_theta == 1e4
    assert set(HubConfig.model_fields) >= {"rope_theta", "rope_parameters", "rope_scaling"}
