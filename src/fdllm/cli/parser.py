"""The parser of the whole command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

from fdllm.cli.options import Command
from fdllm.errors import did_you_mean

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


def build_parser(commands: Mapping[str, Command[Any]]) -> argparse.ArgumentParser:
    """The flags of these commands; one without a text is not in the list of ``--help``."""
    parser = _Parser(
        prog="fdllm",
        description="What does it cost a block-diffusion language model to skip layers?",
        epilog=_EPILOG,
        formatter_class=RawDescriptionRichHelpFormatter,
        allow_abbrev=False,
    )
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
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
