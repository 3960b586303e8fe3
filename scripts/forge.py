"""Which forgeries of a release would its check notice? ``python scripts/forge.py``.

Makes a release of two cells of the embedded model, one that generates and one that chooses, and
edits each value of its summaries, samples, results and journals in turn, as somebody with this code
would: checksums of journals, hashes in summaries and the release's own list are brought along.
Prints by file how many are noticed and by what, and which kinds of value are not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fdllm import strictjson
from fdllm.cli import main as fdllm
from fdllm.cli.report import ReportCommand
from fdllm.cli.request import read_request
from fdllm.record.journal import sealed
from fdllm.record.paths import Layout
from fdllm.record.summary import describe_file
from fdllm.release.files import names_in
from fdllm.report.asked_again import AskedAgain
from fdllm.report.leaves import JsonPlace, is_single, walk
from fdllm.report.recheck import check_records
from fdllm.report.sums import SUMS, check_release

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT, CONFIG, TASKS = "00_baseline", "k2_middle", ("tiny_arithmetic", "tiny_choice")
FILES = ("summary.json", "samples.jsonl", "results.json", "journal.jsonl")
CARRIED = re.compile(r"\['sum'\]$|^\['files'\]")  # hashes, which are brought along
STEPS = ("its own files", "asked again", "page, table, lists", "not noticed")
WORDS = {"resident": "cuda", "stop": "length", "error": "warning", "generate": "loglikelihood"}


@dataclass
class Tally:
    """What became of the values of one kind of file."""

    steps: Counter[str] = field(default_factory=Counter)  # values by what noticed them
    missed: Counter[str] = field(default_factory=Counter)  # kinds of value that nothing noticed


def other(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Another value of the same type, as near as anybody would care."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value * 1.01 or 0.01
    if isinstance(value, str):
        digits = [i for i, sign in enumerate(value) if sign.isdigit()]
        at = digits[-1] if digits else len(value) - 1
        sign = str((int(value[at]) + 1) % 10) if digits else "x" if value[-1:] != "x" else "y"
        return WORDS.get(value, value[: max(at, 0)] + sign + value[at + 1 :] if value else "x")
    return {"more": 1} if value == {} else [1] if value == [] else 1


def put(data: Any, path: JsonPlace, value: Any) -> Any:  # noqa: ANN401 - any JSON
    """The data with another value in one place."""
    changed = deepcopy(data)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def kind(path: JsonPlace) -> str:
    """A value's place without numbers and keys of rows."""
    names = ["[]" if isinstance(key, int) else str(key) for key in path]
    return re.sub(r"\.?\[\]", "[]", ".".join(names)).removeprefix("[].")


def read(path: Path) -> Any:  # noqa: ANN401 - any JSON
    """A file's JSON, or that of its lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return strictjson.loads(text)
    return [strictjson.loads(line) for line in text.removesuffix("\n").split("\n")]


def write(path: Path, data: Any) -> None:  # noqa: ANN401 - any JSON
    """Write it back as the tool would, checksums and the summary's hashes included."""
    if path.name == "journal.jsonl":
        lines = [{k: v for k, v in line.items() if k != "sum"} for line in data]
        path.write_bytes(b"".join(sealed(lines)))
        return
    if path.suffix == ".json":
        path.write_text(strictjson.dumps(data, indent=2) + "\n", encoding="utf-8")
    else:
        text = "".join(strictjson.dumps(line) + "\n" for line in data)
        path.write_text(text, encoding="utf-8")
    if path.name != "summary.json":
        summary = read(path.with_name("summary.json"))
        record = describe_file(path, summary["files"][path.name]["lines"])
        summary["files"][path.name] = record.model_dump()
        write(path.with_name("summary.json"), summary)


def renew_list(root: Path) -> None:
    """The release's own list, of what is there now."""
    lines = [
        f"{sha256((root / name).read_bytes()).hexdigest()}  {name}\n"
        for name in names_in(root)
        if name != SUMS and "__pycache__" not in name
    ]
    (root / SUMS).write_text("".join(lines), encoding="utf-8")


def run(*arguments: str) -> tuple[int, str]:
    """One command, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = fdllm(arguments)
    return code, out.getvalue()


def make_release(folder: Path, limit: int) -> Path:
    """A checkout of its own, two runs, their report, and the release."""
    root = folder / "root"
    shutil.copytree(ROOT / "experiments" / EXPERIMENT, root / "experiments" / EXPERIMENT)
    os.environ["FDLLM_ROOT"] = str(root)
    flags = ("--model", "tiny", "--config", CONFIG, "--limit", str(limit), "--task")
    for task in TASKS:
        done, said = run("eval", *flags, task)
        if done:
            sys.exit(said)
    out = folder / "release"
    for command in (("report", *flags, *TASKS), ("export", *flags, *TASKS, "--out", str(out))):
        done, said = run(*command)
        if done:
            sys.exit(said)
    os.environ["FDLLM_ROOT"] = str(out)
    return out


def checks(root: Path, limit: int) -> Callable[[Path], str]:
    """What says of a cell's folder which step of the check notices something."""
    flags = ["--model", "tiny", "--limit", str(limit), "--task", *TASKS]
    parser = argparse.ArgumentParser()
    ReportCommand.add_flags(parser)
    request = read_request(ReportCommand.read(parser.parse_args(flags)))
    layout, asked = Layout.of(root), AskedAgain(request.planner)
    runs = {layout.run(one).folder: one for one in request.runs}

    def noticed(cell: Path) -> str:
        if check_records(layout, [cell]).differences:
            return STEPS[0]
        again = check_records(
            layout, [cell], lambda one, notes: asked.figures(one, runs[one.folder], notes)
        )
        if again.differences:
            return STEPS[1]
        renew_list(root)
        if check_release(root).differences or run("report", "--check", *flags)[0]:
            return STEPS[2]
        return STEPS[3]

    return noticed


def forge(root: Path, limit: int) -> Mapping[str, Tally]:
    """Edit each value in turn."""
    noticed, found = checks(root, limit), defaultdict[str, Tally](Tally)
    for cell in sorted((root / "results" / EXPERIMENT).glob(f"*/{CONFIG}")):
        if noticed(cell) != STEPS[3]:
            sys.exit(f"{cell}: the release as it was made does not hold")
        kept = {name: (cell / name).read_bytes() for name in FILES}
        for name in FILES:
            data = read(cell / name)
            for path, value in walk(data):
                if not is_single(value) or CARRIED.search("".join(f"[{key!r}]" for key in path)):
                    continue
                write(cell / name, put(data, path, other(value)))
                step = noticed(cell)
                found[name].steps[step] += 1
                if step == STEPS[3]:
                    found[name].missed[kind(path)] += 1
                for one, content in kept.items():
                    (cell / one).write_bytes(content)
            print(cell.parent.name, name, dict(found[name].steps), file=sys.stderr, flush=True)
        renew_list(root)
    return found


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--limit", type=int, default=10, help="documents of each task (10)")
    limit = parser.parse_args().limit
    with tempfile.TemporaryDirectory() as folder:
        found = forge(make_release(Path(folder), limit), limit)
    print(f"| file | values | {' | '.join(STEPS[:3])} | noticed |\n|---|---|---|---|---|---|")
    for name, tally in found.items():
        every, missed = tally.steps.total(), tally.steps[STEPS[3]]
        shares = " | ".join(str(tally.steps[step]) for step in STEPS[:3])
        print(f"| `{name}` | {every} | {shares} | {(every - missed) / every:.2%} |")
    for name, tally in found.items():
        for place, number in sorted(tally.missed.items()):
            print(f"- `{name}`: `{place}` ({number})")


if __name__ == "__main__":
    main()
