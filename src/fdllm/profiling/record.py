"""``profile.json``: what a profile measured of a model on a task. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from fdllm.core.reuse import Target
from fdllm.record.one_file import OneFile
from fdllm.record.paths import Layout
from fdllm.spec import Spec

VERSION: Literal[1] = 1
BINS = 4
"""Shares of masked columns that are told apart: up to a quarter, a half, three quarters, all."""
CHOSEN = "chosen"
"""The chosen layers' name among those of the subsets."""
_MOST = 64 << 20  # bytes; a profile of 1,000 documents has a fifth of a million
# of the fields of a fingerprint, those that a profile shares with any run it says something of
_SHARED = ("source", "lock", "model", "revision", "task", "decoding", "dtype", "scoring", "asking",
           "num_fewshot", "fewshot_seed", "chat_template")  # fmt: skip

Means = tuple[tuple[float | None, ...], ...]


class PhaseMap(Spec):
    """The layers of one phase's forwards, by share of masked columns; means over forwards."""

    forwards: tuple[int, ...]  # how many, [bins]
    # of those, how many had every column computed before in the block, [bins]
    compared: tuple[int, ...]
    # cosine of a layer's input and output, mean over the forward's columns, [layers][bins]; None
    # where there is no forward
    similarity: Means
    # norm of the change of a layer's residual (output minus input) since its columns were last
    # computed, by the norm of what it was, over the forward's columns, [layers][bins]; None where
    # nothing was compared
    change: Means


class GradedAnswers(Spec):
    """What documents came to under one reuse of layers; a value for each of its documents."""

    layers: tuple[int, ...] = ()  # reused at every second step; empty where all are computed
    values: tuple[float, ...]  # the task's headline figure
    same: tuple[bool, ...]  # whether the answer (a text, a choice) is that without reuse
    calls: tuple[float, ...]  # layer calls made


class OracleSaving(Spec):
    """What skipping could save at all, see :mod:`fdllm.profiling.oracle`."""

    layer_calls_whole: int  # of plain decoding
    layer_calls_saved: int  # of those, what the oracle's plan spares, as it was run
    denoise_share: float  # of the saved calls, those of DENOISE forwards
    equal_texts: int  # documents whose text under the oracle's plan is plain decoding's
    by_layer: tuple[float, ...] = ()  # share of the denoising steps that spare a layer


class Half(Spec):
    """Half of the documents: layers are chosen on one, and the choice is tested on the other."""

    documents: tuple[tuple[str, int], ...] = Field(min_length=1)  # leaf task and number
    prompts: tuple[str, ...]  # hash of each one's prompt
    plain: GradedAnswers  # without reuse
    layers: tuple[GradedAnswers, ...]  # each single layer reused, [layers]
    map: dict[str, PhaseMap]  # by phase: ``refresh`` and ``denoise``


class Profile(OneFile):
    """A model's layers on a task."""

    version: Literal[1] = VERSION  # of this schema
    experiment: str  # whose decoding settings they are
    task: str
    limit: int | None  # documents of each leaf task at most; None is all
    model: str  # what was asked for: a Hub id, a folder, or ``tiny``
    preset: str | None = None  # the protocol in words; None where it is the experiment's own
    decoding: str  # settings in words
    metric: str  # the headline figure, ``metric,filter``
    # what decides the answers of its runs without reuse
    # (:class:`~fdllm.record.identity.Fingerprint`)
    fingerprint: dict[str, str]
    n_layers: int
    k: int  # reuse period of every reuse in it
    target: Target  # what is stored and reused
    choosing: Half  # on which the layers were chosen
    testing: Half  # on which that was tested
    # the chosen layers, and the named subsets of as many, on the documents of the test
    tested: dict[str, GradedAnswers]
    oracle: OracleSaving | None = None  # over all documents; None where answers are scored
    device: str  # processor or GPU by name
    dtype: str
    started: str  # UTC, ISO 8601
    seconds: float  # the whole profile's

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if {*self.choosing.prompts} & {*self.testing.prompts}:
            raise ValueError("a document was chosen on and tested on")
        if CHOSEN not in self.tested:
            raise ValueError("it has no test of the chosen layers")
        for half in (self.choosing, self.testing):
            if len(half.layers) != self.n_layers:
                raise ValueError(f"it has figures of {len(half.layers)} of {self.n_layers} layers")
            for one in (half.plain, *half.layers):
                self._count(one, half)
        for one in self.tested.values():
            self._count(one, self.testing)
        return self

    @staticmethod
    def _count(one: GradedAnswers, half: Half) -> None:
        lengths = {*map(len, (one.values, one.same, one.calls, half.prompts))}
        if lengths != {len(half.documents)}:
            raise ValueError(f"it has not a figure of every document of {len(half.documents)}")

    @property
    def documents(self) -> tuple[tuple[str, int], ...]:
        """Those of both halves."""
        return (*self.choosing.documents, *self.testing.documents)

    @property
    def num_documents(self) -> int:
        """Documents of both halves."""
        return len(self.documents)

    def differs(self, fields: Mapping[str, str | None]) -> list[str]:
        """Names of what is otherwise in a run, by its fingerprint's fields; empty where nothing.

        Documents, strategy and experiment are the run's own, and no part of it.
        """
        return [
            name
            for name in _SHARED
            if fields.get(name) is not None and fields[name] != self.fingerprint.get(name)
        ]


def read_beside(layout: Layout, task_folder: str) -> Profile | None:
    """The profile of the runs that lie in a task folder of any experiment; None where none is.

    Where it was not taken here, it is git's copy. Whether it says anything of a run,
    :meth:`Profile.differs` tells.

    Raises:
        InvalidRecordError: the file is no profile.
    """
    for path in layout.profile_beside(task_folder):
        found = Profile.read_file(path, most=_MOST)
        if found is not None:
            return found
    return None
