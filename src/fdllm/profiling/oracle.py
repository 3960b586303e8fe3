"""Oracle skip: how many layer calls could be reused at all without another token being unmasked.

An oracle knows each step's outcome ahead. Plain decoding is recorded first; then, at each step, the
longest run of layers is searched that can be taken from what an earlier *whole* step of the block
stored, so that the same columns are unmasked with the same tokens. The best sequence of whole and
reusing steps is put together from that, and then it is run.

It rests on this: a layer that is skipped asks for no keys and values, and a layer that is computed
sees those of the columns beside it as the block's last REFRESH left them. So as long as a REFRESH
right ahead of a DENOISE computes every layer, what a reusing step reads depends on the step and on
the whole step that it takes its values from, and on nothing in between. The plan is therefore the
best of all plans that

- compute every layer of a block's first step and of a REFRESH right ahead of a DENOISE, and
- at each other step either do so too, or take one run of layers from what the last step that
  computed every layer stored: as output throughout a block, or as residual.

Every strategy that reuses one run on DENOISE steps alone is such a plan wherever it leaves all
unmasking unchanged, so it saves at most as much (sums of residuals are rounded layer by layer
here, which may turn a confidence at the very threshold). What is not: several runs in one step, a
run computed for some columns, extrapolation, and a REFRESH ahead of a DENOISE that reuses. They may
save more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import groupby
from typing import NamedTuple, TypeVar

from fdllm.core.cache import Snapshot
from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding, Unmask
from fdllm.core.engine import Engine, resolve
from fdllm.core.reuse import LayerPlan, LayerRun, Target
from fdllm.core.row_task import CacheRow, ForwardRequest, Prediction, RowTask, Steps, around
from fdllm.core.sampler import Generation, GenerationRequest, generate
from fdllm.core.schedule import Phase
from fdllm.core.unmask import by_threshold
from fdllm.errors import UsageError

T = TypeVar("T")
TARGETS: tuple[Target, ...] = ("output", "residual")  # what is stored; an identity is not
DENOISING = (Phase.REFRESH, Phase.DENOISE)
BATCH = 16
"""Rows that are searched at once: those that try the same run share a forward."""


@dataclass(frozen=True)
class OracleRow:
    """What the oracle found for one text.

    Attributes:
        plain: the text as plain decoding has it.
        plans: of each denoising step, in order, what its layers do.
        run: the text as ``plans`` decode it.
    """

    plain: Generation
    plans: tuple[LayerPlan, ...]
    run: Generation

    @property
    def equal(self) -> bool:
        """Whether the plans, run, unmasked what plain decoding does, step by step.

        They do on a CPU. On a GPU the rows that share a forward may move its last bits, and with
        them a confidence at the very threshold; then every layer is computed from there on.
        """
        return (self.run.tokens, self.run.steps) == (self.plain.tokens, self.plain.steps)


@dataclass(frozen=True)
class OracleSkip:
    """What the oracle found for some texts.

    Attributes:
        rows: one a text, in order.
    """

    rows: tuple[OracleRow, ...]

    @property
    def equal_texts(self) -> int:
        """Texts that the plans, run, leave as they are; see :attr:`OracleRow.equal`."""
        return sum(row.equal for row in self.rows)

    @property
    def layer_calls_whole(self) -> int:
        """Layer calls of plain decoding, all phases."""
        return sum(row.plain.counts.computed for row in self.rows)

    @property
    def layer_calls_saved(self) -> int:
        """Layer calls that the plans saved as they were run; of texts that stayed as they are."""
        return sum(row.run.counts.reused for row in self.rows if row.equal)

    @property
    def denoise_share(self) -> float:
        """Of the saved calls, the share that lies in DENOISE; the others are a REFRESH's."""
        saved = sum(row.run.counts[Phase.DENOISE].reused for row in self.rows if row.equal)
        return saved / self.layer_calls_saved if saved else 0.0

    @cached_property
    def by_layer(self) -> tuple[float, ...]:
        """Of each layer, the share of denoising steps that the plans spare it."""
        plans = [plan for row in self.rows if row.equal for plan in row.plans]
        total = sum(len(row.plans) for row in self.rows)
        n_layers = self.rows[0].plans[0].n_layers if total else 0
        skipped = [
            layer for plan in plans for run in plan.reuse for layer in range(run.start, run.stop)
        ]
        return tuple(skipped.count(layer) / total for layer in range(n_layers))


def oracle_skip(
    model: Model,
    prompts: Sequence[Sequence[int] | GenerationRequest],
    decoding: Decoding,
    *,
    unmask: Unmask = by_threshold,
    batch_size: int = BATCH,
    on_done: Callable[[int], None] = lambda _: None,
) -> OracleSkip:
    """The most that reuse could have saved of these texts, found by looking ahead, and run.

    Args:
        model: from :func:`fdllm.load_model`.
        prompts: tokens of each text to continue, or requests.
        decoding: settings.
        unmask: the rule of unmasking.
        batch_size: texts searched at once; it changes no figure.
        on_done: called with a text's number once it has been searched.

    Raises:
        UsageError: as :func:`~fdllm.core.sampler.generate` does; or tokens are drawn, not chosen.
    """
    filled = resolve(decoding, model)
    if filled.temperature > 0.0:
        raise UsageError(
            f"the oracle looks ahead on greedy decoding; got temperature={filled.temperature}: set "
            "it to 0"
        )
    plain = _Course()
    before = generate(model, prompts, filled, unmask=unmask, batch_size=batch_size, hook=plain)
    searches = [
        _Search(model.n_layers, plain.seen[i], unmask, filled.threshold)
        for i in range(len(prompts))
    ]
    tasks = [RowTask(search.run, plain.capacity[i], number=i) for i, search in enumerate(searches)]
    for index, _ in Engine(model, filled, batch_size).run(tasks):
        on_done(index)
    planned = _Course(searches)
    after = generate(model, prompts, filled, unmask=unmask, batch_size=batch_size, hook=planned)
    return OracleSkip(
        tuple(
            OracleRow(one, tuple(search.plans), run)
            for one, search, run in zip(before, searches, after, strict=True)
        )
    )


Forwards = list[tuple[ForwardRequest, Prediction]]


@dataclass
class _Course:
    """A :class:`~fdllm.core.row_task.ForwardHook` that keeps each row's forwards.

    Attributes:
        searches: by row, whose plans take the place of its own, as long as its course is that one.
        seen: by row, its forwards so far.
        capacity: by row, the positions that it may write.
    """

    searches: Sequence[_Search] = ()
    seen: dict[int, Forwards] = field(default_factory=dict)
    capacity: dict[int, int] = field(default_factory=dict)

    def wrap(self, task: RowTask[T]) -> RowTask[T]:
        """The task, watched."""
        number = task.number
        self.seen[number], self.capacity[number] = [], task.capacity
        planned = iter(self.searches[number].planned() if self.searches else ())

        def forward(
            _task: RowTask[T], _row: CacheRow, ask: ForwardRequest
        ) -> Generator[ForwardRequest, Prediction, Prediction]:
            plan = ask.plan
            if ask.phase in DENOISING:
                was, instead = next(planned, (None, plan))
                plan = instead if ask == was else plan
            told = yield replace(ask, plan=plan, lazy=False)
            self.seen[number].append((ask, told))
            return told

        return around(task, forward)


class _Source(NamedTuple):
    """A whole step, and the row's block as it left it."""

    step: int  # its number in the block
    block: Snapshot


Found = dict[tuple[int, int, Target], LayerRun]
"""By step of a block, whole step ahead of it and target: the longest run that may be reused."""


@dataclass
class _Search:
    """Goes a row's plain course again, and tries at each step what could have been reused."""

    n_layers: int
    course: Forwards
    unmask: Unmask
    threshold: float
    plans: list[LayerPlan] = field(default_factory=list)

    def planned(self) -> Iterator[tuple[ForwardRequest, LayerPlan]]:
        """Each denoising step, and the plan that was found for it."""
        return zip(self.steps, self.plans, strict=True)

    @property
    def steps(self) -> Iterator[ForwardRequest]:
        """Its denoising steps."""
        return (ask for ask, _ in self.course if ask.phase in DENOISING)

    def run(self, _task: RowTask[None], row: CacheRow) -> Steps[None]:
        """Block by block."""
        for denoising, forwards in groupby(self.course, lambda one: one[0].phase in DENOISING):
            if denoising:
                yield from self._block(row, list(forwards))
            else:
                for ask, _ in forwards:
                    yield replace(ask, lazy=False)

    def _block(self, row: CacheRow, forwards: Forwards) -> Steps[None]:
        """Try everything, then put the block's plan together."""
        found, sources = Found(), list[_Source]()
        for step, (ask, told) in enumerate(forwards):
            if ask.phase is Phase.DENOISE:
                # The REFRESH ahead of it is whole: nothing older is the last whole step.
                last = max(i for i in range(step) if forwards[i][0].phase is Phase.REFRESH)
                sources = [one for one in sources if one.step >= last]
            for source in sources:
                row.restore(source.block)
                for target in TARGETS:
                    run = yield from self._longest_run(ask, told, target)
                    if run is not None:
                        found[step, source.step, target] = run
            if sources:
                row.restore(sources[-1].block)
            for target in TARGETS:
                kept = tuple(LayerRun(i, i + 1, target) for i in range(self.n_layers))
                yield replace(ask, plan=LayerPlan(self.n_layers, store=kept), lazy=False)
            sources.append(_Source(step, row.save()))
        self.plans += best_plans(self.n_layers, [ask.phase for ask, _ in forwards], found)

    def _longest_run(
        self, ask: ForwardRequest, told: Prediction, target: Target
    ) -> Generator[ForwardRequest, Prediction, LayerRun | None]:
        """Longest first, as a longer run may do where a shorter one does not.

        What one trial leaves in the block reaches no other: the next writes the keys and values
        of what it computes before it reads them, and reads none of what it skips.
        """
        wanted = self._unmasked(told)
        for start, stop in spans(self.n_layers, target):
            plan = LayerPlan(self.n_layers, reuse=pieces(start, stop, target))
            told = yield replace(ask, plan=plan, lazy=False)
            if self._unmasked(told) == wanted:
                return LayerRun(start, stop, target)
        return None

    def _unmasked(self, told: Prediction) -> list[tuple[int, int]]:
        """Which of the columns that were read are unmasked, with which tokens."""
        chosen = self.unmask(told.confidence, self.threshold)
        return [(i, told.tokens[i]) for i in chosen]


@lru_cache(maxsize=8)
def spans(n_layers: int, target: Target) -> tuple[tuple[int, int], ...]:
    """Runs to try, longest first, as their first layer and one past their last.

    Of an output's reuse nothing ahead reaches the logits, so a run that ends where another does
    gives what that gives: the one from layer 0 on stands for all.
    """
    starts = range(n_layers) if target == "residual" else range(1)
    found = [(start, stop) for start in starts for stop in range(start + 1, n_layers + 1)]
    return tuple(sorted(found, key=lambda span: (span[0] - span[1], span)))


def pieces(start: int, stop: int, target: Target) -> tuple[LayerRun, ...]:
    """A run as runs of one layer: so one whole step can store what several steps reuse."""
    return tuple(LayerRun(layer, layer + 1, target) for layer in range(start, stop))


def best_plans(n_layers: int, phases: Sequence[Phase], found: Found) -> list[LayerPlan]:
    """The plans of a block's steps that spare most layer calls, by what was found (see above)."""
    whole = [LayerPlan(n_layers)] * len(phases)
    return max((whole, *(_of(n_layers, phases, found, target) for target in TARGETS)), key=saved)


def saved(plans: Iterable[LayerPlan]) -> int:
    """Layer calls that plans spare."""
    return sum(plan.num_reused for plan in plans)


def _of(n_layers: int, phases: Sequence[Phase], found: Found, target: Target) -> list[LayerPlan]:
    """The best plans where every run is reused in the same way."""
    count = len(phases)
    # By whole step: the most that may be saved behind it, and the runs reused until the next.
    best: dict[int, tuple[int, list[LayerRun]]] = {count: (0, [])}
    for source in reversed(range(count)):
        runs = list[LayerRun]()
        best[source] = (best[source + 1][0], [])
        for step in range(source + 1, count):
            run = found.get((step, source, target))
            owed = list(phases[step : step + 2]) == [Phase.REFRESH, Phase.DENOISE]
            if run is None or owed:
                break
            runs.append(run)
            most = sum(map(len, runs)) + best[step + 1][0]
            if most > best[source][0]:
                best[source] = (most, list(runs))
    reused, at = list[tuple[LayerRun, ...]](), 0
    while at < count:
        runs = best[at][1]
        reused += [(), *(pieces(run.start, run.stop, target) for run in runs)]
        at += 1 + len(runs)
    # Of an output only what the last layer gave is read.
    read = {run for runs in reused for run in (runs[-1:] if target == "output" else runs)}
    store = LayerPlan(n_layers, store=tuple(sorted(read)))
    return [LayerPlan(n_layers, reuse=runs) if runs else store for runs in reused]
