"""The house rules of CONTRIBUTING.md, read from the files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import fdllm
from helpers import ROOT
from imports import imports, modules

# From the top down. A module belongs to the longest name that it starts with.
LAYERS = (
    {"cli", "__main__"},
    {"calibrate", "reproduce"},
    {
        "report",
        "cluster",
        "doctor",
        "profiling",
        "trace",
        "release",
        "selftest",
        "timing",
    },
    {"evaluate"},
    {"until_decided"},
    {"fast"},  # accelerators, which decoding does without
    {"sandbox", "core"},
    {"plan", "applicable", "experiment", "presets.reader", "record"},
    {
        "caches",
        "checkpoint",
        "core.model_spec",
        "core.config",
        "core.cost",
        "core.guided_plans",
        "core.reuse",
        "core.schedule",
        "core.subsets",
        "criteria",
        "errors",
        "outside",
        "plain",
        "runs",
        "shard",
        "strictjson",
        "spec",
        "task_facts",
        "presets",
        "tiny",
    },  # where the embedded model lies
)
# What plans and tells a state, say on a login node: it answers at once.
LIGHT = (
    "cli",
    "calibrate",
    "report",
    "release",
    "reproduce",
    "profiling.record",
    "plan",
    "until_decided",
    "applicable",
    "criteria",
    "experiment",
    "presets",
    "record",
    "caches",
    "checkpoint.folder",
    "checkpoint.hub_config",
    "checkpoint.special_tokens",
    "core.model_spec",
    "core.config",
    "core.cost",
    "core.guided_plans",
    "core.reuse",
    "core.schedule",
    "core.subsets",
    "errors",
    "outside",
    "plain",
    "runs",
    "shard",
    "strictjson",
    "spec",
    "task_facts",
    "cluster",
    "doctor",
)
HEAVY = {"torch", "transformers", "lm_eval", "datasets"}
MAX_LINES = 400
FOLDERS = ("src", "tests", "benchmarks", "scripts", "experiments", "sbatch", ".ci")
CODE = {".py", ".c", ".sh", ".toml", ".def", ""}

TREES = modules()
IMPORTS = imports(TREES)


def rank(module: str) -> int:
    """Height of a module's layer; 0 is the top."""
    name = module.removeprefix("fdllm.")
    fits = [
        (len(part), height)
        for height, layer in enumerate(LAYERS)
        for part in layer
        if name == part or name.startswith(part.removesuffix(".*") + ".")
    ]
    assert fits, f"{module} has no layer: give it a place in LAYERS"
    return max(fits)[1]


def is_light(module: str) -> bool:
    name = module.removeprefix("fdllm.")
    return any(name == part or name.startswith(f"{part}.") for part in LIGHT)


def text_files() -> Iterator[Path]:
    """The files that people write: code, scripts, prose."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    for path in (*ROOT.iterdir(), *inside):
        kinds = {*CODE, ".md", ".cff", ".yaml", ".yml", ".lock", ".json"}
        if path.is_file() and path.suffix in kinds and "__pycache__" not in path.parts:
            yield path


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def sessions() -> set[str]:
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("nox.session" in ast.unparse(mark) for mark in node.decorator_list)
    }


def test_imports_go_down() -> None:
    """The facade, ``fdllm/__init__.py``, offers names of every layer and is imported by none."""
    ours = [i for i in IMPORTS if i.imported.split(".")[0] == "fdllm" and i.importer != "fdllm"]
    assert ours
    wrong = [
        f"{i.importer}:{i.line} imports {i.imported}"
        for i in ours
        if i.imported == "fdllm" or rank(i.imported) < rank(i.importer)
    ]
    assert not wrong


def test_every_module_has_a_layer() -> None:
    for module in TREES:
        assert module == "fdllm" or rank(module) >= 0


def test_no_cycles() -> None:
    """Neither by an import inside a function, nor by one for the type checker alone.

    The facade offers names of every layer when they are asked for, so it is left out.
    """
    graph: dict[str, set[str]] = {module: set() for module in TREES if module != "fdllm"}
    for i in IMPORTS:
        if i.importer in graph and i.imported in graph and i.imported != i.importer:
            graph[i.importer].add(i.imported)
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the cycle


def test_light_modules_name_nothing_heavy() -> None:
    wrong = [
        f"{i.importer}:{i.line} imports {i.imported}"
        for i in IMPORTS
        if i.eager and is_light(i.importer) and i.imported.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_planning_loads_nothing_heavy() -> None:
    """Also not through another module, nor through a library."""
    light = {"fdllm", *(module for module in TREES if module != "fdllm" and is_light(module))}
    light = {module for module in light if not module.endswith("__main__")}  # those would run
    assert {"fdllm.cli", "fdllm.plan", "fdllm.experiment"} <= light
    code = f"import sys, {', '.join(sorted(light))}; print(*sorted({HEAVY} & sys.modules.keys()))"
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_no_two_files_have_one_name() -> None:
    """Whoever reads ``compare.py`` in a trace or a search knows which room it is in."""
    names = Counter(path.name for path in (ROOT / "src").rglob("*") if path.suffix in CODE - {""})
    pythons = {"__init__.py", "__main__.py"}  # names that are not ours to choose
    assert not {name for name, number in names.items() if number > 1} - pythons


def test_no_two_classes_have_one_name() -> None:
    """Nor an alias of a type and a class: one word for one thing."""
    homes: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        for node in tree.body:
            named = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                named = [one.id for one in node.targets if isinstance(one, ast.Name)]
            for name in named:
                if re.fullmatch(r"[A-Z]+[a-z]\w*", name):
                    homes.setdefault(name, set()).add(module)
    assert not {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}


def test_what_is_printed_passes_one_filter() -> None:
    """``cli.output`` has it; what a room below says itself, it hands to :mod:`fdllm.plain`."""
    streams = {"sys.stdout.write", "sys.stderr.write"}
    for name, tree in TREES.items():
        if name == "fdllm.cli.output":
            continue
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            said = ast.unparse(call.func)
            assert said not in {"Console", "print", "traceback.print_exc"}, f"{name}:{call.lineno}"
            filtered = ast.unparse(call.args[0]).startswith("one_line(") if call.args else False
            assert said not in streams or filtered, f"{name}:{call.lineno}"


def test_json_is_written_without_nan() -> None:
    """Through ``strictjson``, or by its own word; keys sorted for a hash are no file."""
    for name, tree in TREES.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) in {"json.dump", "json.dumps"}:
                said = {word.arg for word in call.keywords}
                assert said & {"allow_nan", "sort_keys"}, f"{name}:{call.lineno}"


def test_files_fit_on_a_few_screens() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in text_files()
        if path.suffix in CODE
        and path.name != "LICENSE"
        and (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long


def test_no_machine_and_no_secret_in_any_file() -> None:
    """Neither a folder of the machine that this runs on, nor anything shaped like a token."""
    places = {str(ROOT), str(ROOT.parent / "shared"), str(Path.home()), sys.prefix}
    settings = (os.environ.get(f"PIP_{name}") for name in ("FIND_LINKS", "INDEX_URL"))
    places |= {value.rstrip("/") for value in settings if value}
    token = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b")
    wrong = []
    for path in text_files():
        text = path.read_text(encoding="utf-8")
        wrong += [f"{path}: {place}" for place in places if len(place) > 1 and f"{place}/" in text]
        wrong += [f"{path}: {found[0][:6]}…" for found in [token.search(text)] if found]
    assert not wrong


def test_versions_agree() -> None:
    version = pyproject()["project"]["version"]
    assert fdllm.__version__ == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [version]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == version


def test_lock_holds_every_pin() -> None:
    """A pin that was changed without ``nox -s lock`` would not reach anybody's machine."""

    def normal(pin: str) -> str:
        return re.sub(r"\[.*?\]", "", pin).lower().replace("_", "-")

    locked = {normal(line) for line in (ROOT / "requirements.lock").read_text().splitlines()}
    pins = pyproject()["project"]["dependencies"]
    assert all("==" in pin for pin in pins)
    assert {normal(pin) for pin in pins} <= locked
    assert not any("+" in line for line in locked)


@pytest.mark.parametrize("document", ["README.md", "experiments/README.md"])
def test_documented_sessions_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = {word for line in re.findall(r"nox -s ((?:[a-z]+ ?)+)", text) for word in line.split()}
    assert named
    assert named <= sessions()
    if document == "README.md":
        assert named == sessions()


def test_no_test_imports_another() -> None:
    """What two of them need lies in a helper, which runs no tests of its own."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    tests = {path.stem for path in files if path.stem.startswith("test_")}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ({alias.name for alias in node.names} | {getattr(node, "module", None)})
        if name and name.split(".")[-1] in tests
    ]
    assert tests
    assert not wrong
