"""Runs models in every type, on every path and at several batch sizes, and compares.

What they are held against is the definition (:meth:`fdllm.core.network.Network.dense`: no caches,
one operation at a time) with the same weights in float32 on a CPU:

- *logits* of a PREFILL with a REFRESH and a DENOISE behind it, all tokens given. A block cache is
  exact where no token changes, so they must be the definition's but for rounding. A right path
  errs about as much as the definition does in the type; more than :data:`FACTOR` times that is a
  fault. In float32 the definition itself is the reference, and the bound is :data:`FLOAT32`.
- *scores*: log p of some tokens behind a prompt (``first-token``), in the same way;
  :data:`SCORE_FACTOR` times what logits may err.
- *texts*: a row's tokens, and the most probable ones of its logits, do not depend on the batch. On
  a GPU, whose products may round otherwise for another number of rows, that is recorded and no
  fault. And texts are those that the model writes in float32; in a half type only the trained
  model's, as those of a random one hang on the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fdllm.core.attention import AttentionBackend
from fdllm.core.checkpoint import Model
from fdllm.core.decoder_layer import can_pack
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.network import block_causal_mask
from fdllm.core.reuse import LayerPlan
from fdllm.core.sampler import generate
from fdllm.core.scorer import score
from fdllm.core.torch_backend import Accelerator
from fdllm.errors import FdllmError, first_line
from fdllm.fast.accelerators import accelerator_on
from fdllm.fast.cuda_graphs import RECORD_FROM, CudaGraphs
from fdllm.fast.kernels import Kernels
from fdllm.selftest.subjects import (
    CPU,
    ROWS,
    SUB_BLOCK,
    Subject,
    copied,
    embedded,
    mask_of,
    random_one,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BATCHES = (1, 3, ROWS)
FACTOR = 1.25
"""Times the definition's own error in a type that a path may err."""
FLOAT32 = 1e-5
"""Share of the logits' root mean square that a path may err in float32."""
SCORE_FACTOR = 2.0
"""Times what logits may err that log p may: it is a logit less a mean of logits, weighted."""
_FEW = (0, ROWS // 2, ROWS - 1)  # rows that run alone and by threes too
_MOST_ROWS = ROWS // 4  # whose texts may differ where near ties may fall otherwise

Texts = list[list[int]]


@dataclass(frozen=True)
class Path:
    """A way to run a model."""

    # ``plain`` (torch's kernels on weights as a checkpoint has them), ``packed`` (weights laid
    # out for decoding), ``compiled`` (C kernels beside that), ``graphs`` (CUDA graphs)
    name: str
    frozen: bool = False  # whether the weights are laid out for decoding
    # what decoding runs besides torch's own kernels
    accelerator: Accelerator = field(default_factory=Accelerator)


def paths_of(device: torch.device, dtype: torch.dtype) -> list[Path]:
    """What there is on a device for a type; weights that are laid out stay so."""
    found = [Path("plain")]
    if device.type == "cuda":
        return [*found, Path("graphs", frozen=True, accelerator=CudaGraphs())]
    if can_pack(torch.empty(0, dtype=dtype, device=device)):
        found.append(Path("packed", frozen=True))
    kernels = accelerator_on(device, dtype)
    if isinstance(kernels, Kernels):
        found.append(Path("compiled", frozen=True, accelerator=kernels))
    return found


@dataclass(frozen=True)
class Check:
    """A model in a type, on a path, at a batch size."""

    model: str  # its name
    dtype: str  # the type's name
    path: str  # the path's name
    batch: int  # rows at once
    bound: float  # what ``error`` may be
    error: float = math.nan  # root mean square of the logits' error; NaN where there are no logits
    score_error: float = math.nan  # the same of log p
    problems: tuple[str, ...] = ()  # what is wrong, each in a few words
    depends_on_batch: bool = False  # whether a row's tokens were others when it ran alone

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.model}, {self.dtype}, {self.path}, batch {self.batch}"

    @property
    def verdict(self) -> str:
        """``passed`` or ``failed``."""
        return "failed" if self.problems else "passed"

    def as_dict(self) -> dict[str, object]:
        """JSON form; what is no number is null."""
        out = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }
        return out | {"problems": list(self.problems), "verdict": self.verdict}


def run_checks(
    device: torch.device,
    subjects: Iterable[Callable[[], Subject]] = (embedded, random_one),
    paths: Callable[[torch.device, torch.dtype], list[Path]] = paths_of,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> Iterator[Check]:
    """Check a device; each check comes as it is done."""
    for make in subjects:
        subject = make()
        for dtype in dtypes:
            tried = Tried(subject, device, dtype)
            for path in paths(device, dtype):
                yield from tried.on(path)


class Tried:
    """A model in a type on a device, beside its definition."""

    def __init__(self, subject: Subject, device: torch.device, dtype: torch.dtype) -> None:
        # The same weights in float32 as in the type: what is compared is arithmetic, not storage.
        exact = copied(copied(subject.model, CPU, dtype), CPU, torch.float32)
        exact.compile(asked=False)
        self.subject, self.model = subject, copied(subject.model, device, dtype)
        self.logits, self.scores = _dense(exact, subject.sequences), _defined_scores(subject, exact)
        full, self.on_cpu = dtype == torch.float32, device.type == "cpu"
        self.bound = FLOAT32 * _rms(self.logits)
        if not full:
            self.bound = FACTOR * _rms(_dense(self.model, subject.sequences) - self.logits)
        self.score_bound = SCORE_FACTOR * self.bound
        self.judged = full or subject.trained
        self.texts = _texts(subject, exact, range(ROWS), ROWS) if self.judged else []
        self.may_differ = 0 if full and self.on_cpu else _MOST_ROWS
        self.dtype = name_of(dtype)

    def on(self, path: Path) -> Iterator[Check]:
        """A check for each batch size."""
        if path.frozen:
            self.model.freeze()
        self.model.accelerator = path.accelerator
        times = RECORD_FROM + 1 if isinstance(path.accelerator, CudaGraphs) else 1
        alone: Texts = []
        for batch in BATCHES:
            rows = list(range(ROWS)) if batch == ROWS else list(_FEW)
            check = Check(self.subject.name, self.dtype, path.name, batch, self.bound)
            try:
                logits = _stepped(self.subject, self.model, rows, batch, times)
                scores = _scores(self.subject, self.model, rows, batch)
                texts = _texts(self.subject, self.model, rows, batch)
            except (FdllmError, RuntimeError, ValueError) as broken:
                said = f"{type(broken).__name__}: {first_line(broken)}"
                yield replace(check, problems=(said,))
                continue
            at = [rows.index(row) for row in _FEW]
            few = [[*texts[i], *logits[i].argmax(-1).tolist()] for i in at]
            alone = alone or few
            check = replace(
                check,
                error=_rms(logits - _twice(self.logits[rows])),
                score_error=_rms(scores - self.scores[rows]),
                depends_on_batch=few != alone,
            )
            wrong = 0
            if self.judged:
                wrong = sum(text != self.texts[row] for row, text in zip(rows, texts, strict=True))
            yield replace(check, problems=tuple(self._problems(check, wrong, len(rows))))

    def _problems(self, check: Check, wrong: int, rows: int) -> Iterator[str]:
        if not check.error <= check.bound:  # which NaN is not
            yield f"logits err by {check.error:.2g}, at most {check.bound:.2g} is rounding"
        if not check.score_error <= self.score_bound:
            most = self.score_bound
            yield f"log p errs by {check.score_error:.2g}, at most {most:.2g} is rounding"
        if check.depends_on_batch and self.on_cpu:
            yield "tokens depend on the batch"
        if wrong > self.may_differ:
            yield f"{wrong} of {rows} texts are not those of float32"


def name_of(dtype: torch.dtype) -> str:
    """A type's name without its module."""
    return str(dtype).removeprefix("torch.")


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _twice(logits: Tensor) -> Tensor:
    """A block's columns, then those of its second sub-block again: what :func:`_stepped` reads."""
    return torch.cat((logits, logits[:, SUB_BLOCK : 2 * SUB_BLOCK]), 1)


def _defined_scores(subject: Subject, model: Model) -> Tensor:
    """Log p of the targets behind each prompt by the definition, [rows, targets]."""
    spec, asked = subject.model.spec, []
    for prompt in subject.prompts:
        # As the scorer lays it out: one masked token, the end token, masks up to the block's end.
        end = 0 if subject.decoding.end_token is None else subject.decoding.end_token
        masks = -(len(prompt) + 2) % spec.block_size
        asked.append((*prompt, mask_of(spec), end, *(mask_of(spec),) * masks))
    places = [(len(prompt) - 1) % spec.block_size for prompt in subject.prompts]
    told = _dense(model, asked)[range(ROWS), places].log_softmax(-1)
    return told[:, subject.targets]


@torch.inference_mode()
def _dense(model: Model, sequences: Sequence[tuple[int, ...]]) -> Tensor:
    """Logits of each sequence's last block, float32 on a CPU."""
    block, device = model.spec.block_size, model.device
    out: dict[int, Tensor] = {}
    for length in {len(ids) for ids in sequences}:
        rows = [i for i, ids in enumerate(sequences) if len(ids) == length]
        ids = torch.tensor([sequences[i] for i in rows], device=device)
        seen = block_causal_mask(length, length, block, device)
        logits = model.network.dense(ids, torch.arange(length, device=device), seen)
        out |= dict(zip(rows, logits[:, -block:].float().cpu(), strict=True))
    return torch.stack([out[i] for i in range(len(sequences))])


@torch.inference_mode()
def _stepped(subject: Subject, model: Model, rows: list[int], batch: int, times: int) -> Tensor:
    """The same from the caches: a PREFILL, a REFRESH, a DENOISE of the second sub-block.

    Each step is made so many times: recorded ones are replayed from some time on.

    Returns:
        Logits of the block's columns and then of the sub-block's, [rows, columns, vocabulary].
    """
    block, whole = model.spec.block_size, LayerPlan(model.n_layers)
    runner, out = model.runner(), []

    def forward(
        backend: AttentionBackend[Any], window: Window, ids: Sequence[int], read: Sequence[int]
    ) -> Tensor:
        given = torch.tensor(ids, device=model.device)
        return runner.forward(given, backend, ForwardBatch((window,)), whole, read).hidden

    for at in range(0, len(rows), batch):
        some = [subject.sequences[row] for row in rows[at : at + batch]]
        ahead = [len(ids) - block for ids in some]
        backend = model.backend(num_rows=len(some), capacity=max(map(len, some)))

        for row, length in enumerate(ahead):
            if length:
                causal = block if length > block else None
                window = Window((row,), (0,), length, (length,), causal)
                forward(backend, window, some[row][:length], [])
        parts = []
        for start, width in ((0, block), (SUB_BLOCK, SUB_BLOCK)):
            starts = tuple(length + start for length in ahead)
            window = Window(tuple(range(len(some))), starts, width, tuple(map(len, some)))
            fed = [t for ids, n in zip(some, starts, strict=True) for t in ids[n : n + width]]
            hidden = [forward(backend, window, fed, range(len(fed))) for _ in range(times)][-1]
            parts.append(runner.head(hidden).float().cpu().view(len(some), width, -1))
        out.append(torch.cat(parts, 1))
    return torch.cat(out)


def _scores(subject: Subject, model: Model, rows: list[int], batch: int) -> Tensor:
    """Log p of the targets behind each prompt, [rows, targets]."""
    pairs = [(subject.prompts[row], (token,)) for row in rows for token in subject.targets]
    told = score(model, pairs, "first-token", subject.decoding, batch_size=batch)
    return torch.tensor([one.loglikelihood for one in told]).view(len(rows), -1)


def _texts(subject: Subject, model: Model, rows: Sequence[int], batch: int) -> Texts:
    """What each row becomes under every strategy, one behind the other."""
    prompts, out = [subject.prompts[row] for row in rows], [list[int]() for _ in rows]
    for strategy in subject.strategies:
        done = generate(model, prompts, subject.decoding, strategy, batch_size=batch)
        for text, one in zip(out, done, strict=True):
            text.extend(one.tokens)
    return out
