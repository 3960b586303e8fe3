"""Every data type on every kernel path: a trained model's answers, a deeper model's error.

A GPU's branches run on a CPU here: products that
are not packed, attention by torch's kernels, and forwards over fixed buffers that a graph replays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fdllm
from fdllm.core import decoder_layer
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.network import Network, block_causal_mask
from fdllm.core.reuse import LayerPlan
from fdllm.fast.accelerators import accelerator_on
from fdllm.fast.cuda_graphs import RECORD_FROM, CudaGraphs
from fdllm.fast.kernels import Kernels
from fdllm.selftest.subjects import small
from fdllm.tiny.vocabulary import decode, encode
from helpers import SURE
from models import model_of
from tape import Tape
from tiny_training.questions import held_out

CPU = torch.device("cpu")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
PATHS = ("plain, whole", "plain", "recorded", "compiled", "packed", "packed, compiled")
"""``whole`` allocates what a product gives, as large matrices do; ``plain`` has a buffer for it."""
BATCHES = (1, 3, 17)
BLOCK = 32
Case = tuple[str, torch.dtype]


def exists(path: str, dtype: torch.dtype) -> bool:
    """Whether this machine has a path for a type: float16 is neither packed nor compiled."""
    able = "packed" not in path or decoder_layer.can_pack(torch.zeros(1, dtype=dtype))
    return able and ("compiled" not in path or isinstance(accelerator_on(CPU, dtype), Kernels))


CASES: list[Case] = [(path, dtype) for dtype in TYPES for path in PATHS if exists(path, dtype)]


def named(case: Case) -> str:
    """Of a test."""
    return f"{case[1]}-{case[0]}".removeprefix("torch.").replace(", ", "-")


@contextmanager
def laid_out(model: fdllm.Model, case: Case) -> Iterator[None]:
    """Decode on one path; matrices of any size are packed, or none."""
    path, dtype = case
    before = decoder_layer.PACK_FROM
    decoder_layer.PACK_FROM = 1 if path.startswith(("packed", "plain, ")) else 1 << 62
    try:
        if "plain, " not in path:  # what is not frozen is not packed
            model.freeze()
        model.accelerator = accelerator_on(CPU, dtype, asked="compiled" in path)
        if path == "recorded":
            model.accelerator = CudaGraphs(Tape())
        yield
    finally:
        decoder_layer.PACK_FROM = before


@dataclass(frozen=True)
class Answers:
    """Of a model that is sure of itself, to some chains and to which of four first lines is right.

    Attributes:
        tokens: generated, a row.
        counts: forwards and layer calls of each.
        right: of the rows, how many.
        choices: taken, a row.
        right_choices: of the rows, how many.
        scores: log-likelihoods of all choices.
    """

    tokens: list[list[int]]
    counts: list[Any]
    right: int
    choices: list[int]
    right_choices: int
    scores: Tensor


def answers(case: Case, batch_size: int, num_sums: int, num_choices: int) -> Answers:
    """What the model answers on a path, in a type, so many rows at once."""
    asked = held_out("arithmetic", "test")
    model = fdllm.load_model(SURE, device="cpu", dtype=case[1], freeze=False)
    with laid_out(model, case):
        prompts = [row.prompt_ids for row in asked[:num_sums]]
        outs = fdllm.generate(
            model, prompts, fdllm.Decoding(max_new_tokens=56), batch_size=batch_size
        )
        pairs = []
        for row in asked[:num_choices]:
            left, result = row.answer.split("\n")[0].split("=")
            offered = [encode(f"{left}={int(result) + more}") for more in (0, 1, 10, 11)]
            pairs += [(row.prompt_ids, line) for line in offered]
        scores = fdllm.score(model, pairs, "denoise", batch_size=batch_size)
    results = [re.search(r"#### (\d+)", decode(out.tokens)) for out in outs]
    right = [r is not None and r[1] == row.target for r, row in zip(results, asked, strict=False)]
    table = torch.tensor([one.loglikelihood for one in scores]).view(num_choices, -1)
    choices = table.argmax(1).tolist()
    return Answers(
        [out.tokens for out in outs],
        [out.counts for out in outs],
        sum(right),
        choices,
        choices.count(0),
        table,
    )


class Deep:
    """A random model of 28 layers, 512 wide, and its logits for three texts of four blocks."""

    def __init__(self) -> None:
        self.spec = small(28, 512)
        torch.manual_seed(0)
        self.weights = {
            name: torch.ones(p.shape) if "norm" in name else torch.randn(p.shape) * 0.02
            for name, p in Network(self.spec).named_parameters()
        }
        self.ids = torch.randint(self.spec.vocab_size - 1, (3, 4 * BLOCK))
        self.exact = self.eager(torch.float32)

    def network(self, dtype: torch.dtype) -> Network:
        """Its weights in a type."""
        network = Network(self.spec)
        network.load_state_dict(self.weights)
        return network.to(dtype).eval().requires_grad_(requires_grad=False)

    @torch.inference_mode()
    def eager(self, dtype: torch.dtype) -> Tensor:
        """Logits by the definition, [texts, columns, vocabulary]."""
        length = self.ids.shape[1]
        mask = block_causal_mask(length, length, BLOCK, CPU)
        return self.network(dtype).dense(self.ids, torch.arange(length), mask).float()

    def error(self, logits: Tensor, exact: Tensor) -> float:
        """Root mean square of the difference."""
        return float((logits - exact).square().mean().sqrt())

    @torch.inference_mode()
    def path_error(self, case: Case, batch: int) -> tuple[float, float]:
        """Of REFRESH and of DENOISE against exact logits, for rows of three lengths."""
        model = model_of(self.network(case[1]))
        with laid_out(model, case):
            run, plan = model.runner(), LayerPlan(self.spec.num_layers)
            backend = model.backend(num_rows=batch, capacity=4 * BLOCK)
            text = [row % 3 for row in range(batch)]
            length = [BLOCK * (1 + row % 3) for row in range(batch)]
            for row, stop in enumerate(length):
                window = Window((row,), (0,), stop, (stop,), causal_block=BLOCK)
                run.forward(self.ids[text[row], :stop], backend, ForwardBatch((window,)), plan)

            def forward(first: int, width: int) -> float:
                """A forward is recorded when it comes for the third time."""
                starts = tuple(stop + first for stop in length)
                extents = tuple(stop + BLOCK for stop in length)
                columns = (first,) * batch
                window = Window(tuple(range(batch)), starts, width, extents, first_columns=columns)
                where = ForwardBatch((window,))
                at = [(one, slice(s, s + width)) for one, s in zip(text, starts, strict=True)]
                ids = torch.cat([self.ids[spot] for spot in at])
                for _ in range(RECORD_FROM - 1 if case[0] == "recorded" else 0):
                    run.forward(ids, backend, where, plan)
                done = run.forward(ids, backend, where, plan)
                exact = torch.cat([self.exact[spot] for spot in at])
                return self.error(run.head(done.hidden).float(), exact)

            return forward(0, BLOCK), forward(8, 8)
