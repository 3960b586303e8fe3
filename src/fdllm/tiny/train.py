"""Train the embedded model: ``python -m fdllm.tiny.train --compile``.

Block diffusion with the token shift, as Fast-dLLM v2 trains: masked columns of noisy blocks are
predicted from the logits one column to the left. Rows are made on the fly, none twice but by
chance. Muon turns the layers' matrices, AdamW everything else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fdllm import tiny
from fdllm.model.network import Network
from fdllm.tiny import checkpoint, tokenizer
from fdllm.tiny.data import held_out
from fdllm.tiny.masks import Batch, make_batch
from fdllm.tiny.validate import arithmetic_accuracy, choice_accuracy

LOG = Path(__file__).resolve().parent / "train_log.jsonl"
_VALIDATION_ROWS = 60
_LOG_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """What decides the weights.

    Attributes:
        steps: optimiser steps.
        rows: rows of a step, 128 columns each.
        seed: of the initial weights and of the data.
        muon_lr: peak learning rate of the layers' matrices.
        adamw_lr: peak learning rate of embedding, head, norms and biases.
        warmup_steps: linear rise at the start.
        decay_share: share of the steps, at the end, over which the rates fall linearly to 0.
        clip_norm: largest norm of the whole gradient.
        compile: fuse the loss with ``torch.compile`` (a third faster; needs a C++ compiler).
        threads: of torch.
    """

    steps: int = 3000
    rows: int = 32
    seed: int = 0
    muon_lr: float = 0.02
    adamw_lr: float = 0.003
    warmup_steps: int = 100
    decay_share: float = 0.5
    clip_norm: float = 1.0
    compile: bool = False
    threads: int = 2

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at a step."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        fall = min(1.0, (self.steps - step) / (self.decay_share * self.steps))
        return rise * fall


def init_weights(network: Network) -> None:
    """Small matrices; every layer starts as the identity, its two outputs at zero."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or name.endswith(("o.weight", "down.weight")):
            nn.init.zeros_(parameter)
        elif name == "embedding.weight":
            nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)


def loss_of(network: Network) -> Callable[..., Tensor]:
    """The weighted mean cross-entropy of one batch."""

    def loss(ids: Tensor, positions: Tensor, visible: Tensor, targets: Tensor, w: Tensor) -> Tensor:
        logits = network.dense(ids, positions, visible)
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (each * w.flatten()).sum() / w.sum()

    return loss


def optimizers(network: Network, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for p in network.layers.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in network.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=recipe.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(recipe: Recipe, folder: Path, log_path: Path, state_path: Path, resume: bool) -> None:
    """Train, log, validate, export.

    Args:
        recipe: what decides the weights.
        folder: where the checkpoint goes, also the unfinished one at each validation.
        log_path: a JSON line each 50 steps and at each validation.
        state_path: the training state, written at each validation.
        resume: go on from ``state_path``.
    """
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    network = Network(checkpoint.spec())
    init_weights(network)
    engines = optimizers(network, recipe)
    start, seconds = 0, 0.0
    if resume:
        start, seconds = restore(state_path, network, engines, recipe)
    tokenizer.write(folder)
    loss_fn = loss_of(network)
    if recipe.compile:
        loss_fn = torch.compile(loss_fn)
    peaks = [group["lr"] for engine in engines for group in engine.param_groups]
    if resume:
        peaks = [recipe.muon_lr, recipe.adamw_lr]
    with log_path.open("a" if resume else "w", encoding="utf-8") as log:

        def write(line: dict[str, Any]) -> None:
            log.write(json.dumps(line) + "\n")
            log.flush()

        if not resume:
            num = sum(p.numel() for p in network.parameters())
            write({"parameters": num, "torch": torch.__version__, "recipe": asdict(recipe)})
        losses: list[float] = []
        for step in range(start, recipe.steps):
            began = time.perf_counter()
            for engine, peak in zip(engines, peaks, strict=True):
                engine.param_groups[0]["lr"] = peak * recipe.rate(step)
            batch = make_batch(recipe.seed, step, recipe.rows)
            loss = loss_fn(*tensors(batch))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            for engine in engines:
                engine.step()
                engine.zero_grad()
            losses.append(loss.item())
            seconds += time.perf_counter() - began
            done = step + 1
            if done % _LOG_EVERY == 0:
                mean = sum(losses) / len(losses)
                write({"step": done, "loss": round(mean, 5), "train_s": round(seconds, 1)})
                losses = []
            if done % 500 == 0 or done == recipe.steps:
                write({"step": done, **validate(network)})
                checkpoint.export(network, folder)
                save(state_path, network, engines, recipe, done, seconds)


def tensors(batch: Batch) -> Iterable[Tensor]:
    """A batch as tensors, in the order of the loss's arguments."""
    arrays = (batch.ids, batch.positions, batch.visible, batch.targets, batch.weights)
    return tuple(torch.from_numpy(array) for array in arrays)


def validate(network: Network) -> dict[str, float]:
    """Accuracy on the first rows of both validation sets."""
    return {
        "arithmetic_accuracy": arithmetic_accuracy(
            network.dense, held_out("arithmetic", "validation")[:_VALIDATION_ROWS]
        ),
        "choice_accuracy": choice_accuracy(
            network.dense, held_out("choice", "validation")[:_VALIDATION_ROWS]
        ),
    }


def save(
    path: Path,
    network: Network,
    engines: list[torch.optim.Optimizer],
    recipe: Recipe,
    step: int,
    seconds: float,
) -> None:
    """Write everything that the next step depends on."""
    state = {
        "step": step,
        "seconds": seconds,
        "recipe": asdict(recipe),
        "network": network.state_dict(),
        "optimizers": [engine.state_dict() for engine in engines],
    }
    checkpoint.save_state(path, state)


def restore(
    path: Path, network: Network, engines: list[torch.optim.Optimizer], recipe: Recipe
) -> tuple[int, float]:
    """Fill network and optimisers; the next step and the seconds trained so far.

    Raises:
        ValueError: the state was trained by another recipe.
    """
    state = checkpoint.load_state(path)
    if state["recipe"] != asdict(recipe):
        raise ValueError(
            f"{path} was trained with {state['recipe']}, not {asdict(recipe)}; give the same "
            "options, or start anew without --resume"
        )
    network.load_state_dict(state["network"])
    for engine, saved in zip(engines, state["optimizers"], strict=True):
        engine.load_state_dict(saved)
    return int(state["step"]), float(state["seconds"])


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(prog="python -m fdllm.tiny.train", description=__doc__)
    default = Recipe()
    for name, value in asdict(default).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(value), default=value)
    parser.add_argument("--folder", type=Path, default=tiny.FOLDER, help="of the checkpoint")
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--state", type=Path, default=Path("tiny_training_state.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from --state")
    options = vars(parser.parse_args())
    folder, log, state = (options.pop(name) for name in ("folder", "log", "state"))
    resume = options.pop("resume")
    train(Recipe(**options), folder, log, state, resume)


if __name__ == "__main__":
    main()
