"""``fdllm bench``: how fast decoding is here, beside what it cannot be faster than."""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from fdllm import strictjson
from fdllm.bench.options import Options
from fdllm.bench.topics import SHAPE_NAMES, TOPICS, check_shapes, check_topics
from fdllm.cli.output import complain, say
from fdllm.errors import UsageError
from fdllm.record.atomic import write_text

_BUSY = 0.5  # of the cores: more load than that disturbs what runs on all of them
_WIDE = 200  # columns of a log, which folds nothing
_DEFAULT_TOPICS = ("step",)
_DEFAULT_SHAPES = ("tiny", "28x512")


def bench_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``bench``."""
    topics = "; ".join(f"{name}: {text}" for name, text in TOPICS.items())
    parser.add_argument(
        "topics", nargs="*", metavar="TOPIC", help=f"what to measure (step), or all. {topics}"
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--shape",
        action="extend",
        nargs="+",
        metavar="S",
        help=f"repeatable ({', '.join(_DEFAULT_SHAPES)}): {', '.join(SHAPE_NAMES)}. tiny is the "
        "embedded model, the others have random weights; 1.5B and 7B are meant for a GPU",
    )
    what.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="type of the weights (by device)",
    )
    what.add_argument(
        "--compare-dtypes", action="store_true", help="bfloat16 next to float32: the topic dtype"
    )
    what.add_argument(
        "--profile",
        metavar="FILE",
        help="where a step's time goes, as a table, and a trace for Chrome or Perfetto in FILE",
    )
    load = parser.add_argument_group("how much")
    defaults = Options()
    for name, text in {
        "repeats": "times each figure is measured",
        "prompt-blocks": "blocks of prompt",
        "new-tokens": "tokens that a whole generation makes",
        "tokens-per-step": "columns unmasked a step, whatever the confidence",
        "requests": "requests of the batch topic",
        "batch-size": "rows at once of the batch topic",
        "max-blocks": "blocks of the longest answer of the batch topic",
        "stretch-ms": "how long a step is repeated before its floor's turn",
    }.items():
        default = getattr(defaults, name.replace("-", "_"))
        load.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} ({default})"
        )
    where = parser.add_argument_group("where")
    where.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (a GPU if there is)")
    where.add_argument("--threads", type=int, metavar="N", help="threads on CPU (torch's)")
    where.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="with C kernels on a CPU (default, where there is a C compiler), with CUDA graphs on "
        "a GPU (default: no)",
    )
    where.add_argument("--json", action="store_true", help="print the figures as JSON")
    where.add_argument("--html", metavar="FILE", help="write the tables and curves as one page too")


def run_bench(args: Namespace) -> int:
    """Measure what was asked for, shape by shape."""
    topics, shapes, options = _request(args)
    html, profile = _file(args.html, "--html"), _file(args.profile, "--profile")
    from fdllm.bench.run import Bench  # noqa: PLC0415 - torch comes in here
    from fdllm.bench.show import show, show_profile  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDE))
    bench = Bench(args.device, args.dtype, args.threads, options, compiled=args.compile)
    _warn_if_busy()
    for topic, shape in [(topic, shape) for shape in shapes for topic in topics]:
        complain(f"bench: {topic} of {shape} …")
        for section in bench.measure(topic, shape):
            if not args.json:
                show(section, console)
    if profile is not None:
        found = bench.profile(shapes, profile)
        if not args.json:
            for table in found:
                show_profile(table, console)
        complain(f"wrote {profile}; open it at ui.perfetto.dev or chrome://tracing")
    if args.json:
        say(strictjson.dumps(bench.document(), indent=2))
    if html is not None:
        write_text(html, bench.page())
        complain(f"wrote {html}")
    return 0


def _request(args: Namespace) -> tuple[tuple[str, ...], tuple[str, ...], Options]:
    """What the flags mean together; nothing heavy is loaded before they make sense."""
    given = list(args.topics)
    if args.compare_dtypes:
        given.append("dtype")
    if "dtype" in given and args.dtype != "auto":
        raise UsageError("comparing types measures float32 and bfloat16; drop --dtype")
    if not given and args.profile is None:
        given = list(_DEFAULT_TOPICS)
    topics = check_topics(given)
    shapes = check_shapes(args.shape or _DEFAULT_SHAPES)
    options = Options(**{name: getattr(args, name) for name in vars(Options())})
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads must be a whole number, 1 or more; got {args.threads}")
    return topics, shapes, options


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
