"""Where everything of a run lies. This module alone knows the layout (docs/records.md section 1).

``results/<experiment>/<task>[_limit_N][+preset][@model]/<config>/`` holds a run's files. ``@model``
stands there only where the model is not the task's own (``tiny`` for the embedded tasks, the
published 7B for the benchmarks), so that records of two models never lie in one place.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fdllm.errors import UsageError
from fdllm.record.atomic import explained, make_folder
from fdllm.runs import Run, home_model
from fdllm.shard import Shard

TIMING = "timing"
"""The folder of a task's timing study, beside those of its configs."""
PROFILES = "profile"
"""The folder of profiles, beside those of experiments."""
COLUMNS, SAMPLES = "columns.json.xz", "samples.jsonl"
_LOCK_FILES = (".lock", ".holder")  # what their names begin with
_SHARD_FILE = re.compile(
    r"^(journal|failed|\.holder)\.shard-(?P<number>\d+)-of-(?P<count>\d+)\.jsonl?$"
)
TASK_NAME = re.compile(r"(?!.*_limit_\d+$)[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What a task may be called: its folder is read back as :class:`TaskFolder`."""
_TASK_FOLDER = re.compile(
    r"^(?P<task>.+?)(?:_limit_(?P<limit>\d+))?(?:\+(?P<preset>[^+@]+))?(?:@(?P<model>[^@]+))?$"
)


def utc_stamp() -> str:
    """Now, as part of a file name."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def model_slug(name: str) -> str:
    """A model's name as part of a folder's name; different models get different ones."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        return f"{_plain(folder.resolve().name)}-{place}"
    return _plain(name.replace("/", "--"))


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", text)


def set_aside(folder: Path, files: Sequence[Path]) -> Path:
    """Move files of a run's folder to where superseded ones lie; the place they went to.

    Raises:
        FdllmError: they cannot be moved.
    """
    aside = folder.parent / ".superseded" / f"{folder.name}-{utc_stamp()}"
    with explained(folder):
        aside.mkdir(parents=True)
        for path in files:
            path.rename(aside / path.name)
    return aside


@dataclass(frozen=True)
class RunPaths:
    """The files of one run."""

    folder: Path  # ``results/…/<config>``
    artifacts: Path  # where the copies for git lie: summary and columns
    logs: Path  # the run's log folder
    # whose journal, lock and failure these are; None where the run is not split. The record is the
    # run's own in any case.
    shard: Shard | None = None

    def of_shard(self, shard: Shard | None) -> RunPaths:
        """The same run's files as one of its shards sees them."""
        return replace(self, shard=shard)

    def shards(self) -> list[RunPaths]:
        """The shards that have left files here, in order."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        found = {
            Shard(int(match["number"]) - 1, int(match["count"]))
            for match in map(_SHARD_FILE.match, names)
            if match and 0 < int(match["number"]) <= int(match["count"])
        }
        return [self.of_shard(shard) for shard in sorted(found)]

    @property
    def _suffix(self) -> str:
        return "" if self.shard is None else self.shard.suffix

    @property
    def summary(self) -> Path:
        """``summary.json``; written last."""
        return self.folder / "summary.json"

    @property
    def samples(self) -> Path:
        """``samples.jsonl``; a line a document."""
        return self.folder / SAMPLES

    @property
    def results(self) -> Path:
        """``results.json``; the harness's."""
        return self.folder / "results.json"

    @property
    def journal(self) -> Path:
        """``journal.jsonl``; a line a request, as it is answered."""
        return self.folder / f"journal{self._suffix}.jsonl"

    @property
    def failed(self) -> Path:
        """``failed.json``; why the last attempt ended."""
        return self.folder / f"failed{self._suffix}.json"

    @property
    def lock(self) -> Path:
        """``.lock``; held while a process works here."""
        return self.folder / f".lock{self._suffix}"

    @property
    def holder(self) -> Path:
        """``.holder.json``; who holds the lock."""
        return self.folder / f".holder{self._suffix}.json"

    @property
    def columns(self) -> Path:
        """``columns.json.xz``; what every figure is computed from."""
        return self.folder / COLUMNS

    @property
    def published(self) -> RunPaths:
        """What git keeps of the run: copies of its summary and its columns."""
        return replace(self, folder=self.artifacts)

    def new_log(self) -> Path:
        """A log file of this attempt; its folder exists afterwards."""
        make_folder(self.logs)
        return self.logs / f"local_{utc_stamp()}.log"

    def supersede(self, *names: str) -> Path | None:
        """Move files of an earlier record aside, so that nothing is lost.

        The lock stays: whoever holds it goes on holding it.

        Args:
            names: files to move; all of them where none is named.

        Returns:
            The folder they went to, or None where there was nothing to move.
        """
        with explained(self.folder):
            moving = [
                path
                for path in sorted(self.folder.iterdir() if self.folder.is_dir() else ())
                if not path.name.startswith(_LOCK_FILES) and (not names or path.name in names)
            ]
        return set_aside(self.folder, moving) if moving else None


@dataclass(frozen=True)
class TaskFolder:
    """A task's folder: ``<task>[_limit_N][+preset][@model]``, which is how it prints."""

    task: str
    limit: int | None = None  # documents at most, or None
    preset: str | None = None
    model: str | None = None  # the model's slug; None where it is the task's own

    @classmethod
    def parse(cls, name: str) -> TaskFolder | None:
        """Read a folder's name; None where it is no such folder."""
        match = _TASK_FOLDER.match(name)
        if match is None or name.startswith("."):
            return None
        limit = int(match["limit"]) if match["limit"] else None
        return cls(match["task"], limit, match["preset"], match["model"])

    @classmethod
    def of(cls, run: Run) -> TaskFolder:
        """Where a run's files lie."""
        own = run.model.name == home_model(run.task)
        return cls(run.task, run.limit, run.preset, None if own else model_slug(run.model.name))

    def __str__(self) -> str:
        limit = "" if self.limit is None else f"_limit_{self.limit}"
        preset = "" if self.preset is None else f"+{self.preset}"
        model = "" if self.model is None else f"@{self.model}"
        return f"{self.task}{limit}{preset}{model}"


@dataclass(frozen=True)
class Layout:
    """The three roots."""

    results: Path  # full records; not in git
    artifacts: Path  # summaries and columns; in git
    logs: Path  # logs; not in git

    @classmethod
    def of(cls, root: Path, results: Path | None = None) -> Layout:
        """The roots of a checkout.

        Args:
            root: the checkout.
            results: another folder for everything that runs write; the artifacts and logs then
                lie inside it, so that trying something out never touches what git tracks.
        """
        if results is None:
            return cls(root / "results", root / "artifacts", root / "logs")
        return cls(results, results / "artifacts", results / "logs")

    def run(self, run: Run) -> RunPaths:
        """The files of ``run``."""
        part = Path(run.experiment, str(TaskFolder.of(run)), run.cell.name)
        # A log belongs to a place in the table, so it has the limit and the model in its path too.
        return RunPaths(self.results / part, self.artifacts / part, self.logs / part)

    def timing(self, run: Run) -> tuple[Path, Path]:
        """The timing study of ``run``'s task, and its copy for git."""
        part = Path(run.experiment, str(TaskFolder.of(run)), TIMING, "study.json")
        return self.results / part, self.artifacts / part

    def profile(self, run: Run) -> tuple[Path, Path]:
        """The profile of ``run``'s task and model, and its copy for git."""
        return self.profile_beside(str(TaskFolder.of(run)))

    def profile_beside(self, task_folder: str) -> tuple[Path, Path]:
        """The same, of the runs that lie in a task folder of any experiment."""
        part = Path(PROFILES, task_folder, "profile.json")
        return self.results / part, self.artifacts / part

    def part(self, folder: Path) -> Path:
        """``<experiment>/<task folder>/<config>`` of a folder of records or of git's copies."""
        inside = folder.is_relative_to(self.artifacts)  # which may lie below the results
        return folder.relative_to(self.artifacts if inside else self.results)

    def task_folders(self, experiment: str) -> list[TaskFolder]:
        """Task folders of an experiment that hold anything, a run's files or git's copies."""
        names = {
            path.name
            for root in (self.results, self.artifacts)
            if (root / experiment).is_dir()
            for path in (root / experiment).iterdir()
            if path.is_dir()
        }
        return [one for one in map(TaskFolder.parse, sorted(names)) if one is not None]


def find_root(start: Path | None = None) -> Path:
    """The checkout that experiments, results and artifacts belong to.

    ``FDLLM_ROOT`` if it is set; else the checkout that holds this package; else the folder the
    command was started in.

    Args:
        start: stands in for the folder the command was started in.

    Raises:
        UsageError: ``FDLLM_ROOT`` names no folder.
    """
    named = os.environ.get("FDLLM_ROOT")
    if named:
        root = Path(named).expanduser()
        if not root.is_dir():
            raise UsageError(f"FDLLM_ROOT names '{named}', which is no folder; set it or unset it")
        return root.resolve()
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "experiments").is_dir():
        return checkout
    return start or Path.cwd()
