"""Takes a profile: a model's layers on documents of a task, on a run's own path.

Documents are drawn at random, asked in the run's own prompts and graded by the task's own metric.
They are cut in halves that share no prompt: on one the layers are chosen, and on the other, of
which the choice knows nothing, they are tested against the named subsets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fdllm.core.config import Unmask
from fdllm.core.engine import resolve
from fdllm.core.reuse import NoReuse, Target
from fdllm.core.sampler import GenerationRequest
from fdllm.core.subsets import SUBSETS, subset_bounds
from fdllm.core.unmask import by_threshold
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.adapter import EngineLM, LoadedModel, OnDone, ask
from fdllm.evaluate.documents import LoadedTask, load_run, quiet
from fdllm.evaluate.humaneval import check_consent
from fdllm.evaluate.looks import by_leaf
from fdllm.evaluate.requests import EvalRequest
from fdllm.evaluate.samples import evaluation_of
from fdllm.evaluate.tasks import task_info
from fdllm.plan import Planner
from fdllm.profiling.layer_set import LayerSetReuse
from fdllm.profiling.oracle import oracle_skip
from fdllm.profiling.record import CHOSEN, GradedAnswers, Half, OracleSaving, Profile
from fdllm.profiling.redundancy import choose
from fdllm.profiling.walk import LayerWalk, Tally, phase_maps
from fdllm.record.deciding import DocumentKey, draw_order
from fdllm.record.measure import add_counts, made
from fdllm.record.provenance import cpu_name, utc_now
from fdllm.runs import Run

K = 2
TARGET: Target = "residual"
"""What is reused: an output gives the last logits again, whichever layer it is of."""
Watch = Callable[[str, float], object]
"""Told what is being done, and the share of the whole that is behind it."""
_FEWEST = 2  # documents of a half
_ORACLE = 24  # passes over the documents that the oracle takes about as long as


@dataclass(frozen=True)
class _Given:
    """A document's answer."""

    prompt: str  # its hash
    value: float  # the headline figure
    said: str | int  # the text, or the number of the choice
    calls: float  # layer calls made


Given = Mapping[DocumentKey, _Given]


class _WalkingLM(EngineLM):
    """Answers without reuse, and has the layers measured.

    Attributes:
        tallies: of each document.
        heard: all that was asked.
    """

    def __init__(self, run: Run, model: LoadedModel, unmask: Unmask) -> None:
        super().__init__(run, model.model, NoReuse(), unmask)
        self.tallies: dict[DocumentKey, list[Tally]] = {}
        self.heard: list[EvalRequest] = []

    def answer(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        """Count each request's forwards for its document."""
        settings = resolve(self.decoding, self._model)
        self.hook = walk = LayerWalk(self._model, settings.mask, settings.block_size)
        self.heard += requests
        super().answer(requests, on_done)
        for number, tally in walk.tallies.items():
            self.tallies.setdefault(requests[number].document, []).append(tally)


@dataclass
class _Asking:
    """Puts one task to one model again and again; prompts are made once.

    It is the reporter of what it asks.
    """

    model: LoadedModel
    run: Run
    loaded: LoadedTask
    unmask: Unmask
    watch: Watch
    passes: int  # there will be
    metric: str = ""  # the headline, once something is graded
    _what: str = ""
    _behind: float = 0.0  # passes
    _requests: int = 1  # of the pass at hand

    def reuse(self, what: str, layers: Sequence[int], documents: Sequence[DocumentKey]) -> Given:
        """Answer documents with these layers reused."""
        strategy = LayerSetReuse(K, tuple(layers), TARGET) if layers else NoReuse()
        return self.ask(what, self.model.asked(self.run, strategy, self.unmask), documents)

    def ask(self, what: str, lm: EngineLM, documents: Sequence[DocumentKey]) -> Given:
        """Answer documents, and grade the answers."""
        self._what, lm.progress = what, self
        here = self.loaded.choose(by_leaf(documents))
        found = ask(lm, here, self.run.evaluating, limit=self.run.limit)
        graded = evaluation_of(found, here, lm.entries, self.run)
        self.metric = graded.headline
        return {(one["task"], one["doc_id"]): self._given(one) for one in graded.samples}

    def _given(self, sample: Mapping[str, Any]) -> _Given:
        value, said = sample["metrics"].get(self.metric), sample["output"]
        if not isinstance(value, (bool, int, float)):
            raise FdllmError(
                f"'{self.metric}' of task '{self.run.task}' is no figure of single documents, so "
                "no layers can be chosen on half of them; profile another task"
            )
        if isinstance(said, list) and isinstance(said[0], float):  # of choices
            said = said.index(max(said))
        calls = sum(made(count) for count in add_counts([sample]).values())
        return _Given(sample["prompt_hash"], float(value), said, calls)

    def start(self, run: Run) -> None:
        """Nothing is told of runs."""

    def note(self, text: str) -> None:
        """Nothing is noted."""

    def begin(self, total: int, done: int) -> None:  # noqa: ARG002 - nothing is stored
        """A pass begins."""
        self._requests = total

    def advance(self, entry: Mapping[str, Any]) -> None:  # noqa: ARG002 - the protocol's
        """One more request of it is answered."""
        self.move(self._what, 1 / self._requests)

    def move(self, what: str, passes: float) -> None:
        """Say how far everything is."""
        self._behind += passes
        self.watch(what, min(1.0, self._behind / self.passes))


def take_profile(
    planner: Planner,
    model: LoadedModel,
    run: Run,
    number: int,
    *,
    watch: Watch = lambda _what, _share: None,
) -> Profile:
    """Take a profile; nothing is written.

    Args:
        planner: knows what the run is.
        model: loaded.
        run: without reuse; its task, and how that is asked and decoded.
        number: documents, of each leaf task its share; all where there are no more.
        watch: told how far it is.

    Raises:
        UsageError: reuse cannot act in such a run, or there are too few documents.
        FdllmError: documents cannot be had, a logit is not finite, or the task's figure is none of
            single documents.
    """
    began, started = time.perf_counter(), utc_now()
    check(run)
    n_layers, unmask = model.n_layers, planner.experiment(run.experiment).unmask or by_threshold
    subsets = {n: range(*subset_bounds(n, n_layers, run.subset_size)) for n in SUBSETS}
    with quiet():
        loaded = load_run(run)
        documents = draw_order(loaded.sizes(run.limit))[:number]
        passes = n_layers + 3 + len(subsets) + (_ORACLE if _foreseeable(run) else 0)
        asking = _Asking(model, run, loaded, unmask, watch, passes)
        plain = asking.reuse("without reuse", (), documents)
        sides = halves(documents, {key: one.prompt for key, one in plain.items()})
        walking = _WalkingLM(run, model, unmask)
        asking.ask("hidden states", walking, documents)
        alone = [asking.reuse(f"layer {i} alone", (i,), documents) for i in range(n_layers)]
        choosing, testing = (_half(side, plain, alone, walking.tallies) for side in sides)
        sets = {CHOSEN: choose(choosing, len(subsets[SUBSETS[0]]))} | subsets
        tested = {
            name: _graded(layers, testing.documents, asking.reuse(name, layers, sides[1]), plain)
            for name, layers in sets.items()
        }
    oracle = _oracle(asking, walking)
    facts = model.facts(run.evaluating)
    fields = planner.fingerprint(run).known().fields
    return Profile(
        experiment=run.experiment,
        task=run.task,
        limit=run.limit,
        model=run.model.name,
        preset=None if run.preset is None else run.preset_words,
        decoding=run.decoding.words,
        metric=asking.metric,
        fingerprint={name: value for name, value in fields.items() if value is not None},
        n_layers=n_layers,
        k=K,
        target=TARGET,
        choosing=choosing,
        testing=testing,
        tested=tested,
        oracle=oracle,
        device=str(facts["accelerator"] or cpu_name()),
        dtype=str(facts["dtype"]),
        started=started,
        seconds=round(time.perf_counter() - began, 1),
    )


def check(run: Run) -> None:
    """Refuse what nothing could be chosen for.

    Raises:
        UsageError: reuse cannot act in such a run, or nobody agreed to run its programs.
    """
    info, scoring = task_info(run.task, run.include), run.evaluating.scoring
    check_consent(info, run.code_execution)
    if info.kind == "loglikelihood" and scoring != "denoise":
        raise UsageError(
            f"the {scoring} estimator leaves layer reuse nothing to act on, or too little; profile "
            f"'{run.task}' with --scoring denoise"
        )
    if not run.decoding.use_block_cache:
        raise UsageError(
            f"{run} decodes without the block cache: every step is a REFRESH, in which these "
            "layers are never reused; profile an experiment or a preset that decodes with it"
        )


def halves(
    documents: Sequence[DocumentKey], prompts: Mapping[DocumentKey, str]
) -> tuple[list[DocumentKey], list[DocumentKey]]:
    """Documents, which come in random order, in two halves; those of one prompt on one side.

    Raises:
        UsageError: there are too few.
    """
    sides: tuple[list[DocumentKey], list[DocumentKey]] = ([], [])
    side_of: dict[str, int] = {}
    for key in documents:
        sides[side_of.setdefault(prompts[key], len(side_of) % 2)].append(key)
    if min(map(len, sides)) < _FEWEST:
        raise UsageError(
            f"a profile takes {2 * _FEWEST} documents or more of different prompts, half to choose "
            f"layers on and half to test them; got {len(side_of)}"
        )
    return sides


def _foreseeable(run: Run) -> bool:
    """Whether an oracle can look ahead: text is generated, and no token drawn."""
    info = task_info(run.task, run.include)
    return info.kind == "generate" and run.decoding.temperature == 0.0


def _oracle(asking: _Asking, walked: _WalkingLM) -> OracleSaving | None:
    """What skipping could save at all; None where answers are scored, or tokens drawn."""
    if not _foreseeable(asking.run):
        return None
    requests = walked.heard
    found = oracle_skip(
        asking.model.model,
        [GenerationRequest(r.tokens, r.max_new_tokens, r.until, r.seed) for r in requests],
        walked.decoding,
        unmask=asking.unmask,
        on_done=lambda _: asking.move("oracle", _ORACLE / len(requests)),
    )
    return OracleSaving(**{name: getattr(found, name) for name in OracleSaving.model_fields})


def _half(
    documents: Sequence[DocumentKey],
    plain: Given,
    alone: Sequence[Given],
    tallies: Mapping[DocumentKey, Sequence[Tally]],
) -> Half:
    return Half(
        documents=tuple(documents),
        prompts=tuple(plain[key].prompt for key in documents),
        plain=_graded((), documents, plain, plain),
        layers=tuple(_graded((i,), documents, one, plain) for i, one in enumerate(alone)),
        map=phase_maps([tally for key in documents for tally in tallies.get(key, ())]),
    )


def _graded(
    layers: Sequence[int], documents: Sequence[DocumentKey], given: Given, plain: Given
) -> GradedAnswers:
    return GradedAnswers(
        layers=tuple(layers),
        values=tuple(given[key].value for key in documents),
        same=tuple(given[key].said == plain[key].said for key in documents),
        calls=tuple(given[key].calls for key in documents),
    )
