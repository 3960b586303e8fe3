"""The checkpoint's files, and whether device and data type suit them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from fdllm.checkpoint.folder import locate, tensor_headers, unread_weights, weight_files
from fdllm.checkpoint.special_tokens import load_tokenizer, no_end_token, read_spec
from fdllm.doctor.findings import Checkup, Finding, fail, ok, warn
from fdllm.plain import one_line
from fdllm.record.identity import model_identity
from fdllm.runs import ModelChoice

_GIB = 1 << 30
_MODERN = 8  # compute capability from which bfloat16 is native
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_BIG = 4 * _GIB  # bytes of weights that no CPU decodes in reasonable time


def check_model(checkup: Checkup) -> Iterator[Finding]:
    """Whether the files are on this machine, whole, with a tokenizer that loads.

    Raises:
        FdllmError: they are not; the message says what is missing.
    """
    choice = checkup.sweep.model
    folder = model_identity(choice).folder
    if folder is None:
        revision = f" at revision {choice.revision}" if choice.revision else ""
        flag = f" --revision {choice.revision}" if choice.revision else ""
        yield fail(
            "model",
            f"{choice.name}{revision} is not in the cache of this machine",
            f"where there is a network, with the same HF_HOME: fdllm prefetch --model "
            f"{choice.name}{flag}",
        )
        return
    size = weight_bytes(folder)
    if not read_spec(folder).stop_tokens:
        raise no_end_token(choice.name)
    load_tokenizer(folder, choice.name)
    unread = unread_weights(folder)
    beside = f" ({unread} beside it: not read)" if unread else ""
    shown = f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / (1 << 20):.1f} MiB"
    yield ok("model", f"{choice.name}: {shown} of weights{beside}, tokenizer")


def weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors files that loading reads, each as long as its header says.

    Raises:
        FdllmError: a file is missing, cut short or no safetensors.
    """
    files = weight_files(folder)
    tensor_headers(files)
    return sum(path.stat().st_size for path in files)


def fetch_model(checkup: Checkup) -> Iterator[Finding]:
    """Bring the files into the Hub's cache, by revision.

    Raises:
        FdllmError: the Hub cannot be reached or refuses.
    """
    choice = checkup.sweep.model
    sys.stderr.write(one_line(f"model {choice.name}: fetching its files") + "\n")
    yield ok("model", f"{choice.name} in {locate(choice.name, choice.revision)}")


def check_device(checkup: Checkup) -> Iterator[Finding]:
    """What the weights will be on, whether they fit, and what a CPU decodes with.

    Raises:
        UsageError: the device or the data type is none.
    """
    import torch  # noqa: PLC0415 - seconds

    from fdllm.core.checkpoint import resolve_device, resolve_dtype  # noqa: PLC0415

    choice = checkup.sweep.model
    folder = model_identity(choice).folder
    # Bytes of the weights as they lie here, in two-byte numbers as published; 0 where unknown.
    size = 0 if folder is None else sum(p.stat().st_size for p in weight_files(folder))
    if not torch.cuda.is_available():
        yield _without_gpu(choice, checkup.executor, size)
        yield from _check_compiler(choice)
        return
    device = resolve_device(choice.device)
    kind = str(resolve_dtype(choice.dtype, device)).removeprefix("torch.")
    if device.type != "cuda":
        yield ok("GPU", f"{device} is asked for, {kind}")
        yield from _check_compiler(choice)
        return
    memory = torch.cuda.get_device_properties(device).total_memory
    found = f"{torch.cuda.get_device_name(device)}, {memory / _GIB:.0f} GiB, {kind}"
    needed = size * _BYTES[kind] / 2
    if needed > memory:
        yield fail(
            "GPU",
            f"{found}: the weights alone take {needed / _GIB:.0f} GiB",
            "ask for a larger GPU (gres or constraint in fdllm.toml), or use --dtype bfloat16",
        )
    elif kind == "bfloat16" and torch.cuda.get_device_capability(device)[0] < _MODERN:
        yield warn("GPU", f"{found}, which it only emulates", "use --dtype float16, or auto")
    else:
        yield ok("GPU", found)


def _check_compiler(choice: ModelChoice) -> Iterator[Finding]:
    """Which kernels of a CPU there are; tried, where weights of this type have some."""
    import torch  # noqa: PLC0415 - seconds

    from fdllm.core.checkpoint import resolve_dtype  # noqa: PLC0415
    from fdllm.fast.compiler import CompilerError  # noqa: PLC0415
    from fdllm.fast.kernels import load_kernels  # noqa: PLC0415

    dtype = resolve_dtype(choice.dtype, torch.device("cpu"))
    if choice.device.startswith("cuda") or dtype == torch.float16:
        return
    try:
        yield ok("compiler", f"a CPU decodes with {load_kernels(dtype).name}")
    except CompilerError as error:
        remedy = "install gcc or clang, load the site's module, or set CC; without it a step on a "
        remedy += "CPU takes up to 1.4 times as long, and nothing else changes"
        yield warn("compiler", str(error), remedy)


def _without_gpu(choice: ModelChoice, executor: str, size: int) -> Finding:
    found = "torch sees none here"
    here = choice.device.startswith("cuda")
    if not here and size <= _BIG and (size or "/" not in choice.name):
        return ok("GPU", "none here; the CPU will do for this model, float32")
    if executor == "slurm":
        # This is the login node; what the compute nodes have, only a job can tell.
        remedy = "none is needed here; make sure that gres in fdllm.toml asks for one on the node"
        return warn("GPU", found, remedy)
    if here:
        return fail("GPU", found, "use --device cpu, or a machine with a GPU and its driver")
    return warn("GPU", found, "use a machine with a GPU: a model of this size takes days on a CPU")
