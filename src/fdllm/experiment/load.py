"""Finds, loads and begins ``experiments/NN_name``; a name that is not there is an error."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

from fdllm.core.config import Decoding, StrategyConfig, Subset, Unmask
from fdllm.core.reuse import ReuseStrategy
from fdllm.errors import FdllmError, UsageError, did_you_mean
from fdllm.experiment.settings import Settings, read_settings
from fdllm.presets import Preset
from fdllm.record.atomic import explained, make_folder
from fdllm.record.identity import PACKAGE, code_files
from fdllm.record.paths import find_root
from fdllm.runs import Cell

FOLDER = "experiments"
CODE_FILE = "generation_functions.py"
SETTINGS_FILE = "experiment.toml"
TEMPLATE = "_template"
INSTALLED = PACKAGE / TEMPLATE  # a wheel has it here, a checkout among its experiments
_PAGES = ("proposal.md", "tasks.md", "results.md")
_TITLE = re.compile(r"^title\s*=.*$", re.MULTILINE)
_CRITERIA = re.compile(r"^\[criteria[].].*(?:\n(?!\[).*)*\n?", re.MULTILINE)
EXPERIMENT_NAME = re.compile(r"^\d\d_[a-z0-9][a-z0-9_]*$")


@dataclass(frozen=True)
class Experiment:
    """A study: its code and its grid."""

    name: str  # the folder's name
    folder: Path  # where it lies
    settings: Settings  # ``experiment.toml``

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The configs of the grid, in the order of tables."""
        return self.settings.cells

    def cell(self, name: str) -> Cell:
        """A config by its name.

        Raises:
            UsageError: the grid has none of that name; the message lists all.
        """
        for cell in self.cells:
            if cell.name == name:
                return cell
        names = [cell.name for cell in self.cells]
        raise UsageError(
            f"unknown config '{name}'{did_you_mean(name, names)}; experiment '{self.name}' has "
            f"{', '.join(names)} (its grid is in {self.folder / SETTINGS_FILE})"
        )

    def decoding(
        self,
        cell: Cell,
        max_new_tokens: int | None = None,
        preset: Preset | None = None,
        task: str | None = None,
    ) -> Decoding:
        """Decoding settings of a cell: its own, over the preset's, over the experiment's.

        Args:
            cell: the cell.
            max_new_tokens: the task's, where nothing else states any.
            preset: the protocol that stands over the experiment's settings.
            task: what the preset is asked for.
        """
        named = {} if preset is None else preset.decoding_of(task)
        own = self.settings.decoding.model_dump(exclude_unset=True) | named | cell.decoding
        both = own if max_new_tokens is None else {"max_new_tokens": max_new_tokens} | own
        return Decoding.read(both, f"{self.folder / SETTINGS_FILE}: config '{cell.name}'")

    def params(self, cell: Cell) -> dict[str, Any]:
        """The strategy's parameters for a cell."""
        return self.settings.reuse.params | cell.params

    @cached_property
    def code(self) -> dict[str, str]:
        """SHA-256 of each of its Python files, by name."""
        return {
            path.relative_to(self.folder).as_posix(): _sha256(path)
            for path in code_files(self.folder, "*.py")
        }

    @cached_property
    def _module(self) -> ModuleType:
        return _import(self.folder / CODE_FILE)

    @property
    def unmask(self) -> Unmask | None:
        """The experiment's own rule of unmasking, where it brings one."""
        return vars(self._module).get("unmask")

    def strategy(self, config: StrategyConfig) -> ReuseStrategy[Any]:
        """The strategy that the experiment's code makes of ``config``.

        Raises:
            FdllmError: the code fails, or returns something else.
            UsageError: the code refuses the parameters, or one is no field of the classes that
                ``strategy`` says it returns.
        """
        path = self.folder / CODE_FILE
        make = vars(self._module).get("strategy")
        if not callable(make):
            raise FdllmError(
                f"{path} defines no function strategy(config); it must return a ReuseStrategy"
            )
        _check_parameters(make, config.params, f"experiment '{self.name}'")
        with _errors_name_the_line(path):
            made = make(config)
        if not isinstance(made, ReuseStrategy):
            raise FdllmError(
                f"{path}: strategy(config) returned {type(made).__name__}; it must return a "
                "ReuseStrategy (fdllm.NoReuse() where nothing is reused)"
            )
        return made


def load_strategy(
    name: str,
    *,
    k: int,
    subset: Subset,
    n_layers: int,
    subset_size: int | None = None,
    **params: Any,  # noqa: ANN401 - the experiment's own
) -> ReuseStrategy[Any]:
    """The strategy of an experiment for one config.

    Args:
        name: the experiment, say ``00_baseline``.
        k: reuse period.
        subset: ``first``, ``middle`` or ``last``.
        n_layers: layers of the model.
        subset_size: layers of the subset; None takes the experiment's, else the default.
        params: parameters of the strategy, on top of the experiment's.

    Raises:
        UsageError: the experiment is unknown, or a value makes no sense.
        FdllmError: its code fails.
    """
    experiment = load_experiment(name)
    reuse = experiment.settings.reuse
    config = {
        "k": k,
        "subset": subset,
        "n_layers": n_layers,
        "subset_size": reuse.subset_size if subset_size is None else subset_size,
        "params": reuse.params | params,
    }
    return experiment.strategy(StrategyConfig.read(config, f"experiment '{name}'"))


def list_experiments(root: Path) -> list[str]:
    """Names of the experiments of a checkout, in order; the template is none."""
    folder = root / FOLDER
    return sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and EXPERIMENT_NAME.match(path.name)
    )


def load_experiment(name: str, root: Path | None = None) -> Experiment:
    """Read an experiment's settings; its code is loaded when a strategy is asked for.

    Args:
        name: the folder's whole name.
        root: the checkout; None finds it.

    Raises:
        UsageError: there is none of that name (the message lists what exists), or its settings
            hold an unknown key or a wrong value.
    """
    root = root or find_root()
    known = list_experiments(root)
    if name not in known:
        have = ", ".join(known) or "none"
        raise UsageError(
            f"unknown experiment '{name}'{did_you_mean(name, known)}; {root / FOLDER} has {have}. "
            "Make one with: fdllm new NAME; set FDLLM_ROOT to a clone of the repository for its own"
        )
    folder = root / FOLDER / name
    if not (folder / CODE_FILE).is_file():
        raise UsageError(
            f"experiment '{name}' has no {CODE_FILE}; {folder} must hold one with a function "
            "strategy(config)"
        )
    return Experiment(name, folder, read_settings(folder / SETTINGS_FILE))


def create_experiment(name: str, root: Path, source: str | None = None) -> Path:
    """Make ``experiments/NN_name``.

    Code and settings are the source's; proposal, tasks and results start empty from the template.
    The source's criteria are there as comments: what would confirm is to be decided anew.

    Args:
        name: ``adaptive_skip`` (the next free number goes in front) or ``04_adaptive_skip``.
        root: the checkout.
        source: an experiment to begin from; None is the template.

    Returns:
        The new folder.

    Raises:
        UsageError: the name has another form or is taken, or the source is unknown.
        FdllmError: the folder cannot be written.
    """
    whole = _whole_name(name, root)
    target = root / FOLDER / whole
    template = root / FOLDER / TEMPLATE
    if not template.is_dir():
        template = INSTALLED
    if not template.is_dir():
        raise UsageError(
            f"there is no template in {root / FOLDER}, nor in this installation; clone the "
            "repository and set FDLLM_ROOT to it"
        )
    origin = template if source is None else load_experiment(source, root).folder
    make_folder(root / FOLDER)
    with explained(target):
        draft = Path(tempfile.mkdtemp(dir=root / FOLDER, prefix=f".{whole}-"))
        try:
            shutil.copytree(
                origin,
                draft,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("__pycache__", ".*", "*~", "#*#", *_PAGES),
            )
            for page in _PAGES:
                text = (template / page).read_text(encoding="utf-8")
                text = text.replace("NAME", whole).replace("SOURCE", source or "the template")
                (draft / page).write_text(text, encoding="utf-8")
            settings = draft / SETTINGS_FILE
            title = f'title = "{whole[3:].replace("_", " ").capitalize()}"'
            text = _TITLE.sub(title, settings.read_text(encoding="utf-8"), count=1)
            text = _CRITERIA.sub(lambda table: _commented(table.group(), source or ""), text)
            settings.write_text(text, encoding="utf-8")
            draft.chmod(0o755)
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return target


def _commented(table: str, source: str) -> str:
    lines = [f"# {line}".rstrip() for line in table.splitlines()]
    return "\n".join((f"# Those of {source}; state your own before the first run.", *lines, ""))


def _whole_name(name: str, root: Path) -> str:
    taken = list_experiments(root)
    if not re.match(r"^\d\d_", name):
        number = max((int(other[:2]) for other in taken), default=-1) + 1
        name = f"{number:02d}_{name}"
    if not EXPERIMENT_NAME.match(name):
        raise UsageError(
            f"'{name}' is no name for an experiment; use small letters, digits and _, for example "
            "adaptive_skip (the next number goes in front) or 04_adaptive_skip"
        )
    same_number = [other for other in taken if other[:2] == name[:2]]
    if same_number or (root / FOLDER / name).exists():
        raise UsageError(
            f"experiments/{same_number[0] if same_number else name} exists already; choose another "
            "name, or leave the number out to take the next free one"
        )
    return name


def _check_parameters(make: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """Refuse what is no field of the dataclasses that ``strategy`` says it returns.

    Nothing is refused where it says something else, ``ReuseStrategy[Any]`` for example.
    """
    try:
        told = get_type_hints(make).get("return")
    except (NameError, TypeError):  # a name for the type checker alone; an object of another kind
        return
    kinds = [get_origin(kind) or kind for kind in get_args(told) or (told,)]
    if not all(is_dataclass(kind) for kind in kinds):
        return
    valid = [field.name for kind in kinds for field in fields(kind) if field.init]
    for name in given:
        if name not in valid:
            raise UsageError(
                f"{where}: unknown parameter '{name}'{did_you_mean(name, valid)}; its strategy has "
                f"{', '.join(valid) or 'none'}"
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _import(path: Path) -> ModuleType:
    """Run a file as a module of its own name: two experiments never share one.

    The name holds place and content, so what stays the same is loaded once, and its strategies are
    equal where their parameters are.
    """
    place = hashlib.sha256(bytes(path.resolve())).hexdigest()[:8]
    name = f"fdllm_experiment_{path.parent.name}_{place}_{_sha256(path)[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FdllmError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _errors_name_the_line(path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _errors_name_the_line(path: Path) -> Iterator[None]:
    """One line for whatever a researcher's code raises, with the line it stands on."""
    try:
        yield
    except FdllmError:
        raise
    except SyntaxError as error:
        raise FdllmError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}, line {frames[-1].lineno}" if frames else str(path)
        raise FdllmError(f"{where}: {type(error).__name__}: {error}") from error
