"""``fdllm compare A B``: is B as good as A, in words, in figures and as an exit code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from fdllm import plain, strictjson
from fdllm.cli.options import flag, number
from fdllm.cli.output import console, say, say_json
from fdllm.cli.recorded import Recorded
from fdllm.errors import FdllmError, UsageError
from fdllm.presets.reader import load_preset
from fdllm.report.columns import Column, Fitted, Table
from fdllm.report.grid import check_grid, checks
from fdllm.report.records import (
    NotComparableError,
    Record,
    RecordError,
    SampleKey,
    load_record,
)

if TYPE_CHECKING:  # scipy and statsmodels come in where something is compared
    from fdllm.report.compare_text import Comparison
    from fdllm.report.times import Times

SAME_OR_BETTER, WORSE, CANNOT_TELL = 0, 1, 2
JSON_VERSION = 1
PUBLISHED = "published"
EPILOG = """\
A and B are configs of one experiment, or folders of records (of any experiment
or code version). Without --task all tasks that both have are compared, with
Holm's adjustment over them. B may be the word "published": the figure that was
published for the protocol of preset published. It is refused for a record that
was measured in any other way.

exit code: 0  same or better: more than the margin is excluded on every task
           1  worse: a significant loss; with --strict also what cannot be told
           2  cannot tell: too few documents, or records that do not compare

examples:
  fdllm compare k1_first k2_middle --task tiny_arithmetic
  fdllm compare k1_first k2_middle --experiment 02_residual --flips 5
  fdllm compare k1_first published --preset published --task gsm8k
  fdllm compare --strict results/00_baseline/gsm8k/k2_last \\
                results/02_residual/gsm8k/k2_last
"""
_STYLE = {"same-or-better": "green", "worse": "red", "cannot-tell": "yellow"}
_SHOWN = 400  # characters of an answer: its end holds the result
_ASKED = 300  # characters of a question
_whole = number(int, "a whole number", 0)


@dataclass(frozen=True, kw_only=True)
class CompareCommand(Recorded):
    """Is config B as good as config A, with an exit code."""

    epilog = EPILOG

    a: str = flag("config or folder to compare with", flags=("a",), metavar="A")
    b: str = flag("config or folder in question, or 'published'", flags=("b",), metavar="B")
    experiment: str = flag("(00_baseline)", default="00_baseline", metavar="NAME")
    task: str | None = flag("(every task that both have)", metavar="T")
    margin: float = flag(
        "loss of accuracy that 'same' allows, in percentage points (2)",
        default=2.0,
        type=number(float, "percentage points, 0 or more", 0, below=100),
        metavar="POINTS",
    )
    strict: bool = flag("whatever cannot be told counts as worse", default=False)
    flips: int = flag("answers shown each way (3)", default=3, type=_whole, metavar="N")
    json: bool = flag("print JSON", default=False)

    def run(self) -> int:
        """Compare, print, and say it again as an exit code.

        Raises:
            UsageError: there are no such records.
            NotComparableError: they must not be compared, or cannot be read (exit code 2).
        """
        try:
            return self._against_published() if self.b == PUBLISHED else self._compare()
        except RecordError as error:  # exit code 1 is kept for "worse"
            raise NotComparableError(str(error)) from error
        except NotComparableError as error:
            if self.strict:
                raise FdllmError(str(error)) from error
            raise

    def _compare(self) -> int:
        from fdllm.report.compare import compare_all  # noqa: PLC0415 - as above

        pairs = [(a, b, _times(a, b)) for a, b in choose(self)]
        found = compare_all(pairs, margin=self.margin / 100)
        code = exit_code([one.verdict for one in found], strict=self.strict)
        if self.json:
            _print_json(code, [one.as_dict() for one in found])
            return code
        for (a, b, times), one in zip(pairs, found, strict=True):
            _print_comparison(a, b, one, times, num_flips=self.flips)
        return code

    def _against_published(self) -> int:
        """Records beside the published figures of their protocol."""
        from fdllm.report.published import compare_published  # noqa: PLC0415 - as above

        preset = load_preset(PUBLISHED)
        cells = choose_one(self)
        found = [compare_published(one.summary, preset, self.margin / 100) for one in cells]
        code = exit_code([one.verdict for one in found], strict=self.strict)
        if self.json:
            _print_json(code, [one.as_dict() for one in found])
            return code
        for one in found:
            say(f"{one.verdict.replace('-', ' ').upper()}: {one.sentence}")
        for exception in preset.exceptions:
            say(f"  differs all the same: {exception}")
        return code


def _print_json(code: int, comparisons: Sequence[Mapping[str, Any]]) -> None:
    data = {"version": JSON_VERSION, "exit_code": code, "comparisons": comparisons}
    if len(comparisons) == 1:  # the short form stands at the top too
        data |= {key: comparisons[0].get(key) for key in ("accuracy", "speed")}
    say_json(data)


def exit_code(verdicts: Sequence[str], *, strict: bool) -> int:
    """One code for several tasks: the worst of them."""
    if "worse" in verdicts:
        return WORSE
    if "cannot-tell" in verdicts:
        return WORSE if strict else CANNOT_TELL
    return SAME_OR_BETTER


# --- which records --------------------------------------------------------------------------------


def choose(asked: CompareCommand) -> list[tuple[Record, Record]]:
    """The records that were named, a pair for each task: the one in question behind the other.

    Raises:
        UsageError: there are none, or several models fit.
        NotComparableError: two configs of one experiment were computed by different code, on
            different machines, …: their difference would not be that of the configs.
        RecordError: a record is broken.
    """
    folders = [_is_folder(asked.a), _is_folder(asked.b)]
    if all(folders):
        a, b = (load_record(Path(name).expanduser().resolve()) for name in (asked.a, asked.b))
        return [(a, b)]
    if any(folders):
        raise UsageError(
            f"'{asked.a}' and '{asked.b}': one is a folder and one a config; give two folders of "
            "records, or two configs of one experiment"
        )
    chosen: dict[str, tuple[Record, Record]] = {}
    for records in asked.fitting(asked.experiment, asked.task):
        if not {asked.a, asked.b} <= records.keys():
            continue
        a, b = load_record(records[asked.a]), load_record(records[asked.b])
        if a.task in chosen:
            raise UsageError(
                f"several models have records of {a.task}: {chosen[a.task][0].summary.model} and "
                f"{a.summary.model}; name one with --model"
            )
        check_grid([a, b])
        chosen[a.task] = (a, b)
    if not chosen:
        what = f" of both '{asked.a}' and '{asked.b}'"
        raise UsageError(asked.nothing(asked.experiment, asked.task, what))
    return list(chosen.values())


def choose_one(asked: CompareCommand) -> list[Record]:
    """The records of A alone, one for each task.

    Raises:
        UsageError: there are none.
        RecordError: a record is broken.
    """
    if _is_folder(asked.a):
        return [load_record(Path(asked.a).expanduser())]
    fitting = asked.fitting(asked.experiment, asked.task)
    cells = [load_record(found[asked.a]) for found in fitting if asked.a in found]
    if not cells:
        raise UsageError(asked.nothing(asked.experiment, asked.task, f" of '{asked.a}'"))
    return cells


def _is_folder(name: str) -> bool:
    """A path is written as one; a folder of the current directory counts where it is a record."""
    return os.sep in name or (Path(name) / "summary.json").is_file()


def _times(a: Record, b: Record) -> Times:
    """What the timing study beside both says; runs of two folders were timed apart."""
    from fdllm.report.times import Times, read_times  # noqa: PLC0415 - as above

    if a.folder.parent != b.folder.parent:
        apart = "speed is not compared: the two were not timed in turn, so set each against its own"
        return Times(sentence=f"{apart} k=1 (fdllm compare k1_… {b.name})")
    return read_times([a, b], a.name)


# --- for people -----------------------------------------------------------------------------------


def _print_comparison(
    a: Record, b: Record, found: Comparison, times: Times, *, num_flips: int
) -> None:
    """A verdict, a table of figures, and the answers that changed."""
    from fdllm.report.compare_text import SMOKE_TEST  # noqa: PLC0415 - as above

    out = console(120)
    mark = f" - {SMOKE_TEST}, limit {found.limit}" if found.is_smoke_test else ""
    of_a, of_b = (f"{cell.summary.experiment} / {cell.name}" for cell in (a, b))
    out.print(Text(f"{a.task}: {of_a} against {of_b}{mark}", "bold"))
    verdict = found.verdict.replace("-", " ").upper()
    out.print(Text(f"{verdict}: {found.sentence}", style=_STYLE[found.verdict]))
    out.print(_figures(found))
    out.print(Text(f"{times.sentence[:1].upper()}{times.sentence[1:]}."))
    for one in checks([a, b]):
        if one.kind != "twins":
            out.print(Text(f"{one.mark} {one.text}", style="yellow"))
    flips = (
        (f"{a.name} right, {b.name} wrong", found.losses),
        (f"{a.name} wrong, {b.name} right", found.gains),
    )
    told = all(cell.texts for cell in (a, b))
    for title, keys in flips:
        if keys and told:
            out.print(*_flips(title, keys, (a, b), num_flips), sep="\n")
        elif keys:
            out.print(Text(f"{title}: {len(keys)}; git keeps no texts: sweep to read the answers"))


def _figures(c: Comparison) -> Fitted:
    from fdllm.report.times import shown  # noqa: PLC0415 - as above

    change = c.difference.shown(100, "+.1f")
    rows = [
        ("accuracy", f"{100 * c.value_a:.1f} %", f"{100 * c.value_b:.1f} %", f"{change} points")
    ]
    if c.speed is not None:
        rows.append(("time", "1", shown(c.speed.ratio), f"claim: {c.claim}"))
    names = ("", c.a, c.b, "difference [95 %]")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return Table([Column(name, texts, is_words=not name) for name, texts in columns]).terminal()


def _flips(
    title: str, keys: tuple[SampleKey, ...], pair: tuple[Record, Record], num_shown: int
) -> Iterator[Text | RichTable]:
    """The first documents that flipped in one direction, below each the answers side by side."""
    shown = keys[:num_shown]
    left = f", {len(shown)} shown (--flips N)" if len(shown) < len(keys) else ""
    yield Text(f"{title}: {len(keys)}{left}", "bold")
    for key in shown:
        sample = pair[0].texts[key]
        asked = f"{key[0]} row {key[1]}\n{_end(sample.get('prompt', ''), _ASKED)}"
        yield Text(f"{asked}\ntarget: {_end(sample.get('target', ''), _ASKED)}")
        table = RichTable(box=box.SIMPLE_HEAD, expand=True)
        for cell in pair:
            table.add_column(cell.name, ratio=1, overflow="fold")
        table.add_row(*(_answer(cell.texts[key]) for cell in pair))
        yield table


def _answer(sample: Mapping[str, Any]) -> Text:
    output = sample["output"]
    if isinstance(output, str):
        return Text(_end(output, _SHOWN) + f"\n({sample['tokens']} tokens)")
    scores = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in output]
    return Text(f"log-likelihoods {', '.join(scores)}" if scores else "")


def _end(value: Any, length: int) -> str:  # noqa: ANN401 - a target may be any JSON value
    """The end of a text: what is asked, and what is answered, stands there."""
    text = plain.shown(value if isinstance(value, str) else strictjson.dumps(value))
    return text if len(text) <= length else f"… {text[-length:]}"
