"""Train the embedded model, in two goes (``nox -s train`` is both).

``python scripts/train_tiny.py --compile`` trains a model of chains, which is sure of itself, into
``tests/embedded_sure``: first a causal language model, then block diffusion from there, as
Fast-dLLM v2 came from Qwen2.5: masked columns of noisy blocks are predicted from the logits one
column to the left, as the causal model's are (the token shift). The same with ``--sums --start
tests/embedded_sure --causal-steps 0 --mixed-steps 0 --steps 2400`` goes on from there with sums in
free order, into the package. Rows are made on the fly. Muon turns the layers' matrices, AdamW
everything else.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fdllm import strictjson, tiny
from fdllm.core.checkpoint import Model, load_model
from fdllm.core.config import Decoding
from fdllm.core.network import Network
from fdllm.core.sampler import generate
from fdllm.core.scorer import score
from fdllm.fast.accelerators import accelerator_on
from fdllm.selftest.subjects import CPU, copied
from fdllm.tiny.vocabulary import END_ID, MASK_ID, decode, encode
from tiny_training import files
from tiny_training.batches import Batch, make_batch, make_causal_batch
from tiny_training.questions import LETTERS, Stage, TaskName, held_out

SURE = Path(__file__).resolve().parents[1] / "tests/embedded_sure"
LOG = Path(files.__file__).resolve().parent / "train_log.jsonl"
LOG_OF_CHAINS = LOG.with_name("train_log_chains.jsonl")
_VALIDATION_ROWS = 100
_LOG_EVERY = 50  # steps
_SAVE_EVERY = 500  # steps
_MATRIX = 2  # dimensions


@dataclass(frozen=True)
class Recipe:
    """What decides the weights."""

    causal_steps: int = 800  # optimiser steps of the causal model
    # up to this step 40 % of the rows are questions with lettered options. They stayed at chance,
    # so from here on all rows are chains
    mixed_steps: int = 1500
    # optimiser steps in all; those behind ``causal_steps`` are of block diffusion
    steps: int = 2700
    causal_rows: int = 64  # causal rows of each of the first steps, 64 columns each
    block_rows: int = 24  # block-diffusion rows of each later step, 128 columns each
    # causal rows beside them, so that sums are not forgotten while masks are learnt
    kept_rows: int = 16
    seed: int = 0  # of the initial weights and of the data
    muon_lr: float = 0.02  # peak learning rate of the layers' matrices
    adamw_lr: float = 0.003  # peak learning rate of embedding, head, norms and biases
    warmup_steps: int = 100  # linear rise at the start
    block_rate: float = 0.5  # share of the peaks at the first block-diffusion step
    # steps in which it would fall linearly to 0; from ``mixed_steps`` on it falls faster, to 0 at
    # ``steps``
    fade_steps: int = 2400
    clip_norm: float = 1.0  # largest norm of the whole gradient
    # fuse the loss with ``torch.compile`` (a third faster; needs a C++ compiler)
    compile: bool = False
    threads: int = 2  # of torch
    # a folder of the Hub's form whose weights are the first; empty for new ones
    start: str = ""
    sums: bool = False  # all rows are sums in free order

    def batches(self, step: int) -> list[Batch]:
        """What a step reads; the losses are added."""
        stage: Stage = "sums" if self.sums else "mixed" if step < self.mixed_steps else "chains"
        if step < self.causal_steps:
            return [make_causal_batch(self.seed, step, self.causal_rows, stage)]
        return [
            make_batch(self.seed, step, self.block_rows, stage),
            make_causal_batch(self.seed, step, self.kept_rows, stage),
        ]

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at a step."""
        if step < self.causal_steps:
            return min(1.0, (step + 1) / self.warmup_steps)
        fading = min(step, self.mixed_steps) - self.causal_steps
        rate = self.block_rate * (1.0 - fading / self.fade_steps)
        left = (self.steps - step) / (self.steps - self.mixed_steps)
        return rate * min(1.0, left)


def init_weights(network: Network) -> None:
    """Small matrices; every layer starts as the identity, its two outputs at zero."""
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "o.weight", "down.weight")):
            nn.init.zeros_(parameter)
        elif name == "embedding.weight":
            nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() == _MATRIX:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)


def loss_of(network: Network, batch: dict[str, Tensor]) -> Tensor:
    """The weighted mean cross-entropy of a :class:`Batch`'s masked columns."""
    logits = network.dense(batch["ids"], batch["positions"], batch["visible"])
    targets, weights = batch["targets"].flatten(), batch["weights"].flatten()
    each = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    return (each * weights).sum() / weights.sum()


class Trainer:
    """Network, optimisers and the place in the recipe: all that the next step depends on."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.step = 0
        self.seconds = 0.0  # of training alone; validation is outside
        self.network = Network(files.spec())
        init_weights(self.network)
        if recipe.start:
            begun = load_model(recipe.start, "cpu", "float32", freeze=False)
            self.network.load_state_dict(begun.network.state_dict())
        # Three shapes, each worth its own kernels.
        self.loss = torch.compile(loss_of, dynamic=False) if recipe.compile else loss_of
        matrices = [p for p in self.network.layers.parameters() if p.dim() == _MATRIX]
        taken = {id(p) for p in matrices}
        rest = [p for p in self.network.parameters() if id(p) not in taken]
        self.muon = torch.optim.Muon(matrices, momentum=0.95, weight_decay=0.1)
        self.adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)
        self.optimizers: list[torch.optim.Optimizer] = [self.muon, self.adamw]

    def advance(self) -> float:
        """Take one step; its loss."""
        began = time.perf_counter()
        rate = self.recipe.rate(self.step)
        self.muon.param_groups[0]["lr"] = self.recipe.muon_lr * rate
        self.adamw.param_groups[0]["lr"] = self.recipe.adamw_lr * rate
        loss = torch.zeros(())
        for batch in self.recipe.batches(self.step):
            arrays = {name: torch.from_numpy(array) for name, array in vars(batch).items()}
            loss = loss + self.loss(self.network, arrays)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        value = loss.item()
        self.seconds += time.perf_counter() - began
        return value

    def validate(self) -> dict[str, float]:
        """Accuracy on the first rows of both validation sets, of a copy as it would be loaded."""
        spec, kind = self.network.spec, torch.float32
        model = copied(
            Model(self.network, spec, None, "tiny", CPU, kind, accelerator_on), CPU, kind
        )
        decoding = Decoding(
            max_new_tokens=56, threshold=0.95, stop_token=END_ID, end_token=END_ID, mask_id=MASK_ID
        )
        task: TaskName = "sums" if self.recipe.sums else "arithmetic"
        sums, lettered = (
            held_out(name, "validation")[:_VALIDATION_ROWS] for name in (task, "choice")
        )
        texts = generate(model, [row.prompt_ids for row in sums], decoding)
        totals = [re.search(r"#### (\d+)", decode(text.tokens)) for text in texts]
        right = [m is not None and m[1] == row.target for m, row in zip(totals, sums, strict=True)]
        found = {f"{task}_accuracy": round(sum(right) / len(right), 4)}
        if self.recipe.sums:
            return found
        pairs = [(row.prompt_ids, encode(letter)) for row in lettered for letter in LETTERS]
        scores = torch.tensor([s.loglikelihood for s in score(model, pairs, "denoise", decoding)])
        best = scores.view(len(lettered), len(LETTERS)).argmax(1).tolist()
        chosen = [LETTERS[at] == row.target for at, row in zip(best, lettered, strict=True)]
        return found | {"choice_accuracy": round(sum(chosen) / len(chosen), 4)}

    def save(self, path: Path) -> None:
        """Write the state for :meth:`restore`."""
        part = path.with_suffix(".part")
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "recipe": asdict(self.recipe),
            "network": self.network.state_dict(),
            "optimizers": [self.muon.state_dict(), self.adamw.state_dict()],
        }
        torch.save(state, part)
        part.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a state that :meth:`save` wrote.

        Raises:
            ValueError: the state was trained by another recipe.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(
                f"{path} was trained with {state['recipe']}, not {asdict(self.recipe)}; give the "
                "same options, or start anew without --resume"
            )
        self.network.load_state_dict(state["network"])
        self.muon.load_state_dict(state["optimizers"][0])
        self.adamw.load_state_dict(state["optimizers"][1])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


def train(recipe: Recipe, folder: Path, log_path: Path, state_path: Path, *, resume: bool) -> None:
    """Train, log, validate, export.

    The log gets a line each 50 steps and at each validation, which exports too; the state is
    written every 500 steps.
    """
    torch.set_num_threads(recipe.threads)
    trainer = Trainer(recipe)
    files.write_tokenizer(folder)
    if resume:
        trainer.restore(state_path)
    else:
        log_path.unlink(missing_ok=True)
        num = sum(p.numel() for p in trainer.network.parameters())
        head = {"parameters": num, "torch": torch.__version__, "recipe": asdict(recipe)}
        append(log_path, head)
    losses: list[float] = []
    while trainer.step < recipe.steps:
        losses.append(trainer.advance())
        last = trainer.step == recipe.steps
        if trainer.step % _LOG_EVERY == 0 or last:
            mean = round(sum(losses) / len(losses), 5)
            seconds = round(trainer.seconds, 1)
            append(log_path, {"step": trainer.step, "loss": mean, "train_s": seconds})
            losses.clear()
        if trainer.step % _SAVE_EVERY == 0 or last:
            if trainer.step > recipe.causal_steps:  # the causal model cannot fill masks yet
                append(log_path, {"step": trainer.step, **trainer.validate()})
                files.export(trainer.network, folder)
            trainer.save(state_path)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line to the log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(strictjson.dumps(line) + "\n")


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Recipe()
    for name, value in asdict(default).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(value), default=value)
    parser.add_argument("--folder", type=Path, help="of the checkpoint")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--state", type=Path, default=Path("tiny_training_state.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from --state")
    options = vars(parser.parse_args())
    folder, log, state = (options.pop(name) for name in ("folder", "log", "state"))
    resume = options.pop("resume")
    recipe = Recipe(**options)
    folder = folder or (tiny.FOLDER if recipe.sums else SURE)
    log = log or (LOG if recipe.sums else LOG_OF_CHAINS)
    train(recipe, folder, log, state, resume=resume)


if __name__ == "__main__":
    main()
