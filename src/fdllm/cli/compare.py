"""``fdllm compare A B``: is B as good as A, in words, in figures and as an exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fdllm import strictjson
from fdllm.cli.options import CompareOptions
from fdllm.cli.output import say
from fdllm.errors import FdllmError
from fdllm.presets.load import load_preset

if TYPE_CHECKING:
    from fdllm.record.summary import Summary

SAME_OR_BETTER, WORSE, CANNOT_TELL = 0, 1, 2
JSON_VERSION = 1
PUBLISHED = "published"
EPILOG = """\
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


@dataclass(frozen=True, kw_only=True)
class CompareCommand(CompareOptions):
    """Is config B as good as config A, with an exit code."""

    epilog = EPILOG

    def run(self) -> int:
        """See :func:`run_compare`."""
        return run_compare(self)


def run_compare(options: CompareOptions) -> int:
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
        if options.b == PUBLISHED:
            return _against_published(options, [cell.summary for cell in choose_one(options)])
        chosen = choose(options)
        compared = compare_all(
            [(one.a, one.b, noise_floor(one.grid, 1)) for one in chosen],
            margin=options.margin / 100,
        )
    except RecordError as error:  # exit code 1 is kept for "worse"
        raise NotComparableError(str(error)) from error
    except NotComparableError as error:
        if options.strict:
            raise FdllmError(str(error)) from error
        raise
    code = exit_code([c.verdict for c in compared], strict=options.strict)
    if options.json:
        _print_json(code, [c.as_dict() for c in compared])
        return code
    for one, comparison in zip(chosen, compared, strict=True):
        print_comparison(one, comparison, num_flips=options.flips)
    return code


def _against_published(options: CompareOptions, summaries: Sequence[Summary]) -> int:
    """Records beside the published figures of their protocol."""
    from fdllm.report.published import compare_published  # noqa: PLC0415

    preset = load_preset(PUBLISHED)
    found = [compare_published(one, preset, options.margin / 100) for one in summaries]
    code = exit_code([one.verdict for one in found], strict=options.strict)
    if options.json:
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
