"""Entry points: the commands by name, arguments in, exit code out, one line for what went wrong."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

from fdllm.caches import resolve_places
from fdllm.cli.bench import bench_command
from fdllm.cli.calibrate import CalibrateCommand
from fdllm.cli.compare_command import CompareCommand
from fdllm.cli.doctor import DoctorCommand, PrefetchCommand
from fdllm.cli.export import ExportCommand
from fdllm.cli.grade import GradeCommand
from fdllm.cli.job import JobCommand
from fdllm.cli.new import NewCommand
from fdllm.cli.open_command import OpenCommand
from fdllm.cli.options import Command, flag
from fdllm.cli.output import complain, say, show_every_character
from fdllm.cli.profile import ProfileCommand
from fdllm.cli.prompts import PromptsCommand
from fdllm.cli.report import ReportCommand
from fdllm.cli.reproduce import ReproduceCommand
from fdllm.cli.selftest import SelftestCommand
from fdllm.cli.status_table import StatusCommand
from fdllm.cli.sweep import EvalCommand, SweepCommand, ValidateCommand
from fdllm.cli.tasks_command import TasksCommand
from fdllm.cli.timing_command import TimingCommand
from fdllm.cli.trace import TraceCommand
from fdllm.cluster.signals import Terminated
from fdllm.errors import FdllmError, UsageError, did_you_mean, first_line
from fdllm.plain import one_line

INTERRUPTED = 130
TERMINATED = 143

_EPILOG = """\
examples:
  fdllm validate                                    ten rows of each tiny task
  fdllm sweep --model tiny                          the tiny tasks, all rows
  fdllm sweep --task gsm8k --limit 10 --dry-run     what would run, and why
  fdllm sweep --task mmlu --force k2_middle         this config again
  fdllm eval --task tiny_choice --config k3_last    one run
  fdllm status --json                               every cell's state
  fdllm open 00_baseline                            its report, in the browser
  fdllm doctor --task gsm8k                         is all there that it needs?
  fdllm selftest                                    is the arithmetic right?
  fdllm prefetch --task gsm8k                       for nodes without a network
  fdllm tasks arc                                   which there are, their needs
  fdllm prompts --task gsm8k --limit 2              what would be sent
  fdllm grade --task gsm8k --answers FILE           anyone's, graded as a run's
  fdllm timing --task gsm8k --docs 100              what time each config takes
  fdllm calibrate --strategy 05_threshold --task T  what loses at most a point
  fdllm profile --task tiny_arithmetic              which layers can be reused
  fdllm reproduce --from-records                    does what was learnt hold?
  fdllm trace --task tiny_choice --config k3_last   a document being decoded
  fdllm export --experiment 00_baseline             a folder to share
  fdllm bench step --shape tiny --shape 28x512      how near to the limit it is
  fdllm new adaptive_skip --from 00_baseline        the next experiment
"""


@dataclass(frozen=True, kw_only=True)
class CompletionCommand(Command):
    """Print a shell's completion script; needs shtab, which nothing else does."""

    shell: str = flag("the shell", flags=("shell",), choices=("bash", "zsh", "tcsh"))

    def run(self) -> int:
        """Written once by shtab: at a Tab nothing is started, and no library loaded.

        Raises:
            UsageError: shtab is not installed.
        """
        try:
            shtab = import_module("shtab")
        except ModuleNotFoundError:
            raise UsageError(
                "the script is made by shtab, which is not installed: pip install shtab, then "
                f"fdllm completion {self.shell} again"
            ) from None
        say(shtab.complete(build_parser(commands()), shell=self.shell))
        return 0


_COMMANDS: Mapping[str, type[Command] | None] = {
    "eval": EvalCommand,
    "sweep": SweepCommand,
    "validate": ValidateCommand,
    "status": StatusCommand,
    "report": ReportCommand,
    "open": OpenCommand,
    "export": ExportCommand,
    "doctor": DoctorCommand,
    "prefetch": PrefetchCommand,
    "tasks": TasksCommand,
    "prompts": PromptsCommand,
    "grade": GradeCommand,
    "timing": TimingCommand,
    "profile": ProfileCommand,
    "trace": TraceCommand,
    "selftest": SelftestCommand,
    "bench": None,  # as the checkout has it
    "compare": CompareCommand,
    "calibrate": CalibrateCommand,
    "reproduce": ReproduceCommand,
    "new": NewCommand,
    "completion": CompletionCommand,
    "job": JobCommand,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what stands behind ``fdllm``; None takes the process's own.

    Returns:
        0 done, 1 something failed, 2 the request makes no sense, 130 interrupted, 143 terminated.
    """
    show_every_character()
    resolve_places()
    known = commands()
    args = _parsed(known, sys.argv[1:] if arguments is None else arguments)
    try:
        return known[args.command].read(args).run()
    except FdllmError as error:
        told = f"fdllm {args.command}: {one_line(str(error))}"
        complain(traceback.format_exc().rstrip() if args.debug else told)
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


def _parsed(known: Mapping[str, type[Command]], given: Sequence[str]) -> argparse.Namespace:
    """Arguments by their names; help where there are none, which is no request."""
    parser = build_parser(known)
    if not given:
        parser.print_help(sys.stderr)
        sys.exit(2)
    args, unknown = parser.parse_known_args(given)
    if unknown:
        named = unknown[0].split("=")[0]
        own, flags = (_flags(parser, name) for name in ([args.command], known))
        told = f"unknown argument '{named}'{did_you_mean(named, own)}"
        if named in flags:
            told = f"this command takes no '{named}', others do"
        complain(f"fdllm {args.command}: {one_line(told)}; see fdllm {args.command} --help")
        sys.exit(2)
    return args


def _flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> list[str]:
    """The flags of these commands."""
    (added,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001 - to look inside
    actions = (a for name in names for a in added.choices[name]._actions)  # noqa: SLF001
    return [flag for action in actions for flag in action.option_strings]


_NO_CHOICE = re.compile(r"'(?P<given>[^']*)' [(]choose from (?P<known>.*)[)]")


def _nearest_choice(found: re.Match[str]) -> str:
    known = found["known"].replace("'", "")
    hint = did_you_mean(found["given"], known.split(", "))
    return f"'{found['given']}'{hint}; it is one of {known}"


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, with the nearest name."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401 - argparse's
        """As argparse's, which asks for a flag that is missing ahead of one that is misspelt."""
        self._given = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        told = _NO_CHOICE.sub(_nearest_choice, message)
        own, named = self._option_string_actions, (one.partition("=")[0] for one in self._given)
        strange = next((one for one in named if one.startswith("--") and one not in own), None)
        if "are required" in message and strange is not None:
            told = f"unknown argument '{strange}'{did_you_mean(strange, own)}"
        complain(f"{self.prog}: {one_line(told)}; see {self.prog} --help")
        sys.exit(2)


def commands() -> dict[str, type[Command]]:
    """Every command by its name."""
    return {name: command or bench_command() for name, command in _COMMANDS.items()}


def build_parser(known: Mapping[str, type[Command]]) -> argparse.ArgumentParser:
    """The flags of every command."""
    parser = _Parser(
        prog="fdllm",
        description="What does it cost a block-diffusion language model to skip layers?",
        epilog=_EPILOG,
        formatter_class=RawDescriptionRichHelpFormatter,
        allow_abbrev=False,
    )
    version = import_module("fdllm").__version__  # by name: a tree that is not installed has it too
    parser.add_argument("--version", action="version", version=f"fdllm {version}")
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in known.items():
        text = (command.__doc__ or "").partition("\n")[0]
        shown = f"{text[:1].lower()}{text[1:].rstrip('.')}"
        told: dict[str, Any] = {} if command.hidden else {"help": shown}
        flags = added.add_parser(
            name,
            description=text,
            formatter_class=RawDescriptionRichHelpFormatter,
            allow_abbrev=False,
            epilog=command.epilog or None,
            **told,
        )
        flags.add_argument(
            "--debug", action="store_true", help="show a traceback where something fails"
        )
        command.add_flags(flags)
    return parser
