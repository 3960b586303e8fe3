"""``fdllm bench``: how fast decoding is here, beside what it cannot be faster than."""

from __future__ import annotations

import os
from argparse import BooleanOptionalAction
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fdllm import strictjson
from fdllm.bench.options import Options as Settings
from fdllm.bench.topics import SHAPE_NAMES, TOPICS, check_shapes, check_topics
from fdllm.cli.options import DTYPES, Command, flag
from fdllm.cli.output import complain, say
from fdllm.errors import UsageError
from fdllm.record.atomic import write_text

_BUSY = 0.5  # of the cores: more load than that disturbs what runs on all of them
_WIDE = 200  # columns of a log, which folds nothing
_DEFAULT_TOPICS = ("step",)
_DEFAULT_SHAPES = ("tiny", "28x512")


_USUAL = Settings()


def _amount(text: str, usual: int) -> Any:  # noqa: ANN401 - as ``flag``
    return flag(f"{text} ({usual})", default=usual, group="how much", type=int, metavar="N")


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Command):
    """How fast decoding is here, against its floor and its limits."""

    topics: tuple[str, ...] = flag(
        "what to measure (step), or all. "
        + "; ".join(f"{name}: {text}" for name, text in TOPICS.items()),
        default=(),
        flags=("topics",),
        nargs="*",
        metavar="TOPIC",
    )
    shape: tuple[str, ...] | None = flag(
        f"repeatable ({', '.join(_DEFAULT_SHAPES)}): {', '.join(SHAPE_NAMES)}. tiny is the "
        "embedded model, the others have random weights; 1.5B and 7B are meant for a GPU",
        group="what",
        action="extend",
        nargs="+",
        metavar="S",
    )
    dtype: str = flag(
        "type of the weights (by device)", default="auto", group="what", choices=DTYPES
    )
    compare_dtypes: bool = flag(
        "bfloat16 next to float32: the topic dtype", default=False, group="what"
    )
    profile: str | None = flag(
        "where a step's time goes, as a table, and a trace for Chrome or Perfetto in FILE",
        group="what",
        metavar="FILE",
    )
    repeats: int = _amount("times each figure is measured", _USUAL.repeats)
    prompt_blocks: int = _amount("blocks of prompt", _USUAL.prompt_blocks)
    new_tokens: int = _amount("tokens that a whole generation makes", _USUAL.new_tokens)
    tokens_per_step: int = _amount(
        "columns unmasked a step, whatever the confidence", _USUAL.tokens_per_step
    )
    requests: int = _amount("requests of the batch topic", _USUAL.requests)
    batch_size: int = _amount("rows at once of the batch topic", _USUAL.batch_size)
    max_blocks: int = _amount("blocks of the longest answer of the batch topic", _USUAL.max_blocks)
    stretch_ms: int = _amount(
        "how long a step is repeated before its floor's turn", _USUAL.stretch_ms
    )
    device: str = flag("cpu, cuda or cuda:N (a GPU if there is)", default="auto", group="where")
    threads: int | None = flag("threads on CPU (torch's)", group="where", type=int, metavar="N")
    compile: bool | None = flag(
        "with C kernels on a CPU (default, where there is a C compiler), with CUDA graphs on a "
        "GPU (default: no)",
        group="where",
        action=BooleanOptionalAction,
    )
    json: bool = flag("print the figures as JSON", default=False, group="where")
    html: str | None = flag(
        "write the tables and curves as one page too", group="where", metavar="FILE"
    )

    def run(self) -> int:
        """See :func:`run_bench`."""
        return run_bench(self)


def run_bench(given: BenchOptions) -> int:
    """Measure what was asked for, shape by shape."""
    topics, shapes, settings = _request(given)
    html, profile = _file(given.html, "--html"), _file(given.profile, "--profile")
    from fdllm.bench.run import Bench  # noqa: PLC0415 - torch comes in here
    from fdllm.bench.show import show, show_profile  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDE))
    bench = Bench(given.device, given.dtype, given.threads, settings, compiled=given.compile)
    _warn_if_busy()
    for topic, shape in [(topic, shape) for shape in shapes for topic in topics]:
        complain(f"bench: {topic} of {shape} …")
        for section in bench.measure(topic, shape):
            if not given.json:
                show(section, console)
    if profile is not None:
        found = bench.profile(shapes, profile)
        if not given.json:
            for table in found:
                show_profile(table, console)
        complain(f"wrote {profile}; open it at ui.perfetto.dev or chrome://tracing")
    if given.json:
        say(strictjson.dumps(bench.document(), indent=2))
    if html is not None:
        write_text(html, bench.page())
        complain(f"wrote {html}")
    return 0


def _request(given: BenchOptions) -> tuple[tuple[str, ...], tuple[str, ...], Settings]:
    """What the flags mean together; nothing heavy is loaded before they make sense."""
    topics = list(given.topics)
    if given.compare_dtypes:
        topics.append("dtype")
    if "dtype" in topics and given.dtype != "auto":
        raise UsageError("comparing types measures float32 and bfloat16; drop --dtype")
    if not topics and given.profile is None:
        topics = list(_DEFAULT_TOPICS)
    chosen = check_topics(topics)
    shapes = check_shapes(given.shape or _DEFAULT_SHAPES)
    settings = Settings(**{name: getattr(given, name) for name in vars(_USUAL)})
    if given.threads is not None and given.threads < 1:
        raise UsageError(f"--threads must be a whole number, 1 or more; got {given.threads}")
    return chosen, shapes, settings


def _warn_if_busy() -> None:
    told = busy_words(os.getloadavg()[0], os.cpu_count() or 1)
    if told is not None:
        complain(told)


def busy_words(load: float, cores: int) -> str | None:
    """A warning where other programs take part of the machine; None where it is idle."""
    if load < _BUSY * cores:
        return None
    return (
        f"bench: other programs are running (load {load:.1f} on {cores} cores): times will be "
        "too long and ratios noisy; look at the ranges, and measure again on an idle machine"
    )


def _file(given: str | None, flag: str) -> Path | None:
    """Where a file goes; checked before anything is measured."""
    if given is None:
        return None
    path = Path(given).expanduser()
    if path.is_dir():
        raise UsageError(f"{flag} names the folder '{given}'; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} names '{given}', and there is no folder '{path.parent}'")
    return path
