"""The layers as decoding runs them, against their definition."""

from __future__ import annotations

import pytest
import torch

import fdllm
from fdllm.core.decoder_layer import PACK_FROM, can_pack
from fdllm.core.network import Network
from fdllm.core.reuse import PeriodicReuse
from models import forward_all, model_of, wide_network

IDS = torch.arange(3, 67).view(2, 32)


@torch.inference_mode()
def defined(network: Network) -> torch.Tensor:
    """Logits by the definition."""
    mask = torch.ones(32, 32, dtype=torch.bool).tril()
    return network.dense(IDS, torch.arange(32), mask).float()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_frozen_equals_the_definition(*, tied: bool, compiled: bool) -> None:
    network = wide_network(tied=tied)
    want, model = defined(network), model_of(network)
    model.compile(asked=compiled)
    model.freeze()
    torch.testing.assert_close(forward_all(model, IDS), want, atol=1e-4, rtol=1e-4)
    model.freeze()  # nothing is laid out twice
    torch.testing.assert_close(forward_all(model, IDS), want, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="laid out for decoding; load them with freeze=False"):
        defined(network)


def test_bfloat16_stays_as_near_as_its_definition() -> None:
    """Frozen bfloat16 is no further from float32 than bfloat16 by the definition is."""
    want = defined(wide_network())
    network = wide_network(torch.bfloat16)
    plain, model = (defined(network) - want).abs().mean(), model_of(network)
    model.freeze()
    frozen = (forward_all(model, IDS).float() - want).abs().mean()
    assert frozen < 1.1 * plain


def test_packed_weights_are_kept_once() -> None:
    """The network gives up what is kept in another layout, and keeps what is not."""
    network = wide_network()
    if not can_pack(network.embedding.weight):
        pytest.skip("this build of torch has no oneDNN")
    before = {name: p.numel() for name, p in network.named_parameters()}
    model_of(network).freeze()
    for name, parameter in network.named_parameters():
        packed = before[name] >= PACK_FROM and "embedding" not in name
        assert parameter.numel() == (0 if packed else before[name]), name


@pytest.mark.parametrize("batch_size", [1, 3])
def test_frozen_decodes_as_before(batch_size: int) -> None:
    """Prompts of several lengths, with and without reuse: the same tokens, layout by layout."""
    prompts = [[5, 6, 7], list(range(3, 40)), list(range(9, 73))]
    decoding = fdllm.Decoding(threshold=0.2, max_new_tokens=48)
    for strategy in (fdllm.NoReuse(), PeriodicReuse(2, 1, 3), PeriodicReuse(2, 1, 3, "residual")):
        outs = []
        for freeze in (False, True):
            model = model_of(wide_network())
            if freeze:
                model.freeze()
            done = fdllm.generate(model, prompts, decoding, strategy, batch_size=batch_size)
            outs.append([one.tokens for one in done])
        assert outs[0] == outs[1]


def test_weights_may_change_between_runs_until_they_are_frozen() -> None:
    """Training looks at its model between steps: what it decodes is what it has learnt by then."""
    network = wide_network()
    model = model_of(network)
    decoding = fdllm.Decoding(max_new_tokens=8)
    fdllm.generate(model, [[5]], decoding)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.weight[77] = network.norm.weight  # one token wins wherever it can
        for layer in network.stack:
            layer.o.weight.zero_()
            layer.down.weight.zero_()
        network.embedding.weight.fill_(1.0)
    assert fdllm.generate(model, [[5]], decoding)[0].tokens == [77] * 8
