"""How far a run without a record is: what its journal, and those of its shards, hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fdllm.record.fingerprint import Fingerprint
from fdllm.record.journal import read_journal
from fdllm.record.paths import RunPaths


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        fingerprint: of the answers; None where there is no journal.
        done: requests answered.
        total: requests of the run; None until that is known. Of a split run it is known once every
            shard has begun.
        sessions: who computed.
        tokens: tokens generated or scored so far.
        seconds: model time behind them.
    """

    fingerprint: Fingerprint | None = None
    done: int = 0
    total: int | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Speed so far; None before the first answer."""
        return self.tokens / self.seconds if self.seconds else None


def read_progress(paths: RunPaths) -> Progress:
    """What the journals of a run hold; an answer that stands in two of them counts once.

    Raises:
        DamagedJournalError: a line ahead of a journal's last one cannot be read.
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
    return Progress(
        fingerprint=fingerprint,
        done=len(entries),
        total=total,
        sessions=sessions,
        tokens=sum(int(e.get("num_tokens", e.get("scored_tokens", 0))) for e in entries.values()),
        seconds=sum(float(entry.get("seconds", 0.0)) for entry in entries.values()),
    )
