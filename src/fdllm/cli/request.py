"""From flags to a sweep: defaults filled in, names checked, nothing computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from fdllm.cli.options import Selection
from fdllm.cli.output import complain
from fdllm.cluster.status import survey
from fdllm.criteria import Criteria
from fdllm.errors import UsageError
from fdllm.evaluate.task_index import own_index
from fdllm.evaluate.tasks import TASKS, task_facts, task_info
from fdllm.experiment import Experiment
from fdllm.experiment.load import CODE_FILE, EXPERIMENT_NAME, FOLDER, SETTINGS_FILE
from fdllm.plan import CellState, Planner
from fdllm.presets.reader import load_preset
from fdllm.record.paths import Layout, find_root
from fdllm.runs import DEFAULT_MODEL, TINY_MODEL, ModelChoice, Run, Sweep, home_model
from fdllm.timing.wanted import WantedStudy


@dataclass(frozen=True)
class SweepRequest:
    """What was asked for."""

    planner: Planner  # knows experiments, tasks and records
    sweep: Sweep  # the runs

    @cached_property
    def runs(self) -> list[Run]:
        """Every run of the sweep."""
        return self.planner.runs(self.sweep)

    @property
    def criteria(self) -> Criteria | None:
        """The experiment's success criteria."""
        return self.planner.experiment(self.sweep.experiment).settings.criteria

    def states(self) -> list[CellState]:
        """What has become of every run, by its files."""
        return [self.planner.state(run) for run in self.runs]

    def survey(self, studies: Sequence[WantedStudy] = ()) -> list[CellState]:
        """The same and then the studies', joined with the queue.

        Raises:
            SlurmError: there is a queue, and it does not answer.
        """
        return survey(self.planner, self.runs, studies)


def make_planner(options: Selection) -> Planner:
    """A planner for the checkout and the folder of records.

    Raises:
        UsageError: the experiment or a task is unknown.
    """
    root = find_root()
    facts = partial(task_facts, include=options.include_path)
    planner = Planner(root, Layout.of(root, options.results), facts)
    _check_made(root / FOLDER / options.experiment)
    planner.experiment(options.experiment)
    for task in options.task or ():
        planner.task(task)
    return planner


def _check_made(folder: Path) -> None:
    """Raise what is missing of an experiment where a folder was made by hand around its code."""
    name = folder.name
    if not (folder / CODE_FILE).is_file():
        return  # said where experiments are loaded
    if not EXPERIMENT_NAME.match(name):
        raise UsageError(
            f"{folder} has code, and no number in its name, two digits as in '00_baseline': "
            f"mv {FOLDER}/{name} {FOLDER}/NN_{name}"
        )
    if not (folder / SETTINGS_FILE).exists():
        raise UsageError(
            f"{folder} has code, and no settings and grid; 00_baseline's are a beginning: "
            f"cp {FOLDER}/00_baseline/{SETTINGS_FILE} {FOLDER}/{name}/"
        )


def read_request(
    options: Selection, forced: Sequence[str] = (), *, weights: bool = True
) -> SweepRequest:
    """Flags to a sweep.

    Args:
        options: which runs, and how.
        forced: configs named behind ``--force``; they belong to the selection.
        weights: False where none are looked at, so that a tokenizer alone is a model too.

    Raises:
        UsageError: a name is unknown; the message lists the valid ones and the nearest.
    """
    planner = make_planner(options)
    experiment = planner.experiment(options.experiment)
    model = choose_model(options.model, options.task or ())
    preset = None if options.preset is None else load_preset(options.preset)
    tasks = options.task or asked_tasks(
        default_tasks(experiment, model, options.include_path), options
    )
    if options.include_path is not None and options.task is None:
        own = own_index(options.include_path)
        if not {*own} & {*tasks}:
            raise UsageError(
                f"--include-path is given and none of its tasks is asked: --task {min(own)}, say"
            )
    for task in () if preset is None else preset.tasks:
        task_info(task, options.include_path)
    sweep = Sweep(
        experiment=options.experiment,
        tasks=tuple(tasks),
        configs=tuple(dict.fromkeys([*(options.config or ()), *forced])),
        model=ModelChoice(
            name=model,
            revision=options.revision,
            dtype=options.dtype,
            device=options.device,
        ),
        limit=options.limit,
        evaluating=experiment.settings.evaluation,
        preset=preset,
        flags=options.evaluating,
        code_execution=options.code_execution,
        include=options.include_path,
    )
    request = SweepRequest(planner, sweep)
    _ = request.runs  # names are checked before anything else happens
    if weights:
        planner.model(sweep.model)
    return request


def choose_model(given: str | None, tasks: Sequence[str]) -> str:
    """The model: the flag, else FDLLM_MODEL, else the tasks' own.

    Raises:
        UsageError: nothing is given, and the tasks have different models.
    """
    named = given or os.environ.get("FDLLM_MODEL")
    if named:
        # Behind a link it is called by where it lies: the one name that holds in an image too.
        folder = Path(named).expanduser().absolute()
        linked = folder.is_dir() and any(map(Path.is_symlink, (folder, *folder.parents)))
        return str(folder.resolve()) if linked else named
    homes = sorted({home_model(task) for task in tasks})
    if len(homes) > 1:
        raise UsageError(
            f"tasks {', '.join(tasks)} belong to different models ({', '.join(homes)}); name one "
            "with --model, or sweep them one after the other"
        )
    return homes[0] if homes else DEFAULT_MODEL


def asked_tasks(tasks: Sequence[str], options: Selection) -> tuple[str, ...]:
    """Tasks nobody named: those that run code only where that was agreed to, which is said.

    A command that computes nothing has no such flag, or asks for states, and takes all.
    """
    if options.allow_code_execution is not False or options.status:
        return tuple(tasks)
    left_out = [task for task in tasks if task_info(task, options.include_path).runs_code]
    rest = tuple(task for task in tasks if task not in left_out)
    if not left_out or not rest:
        return tuple(tasks)
    complain(
        f"{', '.join(left_out)} left out: it runs programs that the model writes; "
        "--allow-code-execution includes it"
    )
    return rest


def default_tasks(
    experiment: Experiment, model: str, include: Path | None = None
) -> tuple[str, ...]:
    """The tasks of an experiment: its own list, as far as it suits the model, else all that do."""
    usual = tuple(name for name, info in TASKS.items() if info.is_usual)
    own = experiment.settings.evaluation.tasks or usual
    for name in own:
        task_info(name, include)
    tiny = model == TINY_MODEL
    return tuple(t for t in own if (home_model(t) == TINY_MODEL) == tiny) or tuple(
        t for t in usual if (home_model(t) == TINY_MODEL) == tiny
    )
