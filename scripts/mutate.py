"""Which faults would the tests notice? ``python scripts/mutate.py --out faults.jsonl``.

Puts single faults into a throw-away clone of the committed source, one at a time and at most one a
function, drawn from the packages in turn, and runs the tests that import the file, the nearest
first, until one fails. A fault counts as caught only where that test passes without it. Called
again with the same ``--out`` it goes on; with ``--again`` it tries what survived there once more.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"plan": ("plan.py",)} | {
    name: (f"{name}/*",)
    for name in (
        *("core", "checkpoint", "fast", "record", "report", "evaluate", "sandbox", "cluster"),
        *("doctor", "timing"),
    )
}
NEUTRAL = {"int": "0", "float": "0.0", "str": "''", "list": "[]", "tuple": "()", "dict": "{}"}
OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
IN_C = {" < ": " <= ", " > ": " >= ", " + ": " - ", " - ": " + ", " += ": " = ", " && ": " || "}
IN_C |= {" * ": " + ", " = 0;": " = 1;", "++": "--"}
TEST_S = 90  # that hangs
CHOSEN = ("-x", "-q", "-rfE", "--tb=no", "-m", "not slow and not cluster", "-p", "no:cacheprovider")


@dataclass(frozen=True, order=True)
class Fault:
    """One change of one file."""

    path: str  # the file, below the root
    function: str  # whose text is changed; ``module`` outside of all
    kind: str  # of change
    start: int  # first byte that is replaced
    old: str  # the text there
    new: str  # what replaces it
    line: int  # where, counted from 1

    @property
    def package(self) -> str:
        """What it is drawn and counted under."""
        inside = self.path.removeprefix("src/fdllm/")
        return next(
            (n for n, kinds in PACKAGES.items() if any(fnmatch(inside, k) for k in kinds)), ""
        )

    def put_into(self, source: bytes) -> bytes:
        """The file with the fault."""
        old, new = self.old.encode(), self.new.encode()
        return source[: self.start] + new + source[self.start + len(old) :]


def changes(  # noqa: C901 - a kind each
    node: ast.AST, answer: ast.expr | None
) -> Iterator[tuple[str, ast.AST | str]]:
    """Kinds of fault at a node and what stands there then; ``answer`` is the function's type."""
    match node:
        case ast.Compare(left, [relation], right) if type(relation) in OPPOSITE:
            yield "comparison", ast.Compare(left, [OPPOSITE[type(relation)]()], right)
        case ast.BoolOp(word, values):
            yield "and/or", ast.BoolOp(ast.And() if isinstance(word, ast.Or) else ast.Or(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield "not", operand
        case ast.BinOp(one, ast.Add() | ast.Sub() as sign, other) if not _is_text(one, other):
            yield (
                "+/-",
                ast.BinOp(one, ast.Sub() if isinstance(sign, ast.Add) else ast.Add(), other),
            )
        case ast.Constant(bool() as truth):
            yield "constant", str(not truth)
        case ast.Constant(value) if isinstance(value, int | float):
            yield from (("constant", f"({value + by!r})") for by in (1, -1))
        case ast.Expr(ast.Call()) | ast.Raise():
            yield "statement", "pass"
        case ast.Return(ast.expr() as told):
            kind = re.split(r"\W", ast.unparse(answer) if answer else "")[0]
            new = f"not ({ast.unparse(told)})" if kind == "bool" else NEUTRAL.get(kind, "None")
            if new != ast.unparse(told):
                yield "return", f"return {new}"
        case ast.Call(called, given, named):
            yield from (("argument", ast.Call(called, given, rest)) for rest in _less_one(named))
        case ast.List(items, ast.Load()) | ast.Tuple(items, ast.Load()) | ast.Set(items) if items[
            1:
        ]:
            yield from (
                ("element", type(node)(rest, *[ast.Load()][: len(node._fields) - 1]))
                for rest in _less_one(items)
            )
        case ast.Dict(keys, entries) if keys[1:]:
            lefts = zip(_less_one(keys), _less_one(entries), strict=True)
            yield from (("element", ast.Dict(*rest)) for rest in lefts)


def _less_one(items: list[Any]) -> Iterator[list[Any]]:
    yield from (items[:i] + items[i + 1 :] for i in range(len(items)))


def _is_text(*sides: ast.expr) -> bool:
    """Whether the sum is one of texts or lists, so that a difference is an error at once."""
    kinds = ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp
    text = (isinstance(x, ast.Constant) and isinstance(x.value, str) for x in sides)
    return any(text) or any(isinstance(side, kinds) for side in sides)


def python_faults(path: str, source: bytes) -> Iterator[Fault]:
    """Every fault of a Python file."""
    starts = [0, *(found.end() for found in re.finditer(b"\n", source))]

    def walk(parent: ast.AST, function: str, answer: ast.expr | None) -> Iterator[Fault]:
        for name, field in ast.iter_fields(parent):
            # A raise goes as a whole; the places of an f-string's parts are wrong before 3.12.
            if name in ("annotation", "returns", "decorator_list", "exc"):
                continue
            for node in field if isinstance(field, list) else [field]:
                if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr):
                    continue
                inside, answers = function, answer
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    inside = f"{function}.{node.name}".removeprefix("module.")
                    answers = node.returns if isinstance(node, ast.FunctionDef) else None
                index = name == "slice" and isinstance(node, ast.Tuple)
                for kind, new in () if index else changes(node, answer):
                    at: Any = node
                    start = starts[at.lineno - 1] + at.col_offset
                    old = source[start : starts[at.end_lineno - 1] + at.end_col_offset].decode()
                    text = new if isinstance(new, str) else f"({ast.unparse(new)})"
                    yield Fault(path, inside, kind, start, old, text, at.lineno)
                yield from walk(node, inside, answers)

    return walk(ast.parse(source), "module", None)


def c_faults(path: str, source: bytes) -> Iterator[Fault]:
    """A few textual faults of a C file, outside of whole lines of comment."""
    function, offset = "module", 0
    for number, line in enumerate(source.decode().splitlines(keepends=True), 1):
        if named := re.match(r"\w[^;=#]*?(\w+)\(", line):
            function = named[1]
        for old, new in IN_C.items() if line.lstrip()[:1] not in ("/", "*", "#") else ():
            for found in re.finditer(re.escape(old), line.partition("//")[0]):
                start = offset + len(line[: found.start()].encode())
                yield Fault(path, function, f"C {old.strip()}", start, old, new, number)
        offset += len(line.encode())


def draw(faults: Iterable[Fault], seed: int, tried: set[tuple[str, str]]) -> Iterator[Fault]:
    """Faults in turn from each package: a function not tried before, a kind, one of that kind."""
    by: defaultdict[str, defaultdict[str, list[Fault]]] = defaultdict(lambda: defaultdict(list))
    for fault in faults:
        if (fault.path, fault.function) not in tried:
            by[fault.package][f"{fault.path} {fault.function}"].append(fault)
    choose = random.Random(seed)
    left = {package: choose.sample(sorted(by[package]), len(by[package])) for package in sorted(by)}
    while any(left.values()):
        for package, functions in left.items():
            if functions:
                options = by[package][functions.pop()]
                kind = choose.choice(sorted({fault.kind for fault in options}))
                yield choose.choice(sorted(fault for fault in options if fault.kind == kind))


def nearest_tests(root: Path) -> dict[str, list[str]]:
    """For each source file the test files that reach it through imports, the nearest first."""
    sources = {
        path.relative_to(root / "src").with_suffix(""): path for path in root.rglob("src/**/*.py")
    }
    known = {".".join(n.parts).removesuffix(".__init__"): path for n, path in sources.items()}
    known |= {path.stem: path for path in root.glob("tests/*.py")}
    imported: dict[Path, list[Path]] = {}
    for path in known.values():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        imported[path] = [known[name] for name in sorted(found) if name in known]
    reached: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for test in root.glob("tests/test_*.py"):
        far, queue = {test: 0}, deque([test])
        while queue:
            here = queue.popleft()
            new = [path for path in imported[here] if path not in far]
            far |= dict.fromkeys(new, far[here] + 1)
            queue += new
        for path, steps in far.items():
            near = steps - 2 * (path.stem in test.stem)  # its own tests
            reached[str(path.relative_to(root))].append((near, f"tests/{test.name}"))
    return {path: [test for _, test in sorted(tests)] for path, tests in reached.items()}


class Clone:
    """A throw-away clone of the committed source, below a folder, and the tests' time there."""

    def __init__(self, folder: Path, seconds: int, most: int | None) -> None:
        self._seconds, self._most = seconds, most
        self.root = folder / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, self.root], check=True)  # noqa: S607
        if (shared := ROOT.parent / "shared").is_dir():
            (folder / "shared").symlink_to(shared.resolve())
        self._cache = folder / "cache"
        self._nearest = nearest_tests(self.root)
        self._sound: set[str] = set()
        self._left_out: list[str] = []

    def faults(self, patterns: Sequence[str]) -> Iterator[Fault]:
        """Every fault of the files of :data:`PACKAGES` that one of the patterns names."""
        read = {".py": python_faults, ".c": c_faults}
        for path in sorted(self.root.glob("src/fdllm/**/*.*")):
            name = path.relative_to(self.root / "src/fdllm").as_posix()
            if path.suffix in read and any(fnmatch(name, pattern) for pattern in patterns or ["*"]):
                found = read[path.suffix](f"src/fdllm/{name}", path.read_bytes())
                yield from (fault for fault in found if fault.package)

    def try_out(self, fault: Fault) -> str:
        """The test that fails with the fault and passes without it; empty where it survives."""
        path, source = self.root / fault.path, (self.root / fault.path).read_bytes()
        tests = self._nearest[re.sub(r"\.c$", ".py", fault.path)][: self._most]
        while True:
            try:
                self._write(path, fault.put_into(source))
                failed = self._first_failure(tests)
            finally:
                self._write(path, source)
            test = failed.partition("[")[0]
            if not test.startswith("tests/") or test in self._sound or not self._pytest([test]):
                self._sound.add(test)
                return failed
            print(f"{test} fails without a fault too, and is left out", flush=True)
            self._left_out.append(test)

    def _write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()  # told from a newer one by size and second only
        if path.parent.name == "fast":
            shutil.rmtree(self._cache, ignore_errors=True)  # of compiled kernels

    def _first_failure(self, tests: Sequence[str]) -> str:
        """The first test that fails; empty where none does, or none in time."""
        end = time.monotonic() + self._seconds
        for at in range(0, len(tests), 3):  # a few at a time: files are read before any test runs
            if time.monotonic() < end and (failed := self._pytest(tests[at : at + 3])):
                return failed
        return ""

    def _pytest(self, tests: Sequence[str]) -> str:
        told = [f"--timeout={TEST_S}", f"--session-timeout={self._seconds}"]
        told += [f"--deselect={test}" for test in self._left_out]
        own = {"PYTHONPATH": str(self.root / "src"), "XDG_CACHE_HOME": str(self._cache)}
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *CHOSEN, *told, *tests],
            cwd=self.root, env=os.environ | own, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=self._seconds + 2 * TEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "hangs"
        if named := re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", said, re.MULTILINE):
            return named[1]
        fine = process.returncode in (0, 5) or "session-timeout" in said
        return "" if fine else f"ends with {process.returncode}"


def main() -> None:
    """Draw, try, write a line each, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=100, help="faults in the file at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="*", default=[], help="patterns: report/*.py plan.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; added to")
    parser.add_argument("--seconds", type=int, default=300, help="for the tests of one fault")
    parser.add_argument("--tests", type=int, help="files of tests for one fault; all")
    parser.add_argument("--again", action="store_true", help="only what survived")
    given = parser.parse_args()
    # A shell's background ignores interrupts, and the tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    lines = given.out.read_text(encoding="utf-8").splitlines() if given.out.exists() else []
    rows = {(row["path"], row["function"]): row for row in map(json.loads, lines)}
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        clone = Clone(Path(folder), given.seconds, given.tests)
        todo: Iterable[Fault] = clone.faults(given.files)
        if given.again:
            left = {
                (r["path"], r["function"], r["old"], r["new"]) for r in rows.values() if not r["by"]
            }
            todo = [f for f in todo if (f.path, f.function, f.old, f.new) in left]
        else:
            todo = draw(todo, given.seed, set(rows))
        for fault in todo:
            if len(rows) >= given.number and not given.again:
                break
            row = asdict(fault) | {"package": fault.package, "by": clone.try_out(fault)}
            rows[fault.path, fault.function] = row
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['by'] or 'SURVIVED'}: {shown(row)}", flush=True)
    for package in (*PACKAGES, ""):
        ours = [row for row in rows.values() if package in ("", row["package"])]
        print(f"{package or 'all':8} {sum(bool(r['by']) for r in ours):4} of {len(ours):4} caught")
    print(*(f"survived: {shown(row)}" for row in rows.values() if not row["by"]), sep="\n")


def shown(row: dict[str, Any]) -> str:
    """A fault in a line."""
    old, new = (" ".join(row[key].split())[:90] for key in ("old", "new"))
    return f"{row['path']}:{row['line']} {row['function']} ({row['kind']}): {old} -> {new}"


if __name__ == "__main__":
    main()
