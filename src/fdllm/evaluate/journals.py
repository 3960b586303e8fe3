"""The journal of a run or of a shard, opened: other parts' answers of the same run are used too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fdllm.record.identity import Fingerprint
from fdllm.record.journal import DamagedJournalError, Journal, JournalContent, read_journal
from fdllm.record.paths import RunPaths
from fdllm.shard import Shard


def open_journal(
    paths: RunPaths,
    identity: Fingerprint,
    session: dict[str, Any],
    note: Callable[[str], None],
    *,
    fresh: bool = False,
) -> Journal:
    """The journal of a run, or of a shard where ``paths`` are a shard's.

    The journal of a whole run takes over what shards have answered. A shard takes
    from the whole run's journal what it is asked for, so no answer is computed twice.

    Args:
        paths: whose.
        identity: of the run.
        session: who computes from here on.
        note: told what a person should know.
        fresh: a shard computes its answers anew, although the whole run's journal has them.

    Raises:
        FdllmError: the journal cannot be written, or another part's cannot be read.
    """
    try:
        journal = Journal(paths.journal, identity, session)
    except DamagedJournalError as error:
        aside = paths.supersede(paths.journal.name)
        note(f"{error}; it is now in {aside}")
        journal = Journal(paths.journal, identity, session)
    if paths.shard is not None:
        if fresh:
            return journal
        journal.know(_same(read_journal(paths.of_shard(None).journal), identity))
        return journal
    for part in paths.shards():
        content = read_journal(part.journal)
        taken = journal.absorb(_same(content, identity))
        if taken:
            note(f"{taken} answers of {part.shard} are taken over")
    return journal


def _same(content: JournalContent, identity: Fingerprint) -> JournalContent:
    """The content, where it is of this very run; else nothing."""
    if content.fingerprint is None or identity.differences(content.fingerprint):
        return JournalContent()
    return content


def merge_problem(paths: RunPaths, count: int) -> str | None:
    """What keeps a record from being made of ``count`` shards, naming them; None if nothing does.

    Raises:
        DamagedJournalError: a shard's journal cannot be read.
    """
    problems = []
    for shard in Shard.all_of(count):
        part = paths.of_shard(shard)
        content = read_journal(part.journal)
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
