"""Flags. What they mean together stands in :mod:`fdllm.cli.request`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from typing import NoReturn, get_args

from rich_argparse import RawDescriptionRichHelpFormatter

from fdllm.cli.bench import bench_flags
from fdllm.cli.compare import add_flags as add_compare_flags
from fdllm.cli.doctor import doctor_flags
from fdllm.cli.export import export_flags
from fdllm.cli.grade import grade_flags
from fdllm.cli.job import job_flags
from fdllm.cli.prefetch import prefetch_flags
from fdllm.cli.prompts import prompts_flags
from fdllm.cli.report import add_flags as add_report_flags
from fdllm.cli.selftest import selftest_flags
from fdllm.cli.slurm import slurm_flags
from fdllm.cli.trace import trace_flags
from fdllm.cli.watch import status_flags
from fdllm.config import DEFAULT_MODEL, Estimator

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
            near = difflib.get_close_matches(given, list(self._flags()), n=1)
            message = f"unknown argument '{given}'" + (
                f" (did you mean '{near[0]}'?)" if near else ""
            )
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
    """The whole command line."""
    parser = _Parser(
        prog="fdllm",
        description="What does it cost a block-diffusion language model to skip layers?",
        epilog=_EPILOG,
        formatter_class=RawDescriptionRichHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=RawDescriptionRichHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument(
            "--debug", action="store_true", help="show a traceback where something fails"
        )
        return command

    single = add("eval", "one run: one task, one config")
    _selection(single)
    _places(single)
    _computing(single)
    single.add_argument(
        "--force", action="store_true", help="compute it anew; the old record is kept aside"
    )
    single.add_argument("--json", action="store_true", help="print the cell as JSON")

    sweep = add("sweep", "a grid of runs: only what is missing")
    _sweep_flags(sweep)

    validate = add("validate", "the whole grid on the embedded model, ten rows a task, offline")
    _sweep_flags(validate)
    validate.set_defaults(model="tiny", limit=10, executor="local")

    status = add("status", "the state of every cell")
    _selection(status)
    _places(status)
    status_flags(status)

    report = add("report", "write results.md and an HTML report from the records, or check them")
    _selection(report)
    _places(report)
    add_report_flags(report)
    report.set_defaults(parse=report.parse_args)  # results.md names the flags it was written by

    export = add("export", "write a folder that stands by itself: records, report, versions")
    _selection(export)
    _places(export)
    export_flags(export)

    doctor = add("doctor", "what is ready for a run, what is not, and what to do about it")
    _selection(doctor)
    _places(doctor)
    _computing(doctor)
    doctor_flags(doctor)

    prefetch = add("prefetch", "fill the caches, for nodes without a network, and prove it offline")
    _selection(prefetch)
    _places(prefetch)
    prefetch_flags(prefetch)

    _document_commands(add)

    selftest_flags(
        add(
            "selftest", "is every data type and path of this device right, against float32 on a CPU"
        )
    )

    bench_flags(add("bench", "how fast decoding is here, against its floor and its limits"))

    add_compare_flags(add("compare", "is config B as good as config A, with an exit code"))

    _new_flags(add("new", "begin an experiment from the template or from another one"))
    job_flags(commands.add_parser("job", allow_abbrev=False))  # without help: not in the list
    return parser


def _document_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """What looks at single documents: prompts, answers, a text as it comes to be."""
    prompts = add("prompts", "what a run would send, without its model's weights")
    _selection(prompts)
    _places(prompts)
    prompts_flags(prompts)

    grade = add("grade", "grade anyone's answers as a run's are graded")
    _selection(grade)
    _places(grade)
    _consent(grade.add_argument_group("how"))
    grade_flags(grade)

    trace = add("trace", "watch one document being decoded, step by step")
    _selection(trace)
    _places(trace)
    _computing(trace)
    trace_flags(trace)


def _new_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="adaptive_skip, or with its number in front")
    parser.add_argument("--from", dest="source", metavar="NAME", help="copy its code and settings")


def _sweep_flags(parser: argparse.ArgumentParser) -> None:
    _selection(parser)
    _places(parser)
    _computing(parser)
    parser.add_argument("--status", action="store_true", help="show every cell's state, run none")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would run and why, run nothing"
    )
    parser.add_argument(
        "--force",
        nargs="*",
        metavar="CONFIG",
        help="compute these configs anew, and no others; without names all of the selection. Old "
        "records are kept aside",
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")
    slurm_flags(parser, _positive)


def _selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what")
    group.add_argument("--experiment", default="00_baseline", metavar="NAME", help="(00_baseline)")
    group.add_argument(
        "--task",
        action="extend",
        nargs="+",
        metavar="T",
        help="repeatable (all that suit the model)",
    )
    group.add_argument(
        "--config", action="extend", nargs="+", metavar="C", help="repeatable; the whole grid"
    )
    group.add_argument("--limit", type=_positive, metavar="N", help="rows of each subtask at most")
    group.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help=f"'tiny', a folder or a Hub id (FDLLM_MODEL, else the task's own: {DEFAULT_MODEL})",
    )
    group.add_argument(
        "--preset",
        metavar="P",
        help="published, ancestor, or a FILE.toml: the protocol of that evaluation, over the "
        "experiment's settings and under a cell's own (docs/protocol.md)",
    )
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")
    group.add_argument(
        "--scoring",
        choices=get_args(Estimator),
        help="log-likelihood estimator (the experiment's)",
    )
    group.add_argument(
        "--allow-invalid",
        action="store_true",
        help="let first-token score choices with one first token; the record says so",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="type of the weights (by device)",
    )


def _places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("where").add_argument(
        "--results", metavar="DIR", help="folder of the records (results/ of the checkout)"
    )


def _computing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (a GPU if there is)")
    group.add_argument("--threads", type=_positive, metavar="N", help="threads on CPU (torch's)")
    group.add_argument(
        "--batch-size",
        type=_batch_size,
        metavar="N",
        help="rows at once where text is generated, or auto: as many as there is memory for; "
        "never changes an answer",
    )
    group.add_argument(
        "--score-batch-size",
        type=_batch_size,
        metavar="N",
        help="the same where answers are scored; never changes a score",
    )
    group.add_argument(
        "--prefix-cache-gib",
        type=_not_negative,
        metavar="X",
        help="memory for prompt blocks that scored requests share; 0 shares none",
    )
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="on a CPU C kernels between the products (default, where there is a C compiler); on a "
        "GPU forwards recorded as CUDA graphs (default where fdllm selftest passed and they paid); "
        "the same arithmetic",
    )
    _consent(group)


def _consent(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="let humaneval and mbpp run what the model writes, each program confined: no network, "
        "no token, limits on time and memory",
    )
    group.add_argument(
        "--allow-readable-files",
        action="store_true",
        help="with --allow-code-execution: also on a kernel without Landlock, where programs can "
        "read this account's files",
    )


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number, 0 or more; got '{text}'")
    return number


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return _positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or 'auto'") from None


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more; got '{text}'")
    return number
