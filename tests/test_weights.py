"""Loading checkpoints: strict by name and shape, safetensors only, clear about what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fdllm
from fdllm.checkpoint.tensors import hub_names
from fdllm.core.checkpoint import resolve_dtype
from fdllm.errors import FdllmError, UsageError
from models import MASK, hub_config, random_model, save_shards

FILE = "model.safetensors"


def hub_tensors(model: fdllm.Model) -> dict[str, Tensor]:
    """The network's weights under the Hub's names, unpacked by hand."""
    spec = model.spec
    out: dict[str, Tensor] = {}
    kv = spec.num_kv_heads * spec.head_dim
    for ours, names in hub_names(spec).items():
        parameter = model.network.get_parameter(ours)
        cuts = {3: [spec.hidden_size, kv, kv], 2: [spec.intermediate_size] * 2}
        parts = parameter.split(cuts[len(names)]) if len(names) > 1 else (parameter,)
        out |= {name: part.clone() for name, part in zip(names, parts, strict=True)}
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model as a Hub-style folder."""
    model = random_model(0)
    path = tmp_path / "model folder"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(hub_config(model.spec)))
    save_file(hub_tensors(model), path / FILE)
    return path


def shard(folder: Path) -> None:
    """Split the weights in two."""
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    save_shards(folder, tensors, [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)])


@pytest.mark.parametrize("sharded", [False, True])
def test_round_trip(folder: Path, sharded: bool) -> None:
    if sharded:
        shard(folder)
    loaded = fdllm.load_model(folder, device="cpu", freeze=False)
    want = random_model(0)
    assert loaded.spec == replace(want.spec, block_is_fixed=True)
    assert loaded.dtype == torch.float32
    for name, parameter in want.network.named_parameters():
        assert torch.equal(loaded.network.get_parameter(name), parameter), name
        assert not loaded.network.get_parameter(name).requires_grad
    out = fdllm.generate(loaded, [[5, 6]], fdllm.Decoding(block_size=16, max_new_tokens=20))
    assert out[0].tokens


def test_tied_head(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    tensors = load_file(folder / FILE)
    del tensors["lm_head.weight"]
    save_file(tensors, folder / FILE)
    network = fdllm.load_model(folder, device="cpu").network
    assert torch.equal(network.head.weight, network.embedding.weight)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / FILE)
    edit(tensors)
    save_file(tensors, folder / FILE)


def missing_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def pickle_only(folder: Path) -> None:
    (folder / FILE).unlink()
    torch.save({}, folder / "pytorch_model.bin")


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_shard, r"lacks 1 of 2 shards: model-00002-of-00002\.safetensors"),
        (pickle_only, r"holds pickles \(pytorch_model\.bin\) and no safetensors"),
        (lambda f: (f / FILE).unlink(), r"holds no model\.safetensors"),
        (lambda f: (f / FILE).write_bytes(b"half a file"), "cut short or is damaged"),
        (lambda f: edit_tensors(f, lambda t: t.pop(NORM)), f"lacks tensors: {NORM}"),
        (
            lambda f: edit_tensors(f, lambda t: t.update(extra=torch.ones(1))),
            "has unexpected tensors: extra",
        ),
        (
            lambda f: edit_tensors(f, lambda t: t.update({NORM: torch.ones(7)})),
            rf"{NORM} has shape \[7\], but config\.json asks for \[32\]",
        ),
        (lambda f: edit_config(f, mask_token_id=None), "names no mask token"),
        (lambda f: edit_config(f, hidden_size=None), "'hidden_size': Field required"),
        (lambda f: edit_config(f, num_attention_heads=5), "do not divide"),
        (
            lambda f: (f / "config.json").write_text("{"),
            r"config\.json is no JSON .*fetch it again",
        ),
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    ],
)
def test_broken_folder(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    with pytest.raises(FdllmError, match=message):
        fdllm.load_model(folder, device="cpu")


def test_mask_token_from_the_tokenizer(folder: Path) -> None:
    edit_config(folder, mask_token_id=None)
    added = {"added_tokens": [{"id": MASK, "content": "|<MASK>|"}]}
    (folder / "tokenizer.json").write_text(json.dumps(added))
    assert fdllm.load_model(folder, device="cpu").spec.mask_id == MASK


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", "no model folder at './nowhere'"),
        ("nowhere", "takes 'tiny', an existing folder, or a Hub id"),
    ],
)
def test_unknown_model(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fdllm.load_model(path)


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants  # noqa: PLC0415

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FdllmError, match="'someone/model' could not be fetched from the Hub"):
        fdllm.load_model("someone/model")


def test_unknown_device_and_dtype(folder: Path) -> None:
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        fdllm.load_model(folder, device="gpu")
    with pytest.raises(UsageError, match="unknown dtype 'fp8'; use auto, float32"):
        fdllm.load_model(folder, device="cpu", dtype="fp8")


def test_dtype_goes_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for capability, want in (
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
        ((7, 5), torch.float16),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert resolve_dtype("auto", cuda) is want
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32


def test_bfloat16_decodes(folder: Path) -> None:
    model = fdllm.load_model(folder, device="cpu", dtype="bfloat16")
    [out] = fdllm.generate(model, [[5, 6, 7]], fdllm.Decoding(block_size=16, max_new_tokens=20))
    assert out.tokens
    shutil.rmtree(folder)
