"""``timing/study.json``: what a timing study measured, beside the records of its task."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from fdllm.record.one_file import OneFile
from fdllm.spec import Spec

VERSION: Literal[1] = 1
_MOST = 256 << 20  # bytes; a study of 1,000 documents has 1 million


class Agreement(Spec):
    """A config's answers in a study against those of its record."""

    compared: int  # documents that both have
    equal: int  # of those, with the same answer


class ConfigTimes(Spec):
    """One config of a study."""

    # what decides its answers (:class:`~fdllm.record.identity.Fingerprint`), so that a study of
    # another source or strategy is told from the record beside it
    fingerprint: dict[str, str]
    k: int  # reuse period
    reuses: bool  # whether it is meant to reuse anything
    seconds: tuple[tuple[float, ...], ...]  # model time, [documents][repeats]
    answers: tuple[str, ...]  # a digest of each document's answer, [documents]
    agrees: Agreement | None = None  # with its record; None where there is none


class Conditions(Spec):
    """What the machine was like at one moment; None is what cannot be read there."""

    at: float  # seconds since the study began
    clock_mhz: float | None = None  # mean over the cores, or of the GPU
    load: float | None = None  # runnable processes, mean of the last minute
    temperature_c: float | None = None  # the warmest sensor of the processor, or of the GPU


class Study(OneFile):
    """Every compared config on the same documents, in turn."""

    version: Literal[1] = VERSION  # of this schema
    experiment: str  # folder under ``experiments/``
    task: str
    limit: int | None  # documents of each leaf task at most; None is all
    model: str  # what was asked for: a Hub id, a folder, or ``tiny``
    preset: str | None = None  # the protocol in words; None where it is the experiment's own
    baseline: str  # the config that the others are compared with
    repeats: int = Field(ge=1)  # rounds a document
    documents: tuple[tuple[str, int], ...] = Field(min_length=1)  # leaf task and id
    configs: dict[str, ConfigTimes]
    device: str  # processor or GPU by name
    dtype: str
    threads: int | None  # of torch; None on a GPU
    started: str  # UTC, ISO 8601
    seconds: float  # the whole study's
    conditions: tuple[Conditions, ...] = ()
    warnings: tuple[str, ...] = ()  # what a reader of its figures must know, each a sentence

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.baseline not in self.configs:
            raise ValueError(f"the baseline {self.baseline} is none of its configs")
        for name, timed in self.configs.items():
            times = [len(row) for row in timed.seconds]
            if times != [self.repeats] * len(self.documents):
                raise ValueError(f"{name} has not {self.repeats} times of every document")
            if len(timed.answers) != len(self.documents):
                raise ValueError(f"{name} has not an answer of every document")
            if any(second <= 0 for row in timed.seconds for second in row):
                raise ValueError(f"{name} has a time that is not above 0")
        return self

    @property
    def twins(self) -> tuple[str, ...]:
        """The baseline and the configs that are the same computation: they reuse nothing too."""
        base = self.configs[self.baseline]
        return tuple(
            name
            for name, one in self.configs.items()
            if name == self.baseline
            or (
                not one.reuses
                and not base.reuses
                and one.fingerprint.get("decoding") == base.fingerprint.get("decoding")
            )
        )


def read_study(path: Path) -> Study | None:
    """Read a study; None where there is none.

    Raises:
        InvalidRecordError: the file is no study.
    """
    return Study.read_file(path, most=_MOST)
