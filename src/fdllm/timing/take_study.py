"""Takes a timing study: every config answers a document, in turn, before the next document.

Cells that run one after the other are compared over hours in which the machine drifts. Here they
take turns within a second or so, in an order drawn anew each round, on the run's own path but for
the batch: one document at a time, its choices together. What is timed is an answer, from a prompt's
tokens to its text or its scores.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from fdllm.core.row_task import ForwardHook
from fdllm.core.sampler import Generation
from fdllm.core.scorer import Score
from fdllm.errors import FdllmError, few
from fdllm.evaluate.adapter import EngineLM, LoadedModel
from fdllm.evaluate.preview import requests_of
from fdllm.evaluate.requests import EvalRequest
from fdllm.plan import RECORDED, Planner
from fdllm.record.per_document import digest_of_answer
from fdllm.record.provenance import cpu_name, usable_cpus, utc_now
from fdllm.record.study import Agreement, Conditions, ConfigTimes, Study
from fdllm.report.records import Record
from fdllm.report.times import judge_pairs, noise_words
from fdllm.runs import Run
from fdllm.timing.conditions import changes, read_conditions
from fdllm.timing.interleave import Rounds, interleave
from fdllm.timing.wanted import WantedStudy

Key = tuple[str, int]
"""A document: leaf task and id."""
SEED = 13
_WARM_UPS = 2  # documents ahead of the first that counts
_OFF = 0.05  # a twin's interval further from 1 is worth a warning
_SHOWN = 5  # documents that a sentence names


@dataclass
class _Timed:
    """One config while it is timed."""

    run: Run
    lm: EngineLM
    asked: Mapping[Key, Sequence[EvalRequest]]
    heard: list[dict[int, Generation | Score]] = field(default_factory=list)  # since the last look

    def answer(self, key: Key) -> None:
        """Answer a document."""
        found: dict[int, Generation | Score] = {}
        self.lm.answer(self.asked[key], found.__setitem__)
        self.heard.append(found)

    def digests(self) -> list[str]:
        """Of the answers since it was last asked."""
        given = [[one for _, one in sorted(found.items())] for found in self.heard]
        self.heard.clear()
        return [
            digest_of_answer(
                [one.text if isinstance(one, Generation) else one.loglikelihood for one in answers]
            )
            for answers in given
        ]


def take_study(
    planner: Planner,
    model: LoadedModel,
    wanted: WantedStudy,
    *,
    watch: Callable[[int, int], object] = lambda _done, _total: None,
    hooks: Mapping[str, ForwardHook] | None = None,
    seed: int = SEED,
) -> Study:
    """Time every config of a task; nothing is written.

    Args:
        planner: knows what the runs are, and where their records lie.
        model: loaded.
        wanted: the configs, how many documents, how often.
        watch: told of each document that is done, and of how many there are.
        hooks: what stands around a config's forwards, by name.
        seed: of the documents and of the orders.

    Raises:
        FdllmError: documents cannot be had, a logit is not finite, or a text differs from the
            record's on a CPU, which only a defect explains.
    """
    device, began, started = model.model.device, time.perf_counter(), utc_now()
    timed = dict(_prepare(planner, model, wanted, hooks or {}))
    documents = draw(list(timed[next(iter(timed))].asked), wanted.number, seed)

    def turn(key: Key, rounds: Rounds) -> dict[str, tuple[float, ...]]:
        return interleave({n: partial(one.answer, key) for n, one in timed.items()}, device, rounds)

    for one in timed.values():
        one.lm.warm_up()
    for key in documents[:_WARM_UPS]:
        turn(key, Rounds(0))
    for one in timed.values():
        one.digests()
    seconds: list[dict[str, tuple[float, ...]]] = []
    answers: list[dict[str, list[str]]] = []
    moments: list[Conditions] = []

    def look() -> None:
        moments.append(read_conditions(device, time.perf_counter() - began))

    look()
    for at, key in enumerate(documents):
        seconds.append(turn(key, Rounds(wanted.repeats, warm_ups=0, seed=seed + at)))
        answers.append({name: one.digests() for name, one in timed.items()})
        watch(at + 1, len(documents))
        if at == (len(documents) - 1) // 2:
            look()
    look()
    run, facts = wanted.baseline, model.facts(wanted.baseline.evaluating)
    checked = {
        name: _check(
            one, _Recorded.of(planner, one.run, device), documents, [a[name] for a in answers]
        )
        for name, one in timed.items()
    }
    study = Study(
        experiment=run.experiment,
        task=run.task,
        limit=run.limit,
        model=run.model.name,
        preset=None if run.preset is None else run.preset_words,
        baseline=next(iter(timed)),
        repeats=wanted.repeats,
        documents=tuple(documents),
        configs={
            name: ConfigTimes(
                fingerprint=_known(planner, one.run),
                k=one.run.cell.k,
                reuses=planner.strategy(one.run, model.n_layers).reuses,
                seconds=tuple(tuple(round(s, 7) for s in found[name]) for found in seconds),
                answers=tuple(found[name][0] for found in answers),
                agrees=checked[name][0],
            )
            for name, one in timed.items()
        },
        device=str(facts["accelerator"] or cpu_name()),
        dtype=str(facts["dtype"]),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        started=started,
        seconds=round(time.perf_counter() - began, 1),
        conditions=tuple(moments),
    )
    found = judge_pairs(study)
    loud = [noise_words(found)] if found.floor is not None and found.floor > _OFF else []
    told = [warning for _, warnings in checked.values() for warning in warnings]
    warnings = (*told, *loud, *changes(moments, usable_cpus()))
    return study.model_copy(update={"warnings": warnings})


def _prepare(
    planner: Planner, model: LoadedModel, wanted: WantedStudy, hooks: Mapping[str, ForwardHook]
) -> Iterator[tuple[str, _Timed]]:
    """The configs by name, ready to answer."""
    asked: dict[str, dict[Key, list[EvalRequest]]] = {}  # by decoding
    for name, run in wanted.runs.items():
        words = run.decoding.words
        if words not in asked:
            asked[words] = {}
            for request in requests_of(run):
                asked[words].setdefault(request.document, []).append(request)
        alone = run.evaluating.changed({"batch_size": 1})
        lm = model.asked(
            run.model_copy(update={"evaluating": alone}),
            planner.strategy(run, model.n_layers),
            planner.experiment(run.experiment).unmask,
        )
        lm.hook = hooks.get(name)
        yield name, _Timed(run, lm, asked[words])


def _known(planner: Planner, run: Run) -> dict[str, str]:
    fields = planner.fingerprint(run).known().fields
    return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class _Recorded:
    """A record's answers."""

    digests: Mapping[Key, str]  # empty where there is no record
    on_cpu: bool  # they and those of the study were computed on a CPU

    @classmethod
    def of(cls, planner: Planner, run: Run, device: torch.device) -> _Recorded:
        """Those of a run, where its record is of what is here now."""
        cell = planner.state(run)
        if cell.state not in RECORDED or cell.summary is None:
            return cls({}, on_cpu=False)
        texts = Record(cell.paths.folder, cell.summary).texts
        sessions = cell.summary.provenance.get("sessions", [])
        return cls(
            {key: digest_of_answer(sample["output"]) for key, sample in texts.items()},
            on_cpu={device.type, *(one.get("device") for one in sessions)} == {"cpu"},
        )


def _check(
    one: _Timed, recorded: _Recorded, documents: Sequence[Key], given: Sequence[Sequence[str]]
) -> tuple[Agreement | None, list[str]]:
    """How a config's answers agree with its record and with each other; warnings.

    Raises:
        FdllmError: a text on a CPU is another than the record's.
    """
    name, found = one.run.cell.name, dict(zip(documents, given, strict=True))
    loose = [key for key, digests in found.items() if len({*digests}) > 1]
    warnings = [f"{name} answered {_named(loose)} otherwise from one repeat to the next"] * bool(
        loose
    )
    both = [key for key in documents if key in recorded.digests]
    other = [key for key in both if {*found[key]} != {recorded.digests[key]}]
    if other:
        told = f"answers of {name} differ from the record's on {_named(other)}"
        if recorded.on_cpu and one.asked[other[0]][0].target is None:
            raise FdllmError(
                f"{told}: on a CPU a text is the same every time, so one of the two is wrong; "
                "nothing was kept. fdllm selftest looks for the path that is"
            )
        warnings.append(told)
    agrees = Agreement(compared=len(both), equal=len(both) - len(other)) if both else None
    return agrees, warnings


def _named(keys: Sequence[Key]) -> str:
    named = [f"{task} {doc_id}" for task, doc_id in keys]
    return f"{len(keys)} documents ({few(named, _SHOWN)})"


def draw(documents: Sequence[Key], number: int, seed: int = SEED) -> list[Key]:
    """So many documents, or all, drawn at random; of each leaf task its share.

    One seed's first documents are the same whatever the number.
    """
    rng = random.Random(seed)
    leaves: dict[str, list[Key]] = {}
    for key in documents:
        leaves.setdefault(key[0], []).append(key)
    placed = [
        ((at + rng.random()) / len(mine), key)
        for mine in leaves.values()
        for at, key in enumerate(rng.sample(mine, len(mine)))
    ]
    return [key for _, key in sorted(placed)][:number]
