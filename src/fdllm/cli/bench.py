"""``fdllm bench``: what measures is in ``benchmarks/`` of a checkout, and in no installation."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fdllm.cli.options import Command, flag
from fdllm.errors import UsageError

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@dataclass(frozen=True, kw_only=True)
class NoBench(Command):
    """How fast decoding is here; from a checkout alone."""

    topics: tuple[str, ...] = flag(
        "what to measure", default=(), flags=("topics",), nargs="*", metavar="TOPIC"
    )

    @classmethod
    def add_flags(cls, parser: ArgumentParser) -> None:
        """Whatever is asked, flags too, the answer is the same."""
        super().add_flags(parser)
        parser.prefix_chars = ""

    def run(self) -> int:
        """Say how to get it."""
        raise UsageError(
            "it works from a checkout, which this installation is not: clone the repository, "
            "run 'pip install --editable .' in it, and call fdllm from there"
        )


def bench_command() -> type[Command]:
    """The command as ``benchmarks/fdllm_bench`` has it, where there is one."""
    if not BENCHMARKS.joinpath("fdllm_bench").is_dir():
        return NoBench
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    found: type[Command] = import_module("fdllm_bench.command").BenchCommand
    return found
