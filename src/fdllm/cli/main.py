"""Entry points: the commands by name, arguments in, exit code out, one line for what went wrong."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from rich_argparse import RawDescriptionRichHelpFormatter

from fdllm.cli.bench import BenchOptions, run_bench
from fdllm.cli.compare import EPILOG, run_compare
from fdllm.cli.doctor import DoctorOptions, PrefetchOptions, run_doctor, run_prefetch
from fdllm.cli.export import ExportOptions, run_export
from fdllm.cli.grade import GradeOptions, run_grade
from fdllm.cli.job import JobOptions, run_job
from fdllm.cli.new import NewOptions, run_new
from fdllm.cli.options import CompareOptions, Options
from fdllm.cli.output import complain
from fdllm.cli.prompts import PromptsOptions, run_prompts
from fdllm.cli.report import ReportOptions, run_report
from fdllm.cli.selftest import SelftestOptions, run_selftest
from fdllm.cli.status import StatusOptions, run_status
from fdllm.cli.sweep import (
    EvalOptions,
    SweepOptions,
    ValidateOptions,
    run_eval,
    run_sweep,
    run_validate,
)
from fdllm.cli.trace import TraceOptions, run_trace
from fdllm.cluster.signals import Terminated
from fdllm.errors import FdllmError, did_you_mean, first_line

INTERRUPTED = 130
TERMINATED = 143

_EPILOG = """\
examples:
  fdllm validate                                     ten rows of each tiny task, all nine configs
  fdllm sweep --model tiny                           the tiny tasks, all rows
  fdllm sweep --task gsm8k --limit 10 --dry-run      what would run, and why
  fdllm sweep --task mmlu --force k2_middle          this config again
  fdllm eval --task tiny_choice --config k3_last     one run
  fdllm status --json                                every cell's state
  fdllm doctor --task gsm8k                          is everything there that it needs?
  fdllm selftest                                     is this device's arithmetic right?
  fdllm prefetch --task gsm8k                        fetch it, for nodes without a network
  fdllm prompts --task gsm8k --limit 2               what would be sent
  fdllm grade --task gsm8k --answers FILE            anyone's answers, graded as a run's are
  fdllm trace --task tiny_choice --config k3_last    watch a document being decoded
  fdllm export --experiment 00_baseline              a folder to share
  fdllm bench step --shape tiny --shape 28x512       how close to the machine's limit it is
  fdllm new adaptive_skip --from 00_baseline         the next experiment
"""

OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Command(Generic[OptionsT]):
    """What stands behind ``fdllm``.

    Attributes:
        text: what it is for, in a line of ``fdllm --help``; empty where nobody types it.
        options: what it is given.
        run: does it; the exit code.
        epilog: stands below its flags.
    """

    text: str
    options: type[OptionsT]
    run: Callable[[OptionsT], int]
    epilog: str = ""


COMMANDS: Mapping[str, Command[Any]] = {
    "eval": Command("one run: one task, one config", EvalOptions, run_eval),
    "sweep": Command("a grid of runs: only what is missing", SweepOptions, run_sweep),
    "validate": Command(
        "the whole grid on the embedded model, ten rows a task, offline",
        ValidateOptions,
        run_validate,
    ),
    "status": Command("the state of every cell", StatusOptions, run_status),
    "report": Command(
        "write results.md and an HTML report from the records, or check them",
        ReportOptions,
        run_report,
    ),
    "export": Command(
        "write a folder that stands by itself: records, report, versions", ExportOptions, run_export
    ),
    "doctor": Command(
        "what is ready for a run, what is not, and what to do about it", DoctorOptions, run_doctor
    ),
    "prefetch": Command(
        "fill the caches, for nodes without a network, and prove it offline",
        PrefetchOptions,
        run_prefetch,
    ),
    "prompts": Command(
        "what a run would send, without its model's weights", PromptsOptions, run_prompts
    ),
    "grade": Command("grade anyone's answers as a run's are graded", GradeOptions, run_grade),
    "trace": Command("watch one document being decoded, step by step", TraceOptions, run_trace),
    "selftest": Command(
        "is every data type and path of this device right, against float32 on a CPU",
        SelftestOptions,
        run_selftest,
    ),
    "bench": Command(
        "how fast decoding is here, against its floor and its limits", BenchOptions, run_bench
    ),
    "compare": Command(
        "is config B as good as config A, with an exit code", CompareOptions, run_compare, EPILOG
    ),
    "new": Command(
        "begin an experiment from the template or from another one", NewOptions, run_new
    ),
    "job": Command("", JobOptions, run_job),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what stands behind ``fdllm``; None takes the process's own.

    Returns:
        0 done, 1 something failed, 2 the request makes no sense, 130 interrupted, 143 terminated.
    """
    args = build_parser().parse_args(arguments)
    try:
        command = COMMANDS[args.command]
        return command.run(command.options.read(args))
    except FdllmError as error:
        if args.debug:
            traceback.print_exc()
        else:
            complain(f"fdllm {args.command}: {error}")
        return error.exit_code
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        complain(f"fdllm {args.command}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `fdllm status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        complain(
            f"fdllm {args.command}: unexpected {type(error).__name__}: {first_line(error)} "
            "(--debug shows where)"
        )
        return 1


def main_eval(arguments: Sequence[str] | None = None) -> int:
    """``eval`` alone is ``fdllm eval``."""
    return main(["eval", *(sys.argv[1:] if arguments is None else arguments)])


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            given = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            message = f"unknown argument '{given}'{did_you_mean(given, self._flags())}"
        sys.stderr.write(f"{self.prog}: {message}; see {self.prog} --help\n")
        sys.exit(2)

    def _flags(self) -> list[str]:
        flags: list[str] = []
        for action in self._actions:
            flags += action.option_strings
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - to look inside
                for parser in action.choices.values():
                    flags += [f for a in parser._actions for f in a.option_strings]  # noqa: SLF001
        return flags


def build_parser() -> argparse.ArgumentParser:
    """The flags of every command."""
    parser = _Parser(
        prog="fdllm",
        description="What does it cost a block-diffusion language model to skip layers?",
        epilog=_EPILOG,
        formatter_class=RawDescriptionRichHelpFormatter,
        allow_abbrev=False,
    )
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        told: dict[str, Any] = {}
        if command.text:
            text = command.text
            told = {"help": text, "description": f"{text[0].upper()}{text[1:]}."}
        flags = added.add_parser(
            name,
            formatter_class=RawDescriptionRichHelpFormatter,
            allow_abbrev=False,
            epilog=command.epilog or None,
            **told,
        )
        flags.add_argument(
            "--debug", action="store_true", help="show a traceback where something fails"
        )
        command.options.add_flags(flags)
    return parser
