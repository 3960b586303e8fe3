"""Harness tasks that hold their documents once.

The harness runs a task's ``process_docs`` at every access of its documents. GPQA's shuffles the
choices with a generator of its module, so every access sees another shuffle: with a cold dataset
cache prompts are made of one and answers checked against another, and even an oracle scores a
quarter. Here a split is processed once, by a fresh copy of the module that processes it, so the
documents are the same in every access, run and process, whatever ran before.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import AggMetricConfig
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from fdllm.caches import check_token
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate import boxed
from fdllm.evaluate.hub_errors import explain_access, without_token
from fdllm.evaluate.humaneval import Programs, check_consent
from fdllm.evaluate.nltk_data import require_sentences
from fdllm.evaluate.task_definition import placed_rows
from fdllm.evaluate.task_manager import manager_of
from fdllm.evaluate.tasks import TaskInfo, definition_of, prompt_rule, task_info
from fdllm.runs import CodeExecution, Evaluating, Run
from fdllm.sandbox.confinement import Sandbox

_ENCLOSING = "fdllm"
_LOUD = (
    "lm_eval", "datasets", "huggingface_hub", "transformers", "fsspec", "httpx", "urllib3",
    "math_verify",
)  # fmt: skip


@dataclass(frozen=True)
class TaskOptions:
    """How a task is instantiated.

    Attributes:
        info: what is known of it, or of its group.
        asked: how it is asked.
        code_execution: consent to run programs, for a task whose metric does.
    """

    info: TaskInfo
    asked: Evaluating
    code_execution: CodeExecution = "refused"


class DeterministicTask(ConfigurableTask):  # type: ignore[misc] # lm-eval is untyped
    """A task of the harness, made from its own definition, with its documents held.

    Attributes:
        programs: runs what the model wrote, where the task's metric does that; else None.
        chosen: numbers of the documents that are asked and graded; None is all of them. Prompts are
            made for all, and once: worked examples are drawn from one document to the next, so a
            document asked alone would get other ones.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Instantiate by a definition, which also holds ``options``; fetches the documents.

        Raises:
            UsageError: more worked examples are asked for than there are.
            FdllmError: the documents cannot be had.
        """
        settings = {k: v for k, v in config.items() if k not in ("class", "options")}
        options: TaskOptions = config["options"]
        self._asked_for = options.info.name  # a leaf's own name is none that a flag takes
        self._boxed = options.info.boxed
        self._num_fewshot = options.asked.num_fewshot
        self._rule = prompt_rule(options.info.name, options.asked.instruction)
        self._held: dict[str, Any] = {}
        self.chosen: Collection[int] | None = None
        self._built: list[Instance] = []  # every document's, once some of them were chosen
        self.programs: Programs | None = None
        if options.info.runs_code:
            self.programs = Programs(Sandbox(options.code_execution))
            settings = self.programs.take_over(settings, chat=options.asked.chat_template)
        # The task's own filters would take the box away.
        self._box_apart = self._boxed is not None and "filter_list" in settings
        if self._box_apart:
            whole = {"function": "custom", "filter_fn": boxed.whole_texts}
            beside = [{"name": "none", "filter": [whole]}]
            settings["filter_list"] = [*settings["filter_list"], *beside]
        wanted = self._num_fewshot
        if settings.get("num_fewshot") == 0 and wanted:
            raise UsageError(
                f"task '{settings['task']}' is defined without worked examples; got num_fewshot "
                f"{wanted}, use 0"
            )
        settings["num_fewshot"] = wanted
        # Where the definition lies on this machine is nothing that results should carry.
        metadata = dict(settings.get("metadata") or {})
        source = Path(str(metadata.get("config_source", "")))
        self._folder = source.parent
        settings["metadata"] = metadata | {"config_source": "/".join(source.parts[-3:])}
        if settings.get("process_docs") is not None:
            settings["process_docs"] = fresh_copy(settings["process_docs"])
        super().__init__(config=settings)
        self.set_fewshot_seed(options.asked.fewshot_seed)
        self._check_examples()

    def _check_examples(self) -> None:
        wanted = self._num_fewshot
        # The harness leaves the question itself out where examples come from its own split.
        own = self.fewshot_cfg.split == self.config.test_split
        spare = len(self.sampler.df) - (1 if own else 0)
        if wanted > spare:
            raise UsageError(
                f"task '{self.task_name}' has {spare} worked examples; got num_fewshot {wanted}"
            )

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        """Fetch the documents, or find them in the cache.

        Raises:
            FdllmError: they cannot be had; the message says why, and what to do.
        """
        try:
            check_token()
            rows = placed_rows(vars(self.config), self._folder)
            own = {} if rows is None else {"data_files": rows}
            super().download({**(dataset_kwargs or {}), **own}, **kwargs)
        except FdllmError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the clients raise is explained
            raise explain_access(
                error, self._asked_for, str(self.DATASET_PATH), self.DATASET_NAME
            ) from None

    def _documents(self, split: str) -> Any:  # noqa: ANN401 - a datasets.Dataset
        if split not in self._held:
            if split not in self.dataset:
                raise FdllmError(
                    f"task '{self.task_name}': dataset {self.DATASET_PATH} has no split '{split}', "
                    f"only {', '.join(self.dataset)}; the cached copy may be of another version"
                )
            process = self.config.process_docs
            rows = self.dataset[split]
            self._held[split] = rows if process is None else process(rows)
        return self._held[split]

    def training_docs(self) -> Any:  # noqa: ANN401
        """The training split, processed once."""
        return self._documents(self.config.training_split) if self.has_training_docs() else None

    def validation_docs(self) -> Any:  # noqa: ANN401
        """The validation split, processed once."""
        return self._documents(self.config.validation_split) if self.has_validation_docs() else None

    def test_docs(self) -> Any:  # noqa: ANN401
        """The test split, processed once."""
        return self._documents(self.config.test_split) if self.has_test_docs() else None

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: Any = None) -> Any:  # noqa: ANN401
        """The text of a document, under the published evaluation's rule where there is one.

        This is the task's definition: the prompts of questions and of worked examples are made
        here, and what is logged is what was sent.
        """
        text = super().doc_to_text(doc, doc_to_text)
        return text if self._rule is None else self._rule.apply(text)

    def fewshot_context(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the harness's
        """The whole prompt, worked answers and template included."""
        prompt = super().fewshot_context(*args, **kwargs)
        rule = self._rule
        return rule.apply_everywhere(prompt) if rule is not None and rule.everywhere else prompt

    def build_all_requests(self, **kwargs: Any) -> None:  # noqa: ANN401 - the harness's signature
        """Build the prompts, without the harness's bar on standard error."""
        chosen, self.chosen = self.chosen, None
        if not self._built:
            with muted():
                super().build_all_requests(**kwargs)
        self.chosen = chosen
        if chosen is None and not self._built:
            return
        self._built = self._built or list(self.instances)
        # Answers are kept in an instance, so each asking has its own.
        self._instances = [
            replace(one, resps=[], filtered_resps={})
            for one in self._built
            if chosen is None or one.doc_id in chosen
        ]

    def doc_iterator(self, **kwargs: Any) -> Iterator[tuple[int, Any]]:  # noqa: ANN401 - as above
        """The documents that are graded, with their numbers."""
        every: Iterator[tuple[int, Any]] = super().doc_iterator(**kwargs)
        return every if self.chosen is None else (one for one in every if one[0] in self.chosen)

    def apply_filters(self) -> Any:  # noqa: ANN401 - the harness's signature
        """Apply the filters; programs are then run all together, not one a document."""
        found = super().apply_filters()
        if self.programs is not None:
            self.programs.prepare(
                [
                    (program, str(self.doc_to_target(one.doc)))
                    for one in self.instances
                    for filtered in one.filtered_resps.values()
                    for program in filtered
                ]
            )
        return found

    def aggregation(self) -> dict[str, Any]:
        """How each metric's values over documents become one."""
        own: dict[str, Any] = super().aggregation()
        return own if self._boxed is None else own | {boxed.METRIC: mean}

    def higher_is_better(self) -> dict[str, bool]:
        """Which way each metric points."""
        own: dict[str, bool] = super().higher_is_better()
        return own if self._boxed is None else own | {boxed.METRIC: True}

    def process_results(self, doc: Mapping[str, Any], results: Any) -> Any:  # noqa: ANN401
        """Score a document, its box too where it is a metric."""
        if self._boxed is None:
            return self._scored(doc, results)
        if self._box_apart and not isinstance(results[0], boxed.WholeText):
            return self._scored(doc, results)
        own = {} if self._box_apart else self._scored(doc, results)
        match = boxed.boxed_match(results[0], str(doc[self._boxed]))
        return own | {boxed.METRIC: float(match)}

    def _scored(self, doc: Mapping[str, Any], results: Any) -> Any:  # noqa: ANN401
        """By the task's own metric; a checker that draws at random draws the same for every run."""
        state = random.getstate()
        random.seed(0)
        try:
            return super().process_results(doc, results)
        finally:
            random.setstate(state)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop what is printed past the logging system: bars, and notices of imported definitions."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Errors only from the libraries beneath, and no bars; restored on the way out."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    bars = datasets.utils.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.utils.enable_progress_bars()


def fresh_copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function from a module executed anew, with generators nobody has drawn from."""
    path = function.__code__.co_filename
    spec = spec_from_file_location(f"{Path(path).stem}_fresh", path)
    if spec is None or spec.loader is None:
        raise FdllmError(f"{path}, which defines {function.__qualname__}, is not a Python file")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function.__name__)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LoadedTask:
    """A task or group, instantiated.

    Attributes:
        leaves: tasks by name, in the group's order; a single task is its own leaf.
        groups: the harness's groups, by name; empty for a single task.
    """

    leaves: dict[str, DeterministicTask]
    groups: dict[str, Group]

    def choose(self, documents: Mapping[str, Collection[int]] | None) -> LoadedTask:
        """The same with only these documents of each leaf; without the leaves that have none.

        None is every document again.
        """
        for name, leaf in self.leaves.items():
            leaf.chosen = None if documents is None else documents.get(name, ())
        kept = {n: leaf for n, leaf in self.leaves.items() if documents is None or leaf.chosen}
        return LoadedTask(kept, self.groups)

    def sizes(self, limit: int | None = None) -> dict[str, int]:
        """Documents of each leaf, as far as a limit."""
        every = {name: len(leaf.eval_docs) for name, leaf in self.leaves.items()}
        return {n: size if limit is None else min(size, limit) for n, size in every.items()}


def load_run(run: Run) -> LoadedTask:
    """A run's task; the sandbox is tried out ahead of answers that it could not score.

    Raises:
        UsageError: nobody agreed to run its programs, or as :func:`load_task`.
        FdllmError: they cannot be confined on this machine, or as :func:`load_task`.
    """
    check_consent(task_info(run.task, run.include), run.code_execution)
    with quiet():
        loaded = load_task(
            run.task, run.evaluating, code_execution=run.code_execution, include=run.include
        )
    for leaf in loaded.leaves.values():
        if leaf.programs is not None:
            leaf.programs.check()
    return loaded


def load_task(
    name: str,
    asked: Evaluating | None = None,
    *,
    code_execution: CodeExecution = "refused",
    include: Path | None = None,
) -> LoadedTask:
    """Instantiate a task or group through the harness.

    Only what defines it is scanned (all of the harness's definitions take many seconds).

    Args:
        name: the task.
        asked: how it is asked; None takes the defaults.
        code_execution: consent to run programs that the model wrote. Loading runs none.
        include: a folder with definitions of the user's. Python that they name runs here.

    Raises:
        UsageError: the task is unknown, or has fewer worked examples.
        FdllmError: its definition or its documents cannot be had.
    """
    asked = asked or Evaluating()
    info, definition = task_info(name, include), definition_of(name, include)
    if "ifeval" in name:
        require_sentences()
    manager = manager_of(name, definition)
    if info.runs_code:
        # Read without importing its functions, which would fetch code and execute it.
        path = manager.task_index[name].yaml_path
        definition = load_yaml(path, resolve_func=False)
        manager.task_index[name] = Entry(name=name, kind=Kind.TASK, yaml_path=None, cfg=definition)
    # An enclosing group is the manager's way to override definitions of tasks and groups alike.
    manager.task_index[_ENCLOSING] = Entry(
        name=_ENCLOSING,
        kind=Kind.GROUP,
        yaml_path=None,
        cfg={
            "group": _ENCLOSING,
            "task": [name],
            "class": DeterministicTask,
            "options": TaskOptions(info, asked, code_execution),
        },
    )
    try:
        with muted():
            loaded = manager.load(_ENCLOSING)
    except FdllmError:
        raise
    except Exception as error:
        reason = without_token(str(error))
        # A definition imports what it needs.
        path = None if definition is None else definition.entries[name].path
        is_own = path is not None and include is not None and path.is_relative_to(include)
        remedy = f"look at {path}" if is_own else "install fdllm with its pinned dependencies"
        raise FdllmError(
            f"task '{name}' cannot be loaded ({type(error).__name__}: {reason}); {remedy}"
        ) from error
    groups = {group: found for group, found in loaded["groups"].items() if group != _ENCLOSING}
    if info.boxed is not None:
        beside = AggMetricConfig(metric=boxed.METRIC)
        for group in groups.values():
            group.aggregate_metric_list = [*(group.aggregate_metric_list or []), beside]
    return LoadedTask(dict(loaded["tasks"]), groups)
