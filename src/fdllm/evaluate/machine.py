"""A loaded model and the machine it is on: evaluates runs, warms up, says what it is."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from fdllm.core.checkpoint import Model
from fdllm.core.checkpoint_files import unread_weights
from fdllm.core.engine import NotFiniteError
from fdllm.core.memory import max_batch_size
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.sampler import GenerationRequest, generate_requests
from fdllm.core.unmask import Unmask, by_threshold
from fdllm.evaluate.answer import ModelAnswerer
from fdllm.evaluate.harness import evaluate
from fdllm.evaluate.protocols import WHOLE, Evaluation, Part, Progress, Store
from fdllm.fast.accelerators import accelerator_on, load_model
from fdllm.record import selftested
from fdllm.record.summary import PeakMemory
from fdllm.runs import Evaluating, ModelChoice, Run


@dataclass(frozen=True)
class Machine:
    """A model, loaded, on its device."""

    model: Model

    @classmethod
    def load(cls, choice: ModelChoice, threads: int | None = None) -> Machine:
        """Load a checkpoint.

        Args:
            choice: which, and onto what.
            threads: torch's threads; None leaves them alone.

        Raises:
            UsageError: the name or the device is nothing.
            FdllmError: the files are not a whole checkpoint.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        model = load_model(choice.name, choice.device, choice.dtype, revision=choice.revision)
        return cls(model)

    @property
    def n_layers(self) -> int:
        """Transformer layers of the model."""
        return self.model.n_layers

    def facts(self, asked: Evaluating) -> dict[str, str | int | None]:
        """What a session's provenance says of it."""
        cuda = self.model.device.type == "cuda"
        tested = selftested.last(self._accelerator)
        chosen = accelerator_on(self.model.device, self.model.dtype, asked=self._compile(asked))
        folder = self.model.folder
        unread = "" if folder is None else unread_weights(folder)
        facts: dict[str, str | int | None] = {
            "accelerator": self._accelerator,
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda if cuda else None,
            "batch_size": max_batch_size(self.model, asked.batch_size),
            "score_batch_size": max_batch_size(self.model, asked.score_batch_size),
            "compile": chosen.name,
            "selftest": selftested.NOT_RUN if tested is None else tested.words,
            "selftest_batch": tested.batch_words if tested is not None and cuda else None,
        }
        return facts | ({"unread_weights": unread} if unread else {})

    @property
    def _accelerator(self) -> str | None:
        device = self.model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else None

    def _compile(self, asked: Evaluating) -> bool | None:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return selftested.choose(asked.compile, self._accelerator, dtype)

    def evaluate(
        self,
        run: Run,
        strategy: ReuseStrategy[Any],
        unmask: Unmask | None,
        store: Store,
        progress: Progress,
        *,
        part: Part = WHOLE,
    ) -> Evaluation:
        """Ask the model a run's task; raises as :func:`fdllm.evaluate.harness.evaluate` does."""
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.model.device)
        asked = run.evaluating
        self.model.compile(asked=self._compile(asked))
        return evaluate(
            self.model,
            run.task,
            asked,
            decoding=run.decoding,
            strategy=strategy,
            limit=run.limit,
            store=store,
            progress=progress,
            code_execution=run.code_execution,
            part=part,
            answerer=lambda _: ModelAnswerer(
                self.model,
                run.decoding,
                strategy,
                asked,
                unmask or by_threshold,
                part.go_on,
            ),
        )

    def warm_up(self, run: Run, strategy: ReuseStrategy[Any]) -> None:
        """Decode a block and forget it: what a first use costs is not this run's speed."""
        size = run.decoding.block_size
        mask = self.model.spec.mask_id if run.decoding.mask_id is None else run.decoding.mask_id
        token = next(t for t in range(self.model.spec.vocab_size) if t != mask)
        request = GenerationRequest((token,) * (size + 1), max_new_tokens=size)
        with suppress(NotFiniteError):  # the first document will say so
            generate_requests(self.model, [request], run.decoding, strategy)

    def peak_memory(self) -> PeakMemory:
        """Largest memory so far: of the GPU since the run began, else of the process."""
        if self.model.device.type == "cuda":
            return PeakMemory(bytes=torch.cuda.max_memory_allocated(self.model.device), kind="cuda")
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return PeakMemory(bytes=peak, kind="resident")
