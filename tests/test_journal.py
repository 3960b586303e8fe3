"""The journal: whatever cuts it short, at most the answer in flight is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdllm.criteria import criteria_lock
from fdllm.errors import FdllmError
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import VERSION, DamagedJournalError, Journal, read_journal, sealed
from helpers import ROOT
from stubs import small_disk

ONE = Fingerprint(fields={"source": "1", "limit": "10"})
OTHER = Fingerprint(fields={"source": "2", "limit": "10"})


def fill(path: Path, keys: range, fingerprint: Fingerprint = ONE) -> None:
    with Journal(path, fingerprint, {"machine": "m"}) as journal:
        journal.set_total(10)
        for key in keys:
            journal.put(str(key), {"text": f"answer {key} \ud800 ü"})


def test_journal_gives_back_what_was_put(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, range(3))
    with Journal(path, ONE, {"machine": "n"}) as journal:
        assert len(journal.content.entries) == 3
        assert journal.get("1") == {"text": "answer 1 \ud800 ü"}
        assert journal.get("7") is None
        assert [s["machine"] for s in journal.content.sessions] == ["m"], (
            "it has computed nothing yet"
        )
        journal.put("3", {})
        assert [s["machine"] for s in journal.content.sessions] == ["m", "n"]
    content = read_journal(path)
    assert content.total == 10
    assert [s["machine"] for s in content.sessions] == ["m", "n"]


@settings(deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=0, max_value=4))
def test_a_journal_cut_anywhere_loses_at_most_the_last_entry(
    tmp_path_factory: pytest.TempPathFactory, cut: int, num_entries: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal.jsonl"
    fill(path, range(num_entries))
    data = path.read_bytes()
    kept = data[: cut % (len(data) + 1)]
    path.write_bytes(kept)
    whole = kept.count(b'"key"') - (0 if kept.endswith(b"\n") else kept[-1:] != b"")
    with Journal(path, ONE, {"machine": "n"}) as journal:
        survived = len(journal.content.entries)
        assert 0 <= num_entries - survived <= num_entries
        assert survived >= min(whole, num_entries) - 1
        journal.put("after", {"text": "x"})
    again = read_journal(path)
    assert len(again.entries) == survived + 1
    assert again.fingerprint == ONE


@pytest.mark.parametrize("torn", [b'{"key": "2", "entry": {"te', b"\0" * 100 + b"\n"])
def test_a_torn_line_is_cut_off_before_the_next_is_written(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, range(2))
    with path.open("ab") as file:
        file.write(torn)
    assert len(read_journal(path).entries) == 2
    fill(path, range(2, 3))
    assert sorted(read_journal(path).entries) == ["0", "1", "2"]
    for line in path.read_bytes().splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    "line",
    [
        {"entry": {"text": "whose?"}},
        {"key": "1"},
        {"key": "1", "entry": None},
        {"session": None},
        {"total": None},
        {"total": "many"},
        {},
        [],
        None,
        7,
        b"damaged",
    ],
)
def test_a_line_without_its_parts_is_no_line(tmp_path: Path, line: object) -> None:
    """In no place is it taken for an answer; at the end, what is no JSON is what a kill leaves."""
    path = tmp_path / "journal.jsonl"
    fill(path, range(3))
    whole = path.read_bytes().split(b"\n")
    seal = read_journal(path).seal
    bad = line if isinstance(line, bytes) else json.dumps(line).encode()
    if isinstance(line, dict) and line:
        bad = next(sealed([line], seal)).removesuffix(b"\n")
    for at in range(1, len(whole)):
        path.write_bytes(b"\n".join([*whole[:at], bad, *whole[at:]]))
        if bad == b"damaged" and at == len(whole) - 1:
            assert sorted(read_journal(path).entries) == ["0", "1", "2"]
            assert read_journal(path).size == len(b"\n".join(whole))
        else:
            with pytest.raises(DamagedJournalError, match=f"line {at + 1} (lacks|does not fit)"):
                read_journal(path)


@pytest.mark.parametrize(
    "first",
    [
        {"key": "0", "entry": {}},
        {"journal": VERSION},
        {"journal": VERSION, "fingerprint": {"fields": 1}},
        {"journal": VERSION, "fingerprint": ONE.model_dump() | {"more": 1}},
    ],
)
def test_a_journal_begins_with_its_own_version_and_fingerprint(
    tmp_path: Path, first: dict[str, Any]
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(sealed([first, {"total": 1}])))
    with pytest.raises(DamagedJournalError, match="line 1 lacks a part"):
        read_journal(path)


def test_a_journal_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"journal": 1, "fingerprint": ONE.model_dump()}) + "\n{}\n")
    with pytest.raises(DamagedJournalError, match="of journal version 1, not 2: .*--force") as told:
        read_journal(path)
    assert "\n" not in str(told.value)


def test_any_changed_byte_of_a_whole_line_is_named_by_its_number(tmp_path: Path) -> None:
    """The last line too: what is no JSON there is dropped, as a kill leaves it, and never read."""
    path = tmp_path / "journal.jsonl"
    fill(path, range(2))
    whole = path.read_bytes()
    answers = read_journal(path).entries
    starts = [0, *(i + 1 for i, byte in enumerate(whole[:-1]) if byte == ord("\n"))]
    for at, byte in enumerate(whole):
        if byte == ord("\n"):
            continue
        number = sum(start <= at for start in starts)
        path.write_bytes(whole[:at] + bytes([byte ^ 1]) + whole[at + 1 :])
        with suppress(DamagedJournalError):
            assert read_journal(path).entries == {"0": answers["0"]}
            assert number == len(starts)
            continue
        with pytest.raises(DamagedJournalError, match=f"line {number} "):
            read_journal(path)


def test_a_line_of_another_run_is_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    fill(one, range(2))
    fill(other, range(2), OTHER)
    lines, strange = one.read_bytes().split(b"\n"), other.read_bytes().split(b"\n")
    one.write_bytes(b"\n".join([*lines[:3], strange[3], *lines[4:]]))
    with pytest.raises(DamagedJournalError, match="line 4 does not fit its checksum"):
        read_journal(one)


def test_a_shard_is_taken_over_once(tmp_path: Path) -> None:
    """Its answers and who gave them; what is here already stays, and again changes nothing."""
    path, shard = tmp_path / "whole" / "journal.jsonl", tmp_path / "shard" / "journal.jsonl"
    fill(path, range(2))
    with Journal(shard, ONE, {"machine": "of the shard"}) as journal:
        journal.put("1", {"text": "another answer"})
        journal.put("2", {"text": "new"})
    with Journal(path, ONE, {"machine": "n"}) as journal:
        assert journal.absorb(read_journal(shard)) == 1
        before = path.read_bytes()
        assert journal.absorb(read_journal(shard)) == 0
        assert path.read_bytes() == before
        assert len(journal.content.entries) == len(journal.content.entries) == 3
    content = read_journal(path)
    assert content.entries["1"]["text"].startswith("answer 1")
    assert content.entries["2"] == {"text": "new"}
    assert [s["machine"] for s in content.sessions] == ["m", "of the shard"]


def test_what_another_journal_knows_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    path, other = tmp_path / "one" / "journal.jsonl", tmp_path / "other" / "journal.jsonl"
    fill(other, range(3))
    with Journal(path, ONE, {"machine": "n"}) as journal:
        journal.know(read_journal(other))
        assert len(journal.content.entries) == 0
        assert journal.get("1") == read_journal(other).entries["1"]
        assert journal.get("9") is None
        assert len(journal.content.entries) == 1
        journal.put("2", {"text": "its own"})
        assert journal.get("2") == {"text": "its own"}
    content = read_journal(path)
    assert list(content.entries) == ["1", "2"]
    assert [s["machine"] for s in content.sessions] == ["n"], "who asks has not computed"


def test_each_answer_says_which_criteria_were_in_force(tmp_path: Path) -> None:
    """Also where another journal's answers are taken over, after the criteria were edited."""

    def answer(path: Path, criteria: str | None, *keys: int) -> None:
        session = {} if criteria is None else {"criteria": criteria}
        with Journal(path, ONE, session) as journal:
            for key in keys:
                journal.put(str(key), {"task": "sums", "doc_id": key // 2})

    whole, shard, other = (tmp_path / name / "journal.jsonl" for name in ("whole", "0", "1"))
    early, late = criteria_lock('{"min_speedup": 2.0}'), criteria_lock('{"min_speedup": 1.0}')
    answer(shard, None, 0, 1)
    answer(shard, '{"min_speedup": 2.0}', 2, 3, 4)  # two choices a document: of 2 only one yet
    answer(shard, '{"min_speedup": 1.0}', 6)
    assert read_journal(shard).rows_by_lock == {early: 2, late: 1}
    with Journal(whole, ONE, {"criteria": "none"}) as journal:
        journal.absorb(read_journal(shard))
        assert journal.content.rows_by_lock == {early: 2, late: 1}
    with Journal(other, ONE, {"criteria": "none"}) as journal:
        journal.know(read_journal(shard))
        assert journal.get("6")
        assert journal.get("0")
    assert read_journal(other).rows_by_lock == {late: 1}


def test_the_number_of_requests_is_written_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, ONE, {}) as journal:
        for total in (4, 4, 5):
            journal.set_total(total)
    assert path.read_text().count('"total"') == 2
    assert read_journal(path).total == 5
    assert read_journal(tmp_path / "absent.jsonl").total is None


def test_another_fingerprint_is_moved_aside_and_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "task" / "k2" / "journal.jsonl"
    fill(path, range(3))
    with Journal(path, OTHER, {}) as journal:
        assert len(journal.content.entries) == 0
        assert journal.moved_aside is not None
        kept = read_journal(journal.moved_aside / "journal.jsonl")
    assert (len(kept.entries), kept.fingerprint) == (3, ONE)


def test_an_entry_that_does_not_fit_the_disk_leaves_a_whole_journal(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "journal.jsonl"
    with small_disk(path.parent):
        with Journal(path, ONE, {}) as journal:
            journal.put("small", {"text": "x"})
            with pytest.raises(FdllmError, match="disk is full"):
                journal.put("large", {"text": "x" * 200_000})
            journal.put("next", {"text": "y"})
        assert sorted(read_journal(path).entries) == ["next", "small"]


def test_an_entry_is_durable_when_put_returns(tmp_path: Path) -> None:
    """SIGKILL straight behind ``put``: the entry is there."""
    path = tmp_path / "journal.jsonl"
    code = f"""
import os, signal
from pathlib import Path
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import Journal
journal = Journal(Path({str(path)!r}), Fingerprint(fields={ONE.fields!r}), {{}})
journal.put("0", {{"text": "x"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(read_journal(path).entries) == ["0"]
