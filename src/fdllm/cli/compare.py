"""``fdllm compare A B``: is B as good as A, in words, in figures and as an exit code."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fdllm import strictjson
from fdllm.cli.output import say
from fdllm.errors import FdllmError
from fdllm.presets.load import load_preset

if TYPE_CHECKING:
    from fdllm.record.summary import Summary

SAME_OR_BETTER, WORSE, CANNOT_TELL = 0, 1, 2
JSON_VERSION = 1
PUBLISHED = "published"
_EPILOG = """\
A and B are configs of one experiment, or folders of records (of any experiment or code version).
Without --task all tasks that both have are compared, with Holm's adjustment over them.
B may be the word "published": the figure that was published for the protocol of preset published.
It is refused for a record that was measured in any other way.

exit code: 0  same or better: a loss of more than the margin is excluded, on every task
           1  worse: a significant loss on a task; with --strict also whatever cannot be told
           2  cannot tell: too few documents, or records that must not be compared

examples:
  fdllm compare k1_first k2_middle --task tiny_arithmetic
  fdllm compare k1_first k2_middle --experiment 02_residual --flips 5
  fdllm compare k1_first published --preset published --task gsm8k
  fdllm compare results/00_baseline/gsm8k/k2_last results/02_residual/gsm8k/k2_last --strict
"""


def add_flags(parser: ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("a", metavar="A", help="config or folder to compare with")
    parser.add_argument("b", metavar="B", help="config or folder in question, or 'published'")
    parser.add_argument("--experiment", default="00_baseline", metavar="NAME", help="(00_baseline)")
    parser.add_argument("--task", metavar="T", help="(every task that both have)")
    parser.add_argument("--limit", type=_count, metavar="N", help="records cut to N rows (uncut)")
    parser.add_argument(
        "--preset", metavar="P", help="records under this preset (those of the experiment's own)"
    )
    parser.add_argument("--model", metavar="PATH_OR_ID", help="(the only one that has records)")
    parser.add_argument("--results", metavar="DIR", help="folder of the records (results/)")
    parser.add_argument(
        "--margin",
        type=_points,
        default=2.0,
        metavar="POINTS",
        help="loss of accuracy that 'same' allows, in percentage points (2)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="whatever cannot be told counts as worse"
    )
    parser.add_argument(
        "--flips", type=_count, default=3, metavar="N", help="answers shown each way (3)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_compare(args: Namespace) -> int:
    """Compare, print, and say it again as an exit code.

    Raises:
        UsageError: there are no such records.
        NotComparableError: they must not be compared, or cannot be read (exit code 2).
    """
    # Here and not above: numpy would be loaded for every other command too.
    from fdllm.cli.compare_choose import choose, choose_one  # noqa: PLC0415
    from fdllm.cli.compare_show import print_comparison  # noqa: PLC0415
    from fdllm.report.compare import compare_all  # noqa: PLC0415
    from fdllm.report.records import NotComparableError, RecordError  # noqa: PLC0415
    from fdllm.report.speed import noise_floor  # noqa: PLC0415

    try:
        if args.b == PUBLISHED:
            return _against_published(args, [cell.summary for cell in choose_one(args)])
        chosen = choose(args)
        compared = compare_all(
            [(one.a, one.b, noise_floor(one.grid, 1)) for one in chosen], margin=args.margin / 100
        )
    except RecordError as error:  # exit code 1 is kept for "worse"
        raise NotComparableError(str(error)) from error
    except NotComparableError as error:
        if args.strict:
            raise FdllmError(str(error)) from error
        raise
    code = exit_code([c.verdict for c in compared], strict=args.strict)
    if args.json:
        _print_json(code, [c.as_dict() for c in compared])
        return code
    for one, comparison in zip(chosen, compared, strict=True):
        print_comparison(one, comparison, num_flips=args.flips)
    return code


def _against_published(args: Namespace, summaries: Sequence[Summary]) -> int:
    """Records beside the published figures of their protocol."""
    from fdllm.report.published import compare_published  # noqa: PLC0415

    preset = load_preset(PUBLISHED)
    found = [compare_published(one, preset, args.margin / 100) for one in summaries]
    code = exit_code([one.verdict for one in found], strict=args.strict)
    if args.json:
        _print_json(code, [one.as_dict() for one in found])
        return code
    for one in found:
        say(f"{one.verdict.replace('-', ' ').upper()}: {one.sentence}")
    for exception in preset.exceptions:
        say(f"  differs all the same: {exception}")
    return code


def _print_json(code: int, comparisons: Sequence[Mapping[str, Any]]) -> None:
    data = {"version": JSON_VERSION, "exit_code": code, "comparisons": comparisons}
    say(strictjson.dumps(data, indent=2))


def exit_code(verdicts: list[str], *, strict: bool) -> int:
    """One code for several tasks: the worst of them."""
    if "worse" in verdicts:
        return WORSE
    if "cannot-tell" in verdicts:
        return WORSE if strict else CANNOT_TELL
    return SAME_OR_BETTER


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"must be a whole number; got '{text}'")
    return int(text)


def _points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:  # noqa: PLR2004 - percent; also refuses NaN
        raise ArgumentTypeError(f"must be percentage points, 0 or more; got '{text}'")
    return value
