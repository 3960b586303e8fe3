"""A run that has no record yet: its answers as they come, and why an attempt ended without one.

The journal is an append-only file that survives a kill at any moment. Its first line names the
fingerprint. Every further line is an entry (a request's key and answer, and the lock of the
criteria in force), a session (who computed what follows, under which criteria) or the number of
requests. A line is durable when ``put`` returns; a torn last line, which a kill in the middle of a
write leaves, is dropped. Every line ends with a checksum of itself and, by way of the first line's,
of the fingerprint, so that neither a changed digit nor another run's line is taken for an answer.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from pydantic import ValidationError

from fdllm import strictjson
from fdllm.criteria import criteria_lock
from fdllm.errors import FdllmError
from fdllm.outside import AbsentError, OutsideError, parse_json, read_bytes, read_json
from fdllm.record.atomic import explained, make_folder, sync_folder, write_json
from fdllm.record.identity import Fingerprint
from fdllm.record.paths import RunPaths, set_aside
from fdllm.record.provenance import utc_now

VERSION = 2
_MOST = 1 << 32  # bytes; a run of 100,000 answers has a tenth of that
_AGAIN = (
    "put the file back as it was, or compute this run anew: fdllm sweep --force CONFIG, which "
    "moves it aside"
)
_SUM = b', "sum": "%s"}'
_DIGITS = 16  # hexadecimal, of a checksum


class DamagedJournalError(FdllmError):
    """A line of a journal is not as it was written."""


@dataclass
class JournalContent:
    """What a journal file holds."""

    fingerprint: Fingerprint | None = None  # of the run it belongs to; None where the file is empty
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)  # answers by key
    # lock of the criteria that each answer was computed under, by key
    locks: dict[str, str] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)  # who computed, in order
    total: int | None = None  # requests of the run; None until it was known
    size: int = 0  # bytes up to the last whole line
    seal: str = ""  # checksum of the first line, which those of all others are chained to

    @property
    def rows_by_lock(self) -> dict[str, int]:
        """Documents by the lock of the criteria that they were answered under."""
        rows = {
            (lock, entry.get("task"), entry.get("doc_id"))
            for key, entry in self.entries.items()
            if (lock := self.locks.get(key))
        }
        return dict(sorted(Counter(lock for lock, _, _ in rows).items()))


def sealed(lines: Iterable[Mapping[str, Any]], seal: str = "") -> Iterator[bytes]:
    """Lines of a journal as they stand in the file, each with its checksum.

    Args:
        lines: what they say.
        seal: the first line's checksum; empty where the first of ``lines`` is that line.
    """
    for line in lines:
        text = strictjson.dumps(line).encode("utf-8", "surrogatepass")
        digest = _checksum(text, seal)
        seal = seal or digest
        yield text[:-1] + _SUM % digest.encode() + b"\n"


def _checksum(text: bytes, seal: str) -> str:
    return hashlib.sha256(seal.encode() + text).hexdigest()[:_DIGITS]


def read_journal(path: Path) -> JournalContent:
    """Read a journal, without its torn last line where it has one.

    Raises:
        DamagedJournalError: a line is not as it was written, or of an earlier version.
    """
    content = JournalContent()
    try:
        lines = read_bytes(path, most=_MOST).split(
            b"\n"
        )  # the last part has no end: torn, or empty
    except AbsentError:
        return content
    except OutsideError as error:
        raise DamagedJournalError(f"{error}; {_AGAIN}") from None
    for number, data in enumerate(lines[:-1], 1):
        try:
            line = parse_json(data)
        except OutsideError:
            if number == len(lines) - 1:  # blocks of zeros after a power cut end in no entry
                break
            line = None
        problem = _problem(content, line, data)
        if problem:
            raise DamagedJournalError(f"{path}, line {number} {problem}; {_AGAIN}")
        content.size += len(data) + 1
    return content


def read_matching(path: Path, fingerprint: Fingerprint) -> JournalContent:
    """A journal, where it is of this very run; else one that holds nothing.

    Raises:
        DamagedJournalError: a line is not as it was written.
    """
    content = read_journal(path)
    then = content.fingerprint
    return JournalContent() if then is None or fingerprint.differences(then) else content


def _problem(content: JournalContent, line: Any, data: bytes) -> str:  # noqa: ANN401 - any JSON
    """Take a line over; what is wrong with it, or nothing."""
    end = len(data) - len(_SUM % (b"0" * _DIGITS))
    digest = _checksum(data[:end] + b"}", content.seal)
    first = not content.seal
    if first and isinstance(line, dict) and line.get("journal", VERSION) != VERSION:
        return f"is of journal version {line['journal']}, not {VERSION}: an earlier fdllm wrote it"
    if data[end:] != _SUM % digest.encode():
        return "does not fit its checksum: the file was changed, or the disk is failing"
    try:
        _take(content, line, first=first)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        return f"lacks a part ({error.__class__.__name__})"
    content.seal = content.seal or digest
    return ""


def _take(content: JournalContent, line: Mapping[str, Any], *, first: bool) -> None:
    if first:
        if line["journal"] != VERSION:
            raise ValueError
        content.fingerprint = Fingerprint(**line["fingerprint"])
    elif "key" in line:
        content.entries[line["key"]] = dict(line["entry"])
        if "criteria" in line:
            content.locks[line["key"]] = line["criteria"]
    elif "session" in line:
        content.sessions.append(dict(line["session"]))
    else:
        content.total = int(line["total"])


def _answer(content: JournalContent, key: str) -> dict[str, Any]:
    """An answer's line, with the lock of the criteria that it was computed under."""
    lock = content.locks.get(key)
    return {"key": key, "entry": content.entries[key]} | ({"criteria": lock} if lock else {})


class Journal:
    """The open journal of a run; the :class:`~fdllm.evaluate.attempt.Store` of its evaluation.

    ``content`` is what the file holds at any moment.

    Args:
        path: the file; made where it is absent.
        fingerprint: of this run. A journal of another one is moved aside, never added to.
        session: who computes from here on, and the text of the ``criteria`` in force; who only
            reads answers is not written down.

    Raises:
        FdllmError: the file cannot be written.
        DamagedJournalError: a line is not as it was written.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, session: dict[str, Any]) -> None:
        self.path = path
        self.moved_aside: Path | None = None
        self.num_put = 0
        make_folder(path.parent)
        self.content = read_journal(path)
        then = self.content.fingerprint
        if then is not None and fingerprint.differences(then):
            self.moved_aside = set_aside(path.parent, [path])
            self.content = JournalContent()
        self._known = JournalContent()
        self._session: dict[str, Any] | None = session
        text = session.get("criteria")
        self._lock = {} if text is None else {"criteria": criteria_lock(text)}
        with explained(path):
            self._file: BinaryIO = path.open("ab", buffering=0)
            self._file.truncate(self.content.size)
            self._file.seek(self.content.size)
            sync_folder(path.parent)
        if self.content.fingerprint is None:
            self._append({"journal": VERSION, "fingerprint": fingerprint.model_dump()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to a request, or None."""
        if key not in self.content.entries and key in self._known.entries:
            self._append(_answer(self._known, key), sync=False)
        return self.content.entries.get(key)

    def know(self, other: JournalContent) -> None:
        """Take answers of another journal of the same run over as they are asked for."""
        self._known = other

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an answer; it is on the disk when this returns.

        Raises:
            FdllmError: it cannot be written; the file is as it was before.
        """
        if self._session is not None:
            self._append({"session": self._session})
            self._session = None
        self._append({"key": key, "entry": entry} | self._lock)
        self.num_put += 1

    def absorb(self, other: JournalContent) -> int:
        """Take over the answers and sessions of another journal of the same run, a shard's.

        What is here already is left alone, so that taking over again changes nothing.

        Returns:
            How many answers were new.

        Raises:
            FdllmError: they cannot be written.
        """
        for session in other.sessions:
            if session not in self.content.sessions:
                self._append({"session": session})
        fresh = [key for key in other.entries if key not in self.content.entries]
        for key in fresh:
            self._append(_answer(other, key), sync=False)
        with explained(self.path):
            os.fsync(self._file.fileno())
        return len(fresh)

    def set_total(self, total: int) -> None:
        """Keep the number of requests of the run, for whoever asks how far it is."""
        if total != self.content.total:
            self._append({"total": total})

    def _append(self, line: dict[str, Any], *, sync: bool = True) -> None:
        (data,) = sealed([line], self.content.seal)
        start = self._file.tell()
        try:
            with explained(self.path):
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]
                if sync:
                    os.fsync(self._file.fileno())
        except FdllmError:
            self._file.truncate(start)
            self._file.seek(start)
            raise
        _problem(self.content, line, data[:-1])


@dataclass(frozen=True)
class RunProgress:
    """How far a run is."""

    fingerprint: Fingerprint | None = None  # of the answers; None where there is no journal
    done: int = 0  # requests answered
    # requests of the run; None until that is known. Of a split run it is known once every shard has
    # begun.
    total: int | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)  # who computed
    tokens: int = 0  # tokens generated or scored so far
    seconds: float = 0.0  # model time behind them

    @property
    def tokens_per_second(self) -> float | None:
        """Speed so far; None before the first answer."""
        return self.tokens / self.seconds if self.seconds else None


def read_progress(paths: RunPaths) -> RunProgress:
    """What the journals of a run hold; an answer that stands in two of them counts once.

    Raises:
        DamagedJournalError: a line of one is not as it was written.
    """
    main = read_journal(paths.journal)
    entries: dict[str, Mapping[str, Any]] = dict(main.entries)
    sessions, fingerprint, total = list(main.sessions), main.fingerprint, main.total
    totals: dict[int, dict[int, int]] = {}
    for part in paths.shards():
        journal = read_journal(part.journal)
        if journal.fingerprint is None or part.shard is None:
            continue
        # Of two versions the newer one counts: that of the shards, who run behind the whole.
        if fingerprint is not None and journal.fingerprint.differences(fingerprint):
            entries, sessions, total, totals = {}, [], None, {}
        fingerprint = journal.fingerprint
        entries |= journal.entries
        sessions += journal.sessions
        if journal.total is not None:
            totals.setdefault(part.shard.count, {})[part.shard.index] = journal.total
    for count, known in totals.items():
        if total is None and len(known) == count:
            total = sum(known.values())
    return RunProgress(
        fingerprint=fingerprint,
        done=len(entries),
        total=total,
        sessions=sessions,
        tokens=sum(int(e.get("num_tokens", e.get("scored_tokens", 0))) for e in entries.values()),
        seconds=sum(float(entry.get("seconds", 0.0)) for entry in entries.values()),
    )


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended."""

    reason: str  # in a line
    log: str | None  # the file that says more, or None
    time: str = ""  # when, UTC, ISO 8601; empty where that is unknown


def write_failure(paths: RunPaths, reason: str, log: str | None) -> Failure:
    """Keep why an attempt ended, as far as the disk still takes it.

    The runner does so for whatever it can catch; who catches a signal calls it for himself.
    """
    failure = Failure(reason, log, utc_now())
    with suppress(FdllmError):
        write_json(paths.failed, asdict(failure))
    return failure


def read_failure(paths: RunPaths) -> Failure | None:
    """Why the last attempt ended; None where it left no such file.

    Raises:
        FdllmError: the file cannot be read.
    """
    try:
        data = read_json(paths.failed, most=_MOST)
        return Failure(str(data["reason"]), data.get("log"), str(data.get("time", "")))
    except AbsentError:
        return None
    except (OutsideError, KeyError, TypeError, AttributeError):
        raise FdllmError(f"{paths.failed.name} cannot be read") from None
