"""A checkpoint's files: which are read, where a text ends, and what loading holds in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fdllm
import models
from fdllm.checkpoint.folder import INDEX, WEIGHTS, files_read, unread_weights
from fdllm.checkpoint.special_tokens import read_spec
from fdllm.checkpoint.tensors import hub_names, hub_shapes
from fdllm.core.model_runner import ModelRunner
from fdllm.core.network import Network
from fdllm.errors import FdllmError
from fdllm.evaluate.adapter import LoadedModel
from fdllm.record.identity import model_identity
from fdllm.runs import Evaluating, ModelChoice
from models import forward_all, hub_config, save_shards

END_OF_TEXT, END_OF_TURN = 151643, 151645
SPEC = replace(models.SPEC, num_layers=3)
CONFIG = {key: value for key, value in hub_config(SPEC).items() if key != "bd_size"}


def write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(shape).to(dtype) for name, shape in hub_shapes(SPEC).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in two shards."""
    place = tmp_path / "model"
    write(place / "config.json", CONFIG)
    shard(place, weights())
    return place


def shard(place: Path, tensors: dict[str, Tensor]) -> None:
    save_shards(place, tensors, ["part-0.safetensors", "part-1.safetensors"])


# --- the end of a text --------------------------------------------------------------------------


def make_ends(place: Path, config: object, generation: object, tokenizer: object) -> None:
    write(place / "config.json", CONFIG | {"vocab_size": 151666, "eos_token_id": config})
    write(place / "generation_config.json", {"eos_token_id": generation})
    names = {END_OF_TEXT: "<|endoftext|>", END_OF_TURN: "<|im_end|>"}
    added = {str(i): {"content": name} for i, name in names.items()}
    write(place / "tokenizer_config.json", {"eos_token": tokenizer, "added_tokens_decoder": added})


def test_the_end_of_a_text_is_whatever_any_file_calls_one(shared: Path, tmp_path: Path) -> None:
    cases = json.loads((shared / "cases/cases.json").read_text())["stop_tokens"]
    assert len(cases) >= 3
    for i, case in enumerate(cases):
        place = tmp_path / str(i)
        make_ends(place, case["config.json"], case["generation_config.json"], case["tokenizer"])
        found = read_spec(place).stop_tokens
        assert sorted(found) == (case["right"] if isinstance(case["right"], list) else [])


@pytest.mark.parametrize(
    ("where", "data", "want"),
    [
        ("config.json", CONFIG | {"eos_token_id": [5, 4]}, (5, 4)),
        ("generation_config.json", {"eos_token_id": 7}, (2, 7)),
        ("tokenizer_config.json", {"eos_token": "b"}, (11, 2)),
        ("tokenizer_config.json", {"eos_token": {"content": "<e>"}}, (12, 2)),
        ("special_tokens_map.json", {"eos_token": "<e>"}, (12, 2)),
        ("tokenizer_config.json", {"eos_token": None}, (2,)),
    ],
)
def test_each_place_counts(folder: Path, where: str, data: object, want: tuple[int, ...]) -> None:
    vocabulary = {"model": {"vocab": {"a": 10, "b": 11}}, "added_tokens": []}
    write(folder / "tokenizer.json", vocabulary)
    write(folder / "added_tokens.json", {"<e>": 12})
    write(folder / where, data)
    assert read_spec(folder).stop_tokens == want


@pytest.mark.parametrize(
    ("where", "data", "message"),
    [
        ("generation_config.json", {"eos_token_id": "x"}, "generation_config.*'eos_token_id'"),
        ("generation_config.json", [], "generation_config.json holds list"),
        ("tokenizer_config.json", {"eos_token": "<gone>"}, "eos_token is '<gone>', which none of"),
        ("tokenizer.json", {"added_tokens": [3]}, "tokenizer.json: 'added_tokens.0': .*; got 3"),
        ("tokenizer.json", {"model": {"vocab": {"a": "1"}}}, "'model.vocab.*a': .*; got '1'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder.x"),
        ("tokenizer_config.json", {"eos_token": [1]}, r"'eos_token.*got \[1\]"),
        ("vocab.json", {"a" * 999: "1"}, "vocab.json: 'vocab.*…': .*; got '1'"),
        ("tokenizer_config.json", {"pad_token": "x" * 10**6}, "'pad_token.*at most 1000 char.*x…"),
        ("added_tokens.json", {"a": None}, "added_tokens.json: 'vocab.*a': "),
    ],
)
def test_a_file_that_names_no_token(folder: Path, where: str, data: object, message: str) -> None:
    write(folder / "tokenizer_config.json", {"eos_token": "<gone>"})
    write(folder / where, data)
    with pytest.raises(FdllmError, match=message):
        read_spec(folder)


def test_the_shared_tokenizers_end(shared: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((shared / "qwen_tokenizer" / name).read_bytes())
    assert read_spec(folder).stop_tokens[0] == END_OF_TURN


# --- which weights are read ---------------------------------------------------------------------


def test_a_whole_file_is_read_before_an_index_as_transformers_does(folder: Path) -> None:
    assert unread_weights(folder) == ""
    before = model_identity(ModelChoice(name=str(folder))).name
    whole = weights(seed=1)
    save_file(whole, folder / WEIGHTS)
    model = fdllm.load_model(folder, device="cpu", freeze=False)
    assert torch.equal(model.network.embedding.weight, whole["model.embed_tokens.weight"])
    assert unread_weights(folder) == f"{INDEX}, part-0.safetensors, part-1.safetensors"
    told = LoadedModel.load(ModelChoice(name=str(folder), device="cpu")).facts(Evaluating())
    assert told["unread_weights"] == unread_weights(folder)
    after = model_identity(ModelChoice(name=str(folder))).name
    assert after != before
    (folder / "part-0.safetensors").write_bytes(b"what is not read is nobody's")
    assert model_identity(ModelChoice(name=str(folder))).name == after


def rename(place: Path, to: str) -> None:
    """The index now says that the first shard lies elsewhere, and it does."""
    index = json.loads((place / INDEX).read_text())["weight_map"]
    target = place / to
    target.parent.mkdir(parents=True, exist_ok=True)
    (place / "part-0.safetensors").rename(target)
    names = {k: to if v == "part-0.safetensors" else v for k, v in index.items()}
    write(place / INDEX, {"weight_map": names})


def link_away(place: Path) -> None:
    away = place.parent / "away.safetensors"
    (place / "part-0.safetensors").rename(away)
    (place / "part-0.safetensors").symlink_to(away)


def cut(path: Path, number: int) -> None:
    path.write_bytes(path.read_bytes()[:-number])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def header(path: Path, text: bytes) -> None:
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def twice(place: Path) -> None:
    tensors = load_file(place / "part-1.safetensors")
    first = load_file(place / "part-0.safetensors")
    name = next(iter(first))
    save_file(tensors | {name: first[name]}, place / "part-1.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: rename(f, "../part-0.safetensors"), "'../part-0.*outside the folder"),
        (lambda f: rename(f, "in/../../part-0.safetensors"), "outside the folder"),
        (lambda f: rename(f, f"{f.parent}/part-0.safetensors"), "outside the folder"),
        (link_away, "'part-0.safetensors', which lies outside the folder"),
        (lambda f: write(f / INDEX, {"weight_map": {"a": 3}}), "weight_map must name a file"),
        (lambda f: write(f / INDEX, {"weight_map": {}}), "lacks 0 of 0 shards"),
        (lambda f: write(f / INDEX, []), "holds list"),
        (lambda f: cut(f / "part-1.safetensors", 10), "cut short or is damaged"),
        (lambda f: longer(f / "part-1.safetensors"), "cut short or is damaged"),
        (lambda f: cut(f / "part-1.safetensors", 10**9), "cut short or is damaged"),
        (lambda f: (f / "part-1.safetensors").write_bytes(b"\xff" * 99), "cut short or is damaged"),
        (lambda f: header(f / "part-1.safetensors", b"[1]"), "cut short or is damaged"),
        (lambda f: header(f / "part-1.safetensors", b'{"a": 1}'), "cut short or is damaged"),
        (lambda f: (f / "part-1.safetensors").write_bytes(b""), "cut short or is damaged"),
        (twice, "stands in part-0.safetensors and in part-1.safetensors"),
        (lambda f: shard(f, weights(dtype=torch.int8)), "type I8, and 39 of 39 are no plain"),
        (lambda f: write(f / "config.json", CONFIG | {"num_hidden_layers": 4}), "are of 3"),
    ],
)
def test_what_cannot_be_trusted_is_one_line(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(FdllmError, match=message) as told:
        fdllm.load_model(folder, device="cpu")
    assert "\n" not in str(told.value)


def snapshot_of(folder: Path, kind: str = "snapshots") -> Path:
    """The folder as the Hub's cache has it: a snapshot holds links to blobs beside it."""
    repo = folder.parent / "models--org--name"
    snapshot = repo / kind / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for path in sorted(folder.iterdir()):
        path.rename(repo / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    return snapshot


def test_the_hubs_cache_links_its_files_and_loads(folder: Path) -> None:
    assert fdllm.load_model(snapshot_of(folder), device="cpu").n_layers == 3


@pytest.mark.parametrize("way", ["../../blobs", "{}/blobs"])
def test_an_index_names_no_blob_itself(folder: Path, way: str) -> None:
    """It would be another revision's, or whatever the index's author likes."""
    snapshot = snapshot_of(folder)
    place = snapshot / way.format(snapshot.parents[1])
    (snapshot / INDEX).unlink()
    names = dict.fromkeys(hub_shapes(SPEC), f"{way.format(snapshot.parents[1])}/part-0.safetensors")
    write(snapshot / INDEX, {"weight_map": names})
    assert (place / "part-0.safetensors").exists()
    with pytest.raises(FdllmError, match="outside the folder"):
        fdllm.load_model(snapshot, device="cpu")


def test_only_the_hubs_cache_has_blobs(folder: Path) -> None:
    with pytest.raises(FdllmError, match="outside the folder"):
        fdllm.load_model(snapshot_of(folder, "mine"), device="cpu")


# --- identity -----------------------------------------------------------------------------------

LOADED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "part-0.safetensors",
    "part-1.safetensors",
    INDEX,
)


@pytest.mark.parametrize("name", LOADED)
def test_every_file_that_is_loaded_is_in_the_identity(folder: Path, name: str) -> None:
    for other in LOADED:
        if not (folder / other).exists():
            (folder / other).parent.mkdir(exist_ok=True)
            (folder / other).write_text("{}")
    before = model_identity(ModelChoice(name=str(folder)))
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert model_identity(ModelChoice(name=str(folder))).name != before.name
    assert sorted(str(p.relative_to(folder)) for p in files_read(folder)) == sorted(LOADED)


def test_what_is_not_loaded_is_in_no_identity(folder: Path) -> None:
    before = model_identity(ModelChoice(name=str(folder)))
    for name in ("README.md", "LICENSE.txt", "optimizer.pt", "other.safetensors"):
        (folder / name).write_text("x")
    assert model_identity(ModelChoice(name=str(folder))) == before


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_frozen_layer_by_layer_or_whole_the_answers_are_equal(folder: Path, dtype: str) -> None:
    ids = torch.randint(3, 39, (1, 32), generator=torch.Generator().manual_seed(2))
    streamed = fdllm.load_model(folder, device="cpu", dtype=dtype)
    whole = fdllm.load_model(folder, device="cpu", dtype=dtype, freeze=False)
    whole.freeze()
    assert torch.equal(forward_all(streamed, ids), forward_all(whole, ids))


def test_at_most_one_layer_is_held_in_two_layouts() -> None:
    """Each module gets its parameters just ahead of their use, and gives up what was packed."""
    wide = replace(SPEC, vocab_size=300, hidden_size=256, num_layers=4, intermediate_size=512)
    with torch.device("meta"):
        network = Network(wide).requires_grad_(requires_grad=False)
    held: list[int] = []

    def fill(module: nn.Module) -> None:
        held.append(sum(p.numel() for p in network.parameters() if p.device.type == "cpu"))
        for owner in module.modules():
            for name, empty in list(owner.named_parameters(recurse=False)):
                setattr(owner, name, nn.Parameter(torch.ones(empty.shape), requires_grad=False))

    ModelRunner(network, freeze=True, fill=fill)
    embedding, layer = 300 * 256, sum(p.numel() for p in Network(wide).stack[0].parameters())
    # The embedding, the last norm, the head; then the layers, of which small ones stay.
    assert held[:3] == [0, embedding, embedding + 256]
    assert len(held) == 3 + wide.num_layers
    small = 2 * 256 + 512  # norms and biases
    assert [b - a for a, b in pairwise(held[3:])] == [small] * 3 or not packed()
    assert held[-1] < embedding + layer


def packed() -> bool:
    return bool(torch.backends.mkldnn.is_available())


def test_nothing_is_initialised_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made is filled from the files: no parameter is drawn at random, none in float32."""
    made: list[Any] = []
    empty = torch.empty

    def watched(*size: Any, **options: Any) -> Tensor:
        out = empty(*size, **options)
        made.append((out.dtype, out.device.type))
        return out

    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda t, **_: made.append(t.device.type))
    monkeypatch.setattr(torch, "empty", watched)
    fdllm.load_model(folder, device="cpu", dtype="bfloat16", freeze=False)
    assert "cpu" not in made
    assert {kind for kind in made if isinstance(kind, tuple) and kind[1] == "cpu"} == {
        (torch.bfloat16, "cpu")
    }
    assert len([kind for kind in made if kind == (torch.bfloat16, "cpu")]) == len(hub_names(SPEC))
