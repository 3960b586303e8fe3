"""One attempt at a run: its documents, its journal, how it ends. No torch, no harness."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from fdllm.errors import FdllmError, MissingError, first_line
from fdllm.plain import shown
from fdllm.plan import State
from fdllm.record.deciding import Looks
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import (
    DamagedJournalError,
    Journal,
    read_journal,
    read_matching,
    write_failure,
)
from fdllm.record.paths import RunPaths
from fdllm.record.summary import Summary
from fdllm.runs import Run
from fdllm.shard import Shard

T = TypeVar("T")


class Store(Protocol):
    """Answers of a run that are already known; a :class:`~fdllm.record.journal.Journal` is one."""

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry put under ``key``, or None."""

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an entry; it is durable when this returns."""

    def set_total(self, total: int) -> None:
        """Keep how many requests the run consists of."""


class Reporter(Protocol):
    """Told what a run does, for whoever watches."""

    def start(self, run: Run) -> None:
        """A run begins; its model may have to be loaded yet."""

    def begin(self, total: int, done: int) -> None:
        """Requests of the run, and how many the store answers already."""

    def advance(self, entry: dict[str, Any]) -> None:
        """One more request is answered."""

    def note(self, text: str) -> None:
        """Something a person should know."""


class _Nowhere:
    """A store that keeps nothing, and a reporter that nobody listens to."""

    def get(self, key: str) -> None: ...
    def put(self, key: str, entry: dict[str, Any]) -> None: ...
    def set_total(self, total: int) -> None: ...
    def start(self, run: Run) -> None: ...
    def begin(self, total: int, done: int) -> None: ...
    def advance(self, entry: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


NOWHERE = _Nowhere()


class Known:
    """A :class:`Store` of answers that are to be graded; it keeps no others."""

    def __init__(self, entries: Mapping[str, dict[str, Any]]) -> None:
        self._entries = entries

    def get(self, key: str) -> dict[str, Any] | None:
        """As it was given."""
        return self._entries.get(key)

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Nothing is kept."""

    def set_total(self, total: int) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class Part:
    """Which of a run's documents an evaluation answers, and until when."""

    shard: Shard | None = None  # the documents; None is all of them
    # asked before a request is begun. Where it says no, those in flight are finished and the
    # evaluation ends with :class:`EndedEarly`.
    go_on: Callable[[], bool] = lambda: True
    looks: Looks | None = None  # end where the criteria are decided; None asks every document

    def select(self, requests: Sequence[T], document: Callable[[T], object]) -> list[T]:
        """This part's of the whole run's requests; documents are split by position, whole."""
        if self.shard is None:
            return list(requests)
        mine = set(self.shard.part(list(dict.fromkeys(map(document, requests)))))
        return [request for request in requests if document(request) in mine]


WHOLE = Part()
"""All documents, to the end."""


class EndedEarly(Exception):  # noqa: N818 - nothing is wrong
    """An evaluation was asked to end; what it has answered, as it says, is in the store."""


class ShardAnswered(Exception):  # noqa: N818 - nothing is wrong
    """A shard's requests are all answered: the store has them, and there is no record to make.

    The harness makes its results of whole tasks only, so this is how a shard leaves it.
    """


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    run: Run  # the run
    # ``done``, ``failed``, ``partial`` (asked to end early; it goes on from there), ``running``
    # (somebody else has it) or ``not-applicable``
    state: State
    reason: str = ""  # why, where it is not done
    log: str | None = None  # the log of a failure
    num_computed: int = 0  # requests computed by this attempt
    summary: Summary | None = None  # the record; None for a shard, which writes none
    missing: bool = False  # it failed of :class:`fdllm.errors.MissingError`


@dataclass
class RunAttempt:
    """One call of :meth:`fdllm.evaluate.runner.Runner.run`."""

    run: Run  # the run
    paths: RunPaths  # its files, or a shard's
    part: Part  # which documents, and until when
    # shards whose answers make the record, computing none; None where it computes
    merge: int | None = None
    force: bool = False  # everything is computed anew
    journal: Journal | None = None  # of its answers, once it is open

    def outcome(
        self, state: State, reason: str, summary: Summary | None = None, log: str | None = None
    ) -> RunOutcome:
        """How it ended."""
        num_computed = 0 if self.journal is None else self.journal.num_put
        return RunOutcome(self.run, state, reason, log, num_computed, summary)

    def failed(self, error: Exception) -> RunOutcome:
        """Keep the reason and the traceback, as far as the disk still takes them."""
        first = first_line(error, "no message")
        reason = first if isinstance(error, FdllmError) else f"{type(error).__name__}: {first}"
        log: str | None = None
        with suppress(FdllmError, OSError):
            path = self.paths.new_log()
            path.write_text(shown("".join(traceback.format_exception(error))), encoding="utf-8")
            log = str(path)
        write_failure(self.paths, reason, log)
        ended = self.outcome(State.FAILED, reason, log=log)
        return replace(ended, missing=isinstance(error, MissingError))

    def ended_early(self, kept: EndedEarly) -> RunOutcome:
        """Partial, to go on from there; a merge has failed, as shards lack answers."""
        if self.merge is None:
            return self.outcome(State.PARTIAL, f"asked to end early, {kept} kept")
        problem = self.merge_problem() or "the rest is of another version"
        return self.failed(FdllmError(f"{kept} are there: {problem}"))

    def open_journal(
        self, identity: Fingerprint, session: dict[str, Any], note: Callable[[str], None]
    ) -> Journal:
        """Its journal; what other parts of the same run have answered is used too.

        The journal of a whole run takes over what shards have answered. A shard takes from the
        whole run's journal what it is asked for, unless it is to compute everything anew.

        A damaged one is moved aside where everything is computed anew, and refused otherwise.

        Raises:
            FdllmError: the journal cannot be written, or it or another part's is damaged.
        """
        paths = self.paths
        try:
            journal = Journal(paths.journal, identity, session)
        except DamagedJournalError as error:
            if not self.force:
                raise
            aside = paths.supersede(paths.journal.name)
            note(f"{error}; it is now in {aside}")
            journal = Journal(paths.journal, identity, session)
        self.journal = journal
        if paths.shard is not None:
            if not self.force:
                journal.know(read_matching(paths.of_shard(None).journal, identity))
            return journal
        for part in paths.shards():
            taken = journal.absorb(read_matching(part.journal, identity))
            if taken:
                note(f"{taken} answers of {part.shard} are taken over")
        return journal

    def merge_problem(self) -> str | None:
        """What keeps a record from being made of shards, naming them; None if nothing does.

        Raises:
            DamagedJournalError: a shard's journal cannot be read.
        """
        problems = []
        for shard in () if self.merge is None else Shard.all_of(self.merge):
            content = read_journal(self.paths.of_shard(shard).journal)
            if content.total is None:
                problems.append(f"{shard} has not begun")
            elif len(content.entries) < content.total:
                problems.append(f"{shard} has {len(content.entries)} of {content.total} requests")
        if not problems:
            return None
        return (
            f"{'; '.join(problems)}: nothing was computed in their place; sweep again, and what is "
            "missing is computed"
        )
