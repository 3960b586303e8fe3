"""A bench, from its topics to its document."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fdllm.bench.batching import bench_batch
from fdllm.bench.dtypes import DTYPES, bench_dtypes
from fdllm.bench.dtypes import TOPIC as DTYPE_TOPIC
from fdllm.bench.growth import bench_growth
from fdllm.bench.options import Options
from fdllm.bench.page import render_page
from fdllm.bench.profiling import PhaseProfile, profile_subject
from fdllm.bench.results import Section, document
from fdllm.bench.reuse import bench_reuse
from fdllm.bench.shapes import Subject, make_subject
from fdllm.bench.step import bench_step
from fdllm.core.checkpoint import resolve_device

Topic = Callable[[Subject, Options], list[Section]]

_TOPICS: dict[str, Topic] = {
    "step": bench_step,
    "reuse": bench_reuse,
    "batch": bench_batch,
    "growth": bench_growth,
}


class Bench:
    """Measures topics of shapes, one model in memory at a time.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        dtype: of the weights; ``auto`` goes by the device.
        threads: torch's; None leaves them alone.
        options: how much to measure.
        compiled: C kernels on a CPU, CUDA graphs on a GPU; None takes what pays.

    Attributes:
        sections: the tables so far.
        profiles: where the time goes, so far.
    """

    def __init__(
        self,
        device: str,
        dtype: str,
        threads: int | None,
        options: Options,
        *,
        compiled: bool | None = None,
    ) -> None:
        self._compiled, self._used = compiled, "no"
        if threads is not None:
            torch.set_num_threads(threads)
        self.device, self.dtype, self.options = resolve_device(device), dtype, options
        self.sections: list[Section] = []
        self.profiles: list[PhaseProfile] = []
        self._subject: Subject | None = None

    def measure(self, topic: str, shape: str) -> list[Section]:
        """The tables of a topic.

        Raises:
            FdllmError: the model does not fit into memory.
        """
        if topic == DTYPE_TOPIC:
            self._release()
            made = {dtype: self._made(shape, dtype) for dtype in DTYPES}
            found = bench_dtypes(made, self.options)
        else:
            found = _TOPICS[topic](self._model(shape), self.options)
        self.sections += found
        return found

    def profile(self, shapes: Sequence[str], path: Path) -> list[PhaseProfile]:
        """Where each shape's time goes; with several shapes each has a trace of its own.

        Args:
            shapes: which.
            path: the trace; of several shapes each adds its name to the file's.
        """
        for shape in shapes:
            named = path if len(shapes) == 1 else path.with_stem(f"{path.stem}-{shape}")
            self.profiles += profile_subject(self._model(shape), self.options, named)
        return self.profiles

    def document(self) -> dict[str, object]:
        """Everything measured so far, as JSON."""
        return document(self.machine(), self.sections) | {
            "profiles": [found.as_dict() for found in self.profiles]
        }

    def page(self) -> str:
        """Everything measured so far, as one HTML page."""
        return render_page(self.machine(), self.sections)

    def machine(self) -> dict[str, str | float]:
        """What it was measured on."""
        cuda = self.device.type == "cuda"
        return {
            "device": str(self.device),
            "processor": torch.cuda.get_device_name(self.device) if cuda else platform.machine(),
            "threads": torch.get_num_threads(),
            "compile": self._used,
            "cores": os.cpu_count() or 0,
            "load": round(os.getloadavg()[0], 2),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "repeats": self.options.repeats,
        }

    def _model(self, shape: str) -> Subject:
        if self._subject is None or self._subject.name != shape:
            self._release()
            self._subject = self._made(shape, self.dtype)
        return self._subject

    def _made(self, shape: str, dtype: str) -> Subject:
        subject = make_subject(shape, str(self.device), dtype)
        self._used = subject.model.compile(asked=self._compiled)
        return subject

    def _release(self) -> None:
        """The next model may need this one's memory."""
        self._subject = None
        gc.collect()
