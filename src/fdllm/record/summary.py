"""``summary.json``: what a finished run found, what it cost, and what makes it trustworthy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from typing_extensions import TypedDict  # that of typing comes with 3.12

from fdllm.core.config import Estimator
from fdllm.errors import FdllmError
from fdllm.outside import OutsideError, parse_json, read_text
from fdllm.record.identity import Fingerprint
from fdllm.record.paths import COLUMNS, SAMPLES
from fdllm.spec import Spec, first_problem

VERSION: Literal[1] = 1
_MOST = 16 << 20  # bytes; a summary has tens of thousands
_COUNTED = ("forwards", "computed", "reused")  # of each phase; later counters may be absent


class _Commit(TypedDict):
    """The checkout that a session computed from."""

    commit: str
    dirty: bool  # whether its code differed from it


class _Session(TypedDict, total=False):
    """Of who computed, what tables and releases say; there is more."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc] # read by pydantic

    started: str
    machine: str
    packages: dict[str, str]
    git: _Commit | None
    image_sha256: str | None
    device: str
    dtype: str


class _Provenance(TypedDict, total=False):
    """Who computed, when, and how many rows under which criteria; there is more."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc] # read by pydantic

    sessions: list[_Session]
    criteria: dict[str, int]
    finished: Annotated[str, AfterValidator(datetime.fromisoformat)]


_PROVENANCE = TypeAdapter(_Provenance)


class Headline(Spec):
    """The figure that goes into a table."""

    metric: str  # the harness's key, ``metric,filter``
    value: float  # share of documents, in [0, 1]
    num_samples: int  # documents behind it
    num_correct: int | None  # documents that count as right; None where the metric is not yes or no


class Throughput(Spec):
    """Speed. Model time only, synchronised; warm-up, tokenising and disk are outside it.

    A log-likelihood task has no ``tokens_per_second``: it generates nothing. Its figures have
    names of their own.
    """

    seconds: float  # model time of all samples, whoever computed them and in how many sessions
    tokens: int | None = None  # generated tokens, up to and including each row's first stop token
    tokens_per_second: float | None = None  # ``tokens / seconds``
    tokens_per_forward: float | None = None  # generated tokens by forwards of all phases
    scored_tokens: int | None = None  # tokens of the targets
    scored_tokens_per_second: float | None = None  # ``scored_tokens / seconds``
    requests_per_second: float | None = None  # scored targets by seconds
    # columns that were not fed to the network, because another request of the run had computed the
    # same ones
    shared_tokens: int | None = None
    latency_p50_s: float  # median over samples of a sample's share of model time, in seconds
    latency_p95_s: float  # 95th percentile of the same


class PeakMemory(Spec):
    """Largest memory of the process that finished the record."""

    bytes: int  # how much
    # ``cuda`` is what torch allocated on the GPU, ``resident`` the process's memory
    kind: Literal["cuda", "resident"]


class LayerCalls(Spec):
    """Layers computed and saved, over all forwards of all phases."""

    computed: int  # layer calls made
    reused: int  # layer calls saved
    # layer calls saved inside those made for some columns only, in shares of a call
    trimmed: float = 0.0
    saved_share: float  # ``(reused + trimmed) / (computed + reused)``

    @property
    def made(self) -> float:
        """Layer calls made in the end; more than without reuse where skipping costs forwards."""
        return self.computed - self.trimmed


class Quality(Spec):
    """Signs of degeneration in generated text."""

    truncation_rate: float  # share of samples that ended at their token limit
    # share of samples of which more than half of all 8-token windows have occurred earlier in the
    # same answer. Answers under 16 tokens are never counted.
    repetition_rate: float


class ScoredSteps(Spec):
    """Where the answers of a log-likelihood task were scored."""

    # answers by the step counter of the forward that scored their first token; ``look-ahead`` where
    # no step did, but the logits of the block ahead
    first: dict[str, int]
    without_reuse: int  # answers of which no token was scored by a forward that reused a layer

    @property
    def words(self) -> str:
        """What a table says where reuse was asked for."""
        every = sum(self.first.values())
        return f"{self.without_reuse} of {every} answers scored where reuse cannot act"


class StrategyRecord(Spec):
    """Which layers could be skipped, and by which rule."""

    text: str  # the frozen strategy, as Python writes it
    k: int  # reuse period
    subset: str  # which layers, by name
    layers: tuple[int, ...]  # their numbers
    n_layers: int  # layers of the model
    reuses: bool  # whether it is meant to reuse anything


class Guard(Spec):
    """A check that a record must pass."""

    name: str  # what is checked
    passed: bool  # whether it holds
    detail: str  # the figures behind it
    # what it means where it does not hold: an ``error`` keeps a record from being written, a
    # ``warning`` marks it in every table
    level: Literal["error", "warning"] = "error"


class FileRecord(Spec):
    """A file that belongs to the record."""

    lines: int | None  # documents in it; None where it is no list
    bytes: int  # its size
    sha256: str  # its content


class Decided(Spec):
    """Where a run ended because its criteria were decided, ahead of its last document."""

    documents: int  # asked
    of: int  # of the whole task, as far as its limit
    criteria: str  # lock of the experiment's criteria, see :mod:`fdllm.criteria`
    sharing: int = 1  # verdicts among which the 5 % of wrong ones are divided
    # by criterion; empty where the cell only repeats the baseline's computation (A/A)
    outcomes: dict[str, Literal["met", "missed"]] = Field(default_factory=dict)

    @property
    def saved(self) -> int:
        """Documents that need not be asked."""
        return self.of - self.documents

    @property
    def identity(self) -> str:
        """Its field in a fingerprint."""
        return f"{self.documents} of {self.of}, criteria {self.criteria}"

    @property
    def words(self) -> str:
        """How far, what was decided, and what that saved."""
        found = [f"{name} {outcome}" for name, outcome in self.outcomes.items()]
        what = ", ".join(found) or "A/A: no document differs"
        return f"{self.documents} of {self.of}: {what}; saved {self.saved} rows"


class Summary(Spec):
    """One finished run."""

    version: Literal[1] = VERSION  # of this schema
    experiment: str  # folder under ``experiments/``
    task: str
    config: str
    limit: int | None  # documents of each leaf task at most; None is all
    model: str  # what was asked for: a Hub id, a folder, or ``tiny``
    kind: Literal["generate", "loglikelihood"]  # ``generate`` or ``loglikelihood``
    estimator: Estimator | None  # the log-likelihood estimator; None where text is generated
    headline: Headline  # the figure
    # what stands beside it, by ``metric,filter``: means over the same documents
    metrics: dict[str, float] = Field(default_factory=dict)
    num_requests: int  # requests answered: one a document, or one a choice
    throughput: Throughput  # speed
    peak_memory: PeakMemory  # memory
    # by phase, ``forwards``, ``computed`` and ``reused`` layer calls, ``tokens`` fed (columns) and
    # columns ``shared`` between requests
    counts: dict[str, dict[str, int | float]]
    layer_calls: LayerCalls  # the same, summed
    quality: Quality | None  # signs of degeneration; None where nothing is generated
    # at which steps answers were scored; None where text is generated
    scored: ScoredSteps | None = None
    strategy: StrategyRecord  # the layers and the rule
    guards: tuple[Guard, ...]  # checks; all passed, or under a limit a warning
    files: dict[str, FileRecord]  # ``samples.jsonl``, ``results.json`` and ``columns.json.xz``
    fingerprint: Fingerprint  # identity
    dataset: str  # SHA-256 over the documents used, in order
    task_versions: dict[str, Any]  # the harness's version of every task
    # where it ended ahead of its last document; None where every document was asked
    decided: Decided | None = None
    # who computed it, when, with what; see :mod:`fdllm.record.provenance`
    provenance: dict[str, Any] = Field(default_factory=dict)

    @field_validator("counts")
    @classmethod
    def _counted(cls, counts: dict[str, dict[str, int | float]]) -> dict[str, Any]:
        for phase, count in counts.items():
            if lacking := [name for name in _COUNTED if name not in count]:
                raise ValueError(f"{phase} lacks {', '.join(lacking)}")
        return counts

    @field_validator("provenance")
    @classmethod
    def _told(cls, provenance: dict[str, Any]) -> dict[str, Any]:
        try:
            _PROVENANCE.validate_python(provenance)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None
        return provenance

    @property
    def boxed_match(self) -> float | None:
        """Share of documents whose last box holds the answer; None where no box is asked for."""
        return self.metrics.get("boxed_match,none")

    @property
    def speed(self) -> float:
        """Tokens/s, or scored tokens/s where nothing is generated."""
        speed = self.throughput.tokens_per_second or self.throughput.scored_tokens_per_second
        return speed or 0.0

    @property
    def estimator_words(self) -> str | None:
        """The estimator as tables name it, with the leave to use it where it is invalid."""
        return (
            None
            if self.estimator is None
            else self.fingerprint.fields.get("scoring", self.estimator)
        )

    @property
    def preset_words(self) -> str | None:
        """The preset as tables name it, with what stands over it; None where there is none."""
        words = self.fingerprint.fields.get("preset")
        return None if words == "none" else words

    @property
    def warnings(self) -> tuple[str, ...]:
        """Checks that only a few rows may fail, each as a sentence."""
        return tuple(guard.detail for guard in self.guards if not guard.passed)

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines that computed it, each in one line; one of them, normally."""
        sessions = self.provenance.get("sessions", [])
        return tuple(dict.fromkeys(str(session.get("machine")) for session in sessions))


class InvalidRecordError(FdllmError):
    """A record's files are not what a finished run leaves; the message says what is wrong."""


def is_published(folder: Path) -> bool:
    """Whether a folder holds what git keeps of a run, a summary and columns, and nothing else."""
    return {path.name for path in folder.iterdir()} <= {"summary.json", COLUMNS}


def read_summary(path: Path, *, published: bool = False) -> Summary:
    """Read ``summary.json`` and check that the files beside it are whole.

    Args:
        path: the file.
        published: it is the copy for git, beside which only the columns lie.

    Raises:
        InvalidRecordError: what is wrong, in a few words.
    """
    try:
        text = read_text(path, most=_MOST)
        data = parse_json(text, path)
    except OutsideError as error:
        raise InvalidRecordError(f"summary.json {error.wrong}") from None
    if not isinstance(data, dict):
        raise InvalidRecordError("summary.json holds no object")
    if data.get("version") != VERSION:
        raise InvalidRecordError(f"summary.json has version {data.get('version')}, not {VERSION}")
    try:
        summary = Summary.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise InvalidRecordError(f"summary.json: {first_problem(error)}") from None
    _check_files(path.parent, summary, (COLUMNS,) if published else (SAMPLES, *summary.files))
    return summary


def _check_files(folder: Path, summary: Summary, names: Sequence[str]) -> None:
    for name in names:
        if name not in summary.files:
            raise InvalidRecordError(f"summary.json names no {name}")
    not_passed = [guard for guard in summary.guards if not guard.passed]
    # Warnings are for a few rows: a whole run that failed a check has no record.
    failed = [g.name for g in not_passed if g.level == "error" or summary.limit is None]
    if failed:
        raise InvalidRecordError(f"summary.json: guard failed: {', '.join(failed)}")
    for name in dict.fromkeys(names):
        record, path = summary.files[name], folder / name
        if not path.is_file():
            raise InvalidRecordError(f"{name} is missing")
        if path.stat().st_size == record.bytes:
            continue
        if record.lines is None:
            size = path.stat().st_size
            raise InvalidRecordError(f"{name} has {size} bytes, not {record.bytes}")
        with path.open("rb") as file:
            lines = sum(line.endswith(b"\n") for line in file)
        raise InvalidRecordError(
            f"{name} holds {lines} of {record.lines} samples"
            if lines != record.lines
            else f"{name} was changed: {path.stat().st_size} bytes, not {record.bytes}"
        )


def describe_file(path: Path, lines: int | None) -> FileRecord:
    """A file's record, from its bytes on the disk."""
    data = path.read_bytes()
    return FileRecord(lines=lines, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
