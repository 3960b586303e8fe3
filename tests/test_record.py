"""Journal, atomic files, locks, figures: nothing is lost, and nothing is half there."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdllm.errors import FdllmError
from fdllm.record import measure
from fdllm.record.atomic import explained, write_json, write_text
from fdllm.record.fingerprint import Fingerprint
from fdllm.record.journal import DamagedJournalError, Journal, read_journal
from fdllm.record.lock import LockedError, holder_of, locked
from fdllm.record.paths import RunPaths
from fdllm.record.provenance import session
from fdllm.record.summary import StrategyRecord
from helpers import ROOT

ONE = Fingerprint(fields={"source": "1", "limit": "10"})
OTHER = Fingerprint(fields={"source": "2", "limit": "10"})


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Writing beyond ``num_bytes`` of a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (it needs root)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def paths_in(folder: Path) -> RunPaths:
    return RunPaths(folder / "task" / "k2_middle", folder / "artifacts", folder / "logs")


# --- whole files --------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")
    with file_size_limit(1000), pytest.raises(FdllmError, match="summary.json"):
        write_text(path, "x" * 100_000)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_full_disk_is_one_line_with_the_way_out(full_disk: Path) -> None:
    path = full_disk / "summary.json"
    write_text(path, "old")
    with pytest.raises(FdllmError, match=r"summary.json: the disk is full; free some space"):
        write_text(path, "x" * 200_000)
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(FdllmError, match=r"results.*move it away"):
        write_text(tmp_path / "results" / "x" / "summary.json", "text")


def test_refusals_are_explained() -> None:
    with pytest.raises(FdllmError, match="permission denied.*--results"), explained(Path("/x")):
        raise PermissionError(errno.EACCES, "Permission denied")


# --- the journal --------------------------------------------------------------------------------


def fill(path: Path, keys: range, fingerprint: Fingerprint = ONE) -> None:
    with Journal(path, fingerprint, {"machine": "m"}) as journal:
        journal.set_total(10)
        for key in keys:
            journal.put(str(key), {"text": f"answer {key} \ud800 ü"})


def test_journal_gives_back_what_was_put(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, range(3))
    with Journal(path, ONE, {"machine": "n"}) as journal:
        assert len(journal) == 3
        assert journal.get("1") == {"text": "answer 1 \ud800 ü"}
        assert journal.get("7") is None
        assert [s["machine"] for s in journal.sessions] == ["m", "n"]
    assert read_journal(path).total == 10


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
        survived = len(journal)
        assert 0 <= num_entries - survived <= num_entries
        assert survived >= min(whole, num_entries) - 1
        journal.put("after", {"text": "x"})
    again = read_journal(path)
    assert len(again.entries) == survived + 1
    assert again.fingerprint == ONE


def test_a_torn_line_is_cut_off_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, range(2))
    with path.open("ab") as file:
        file.write(b'{"key": "2", "entry": {"te')
    fill(path, range(2, 3))
    assert sorted(read_journal(path).entries) == ["0", "1", "2"]
    for line in path.read_bytes().splitlines():
        json.loads(line)


def test_zeros_at_the_end_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, range(2))
    with path.open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    assert len(read_journal(path).entries) == 2


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, range(3))
    lines = path.read_bytes().split(b"\n")
    lines[3] = b"damaged"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DamagedJournalError, match="line 4"):
        read_journal(path)


def test_another_fingerprint_is_moved_aside_and_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "task" / "k2" / "journal.jsonl"
    fill(path, range(3))
    with Journal(path, OTHER, {}) as journal:
        assert len(journal) == 0
        assert journal.moved_aside is not None
        kept = read_journal(journal.moved_aside / "journal.jsonl")
    assert (len(kept.entries), kept.fingerprint) == (3, ONE)


def test_an_entry_that_does_not_fit_the_disk_leaves_a_whole_journal(full_disk: Path) -> None:
    path = full_disk / "journal.jsonl"
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
from fdllm.record.fingerprint import Fingerprint
from fdllm.record.journal import Journal
journal = Journal(Path({str(path)!r}), Fingerprint(fields={ONE.fields!r}), {{}})
journal.put("0", {{"text": "x"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(read_journal(path).entries) == ["0"]


# --- locks --------------------------------------------------------------------------------------


def test_one_at_a_time(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    with locked(paths):
        with pytest.raises(LockedError, match=str(os.getpid())), locked(paths):
            pytest.fail("two hold the lock")
        assert holder_of(paths) is not None
    assert holder_of(paths) is None
    with locked(paths):
        pass


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    code = f"""
import sys, time
from pathlib import Path
from fdllm.record.lock import locked
from fdllm.record.paths import RunPaths
base = Path({str(tmp_path)!r})
with locked(RunPaths(base / "task" / "k2_middle", base / "artifacts", base / "logs")):
    print("held", flush=True)
    time.sleep(60)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        holder = holder_of(paths)
        assert holder is not None
        assert holder.pid == process.pid
        process.kill()
        process.wait()
    assert paths.holder.exists()
    assert holder_of(paths) is None
    with locked(paths):
        pass


def test_superseding_keeps_the_files_and_the_lock(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    with locked(paths):
        write_text(paths.summary, "old")
        write_text(paths.journal, "old journal")
        aside = paths.supersede()
        assert aside is not None
        assert sorted(p.name for p in aside.iterdir()) == ["journal.jsonl", "summary.json"]
        assert holder_of(paths) is not None
        assert paths.supersede() is None


# --- fingerprints and figures -------------------------------------------------------------------


def test_unknown_values_are_no_difference() -> None:
    known = Fingerprint(fields={"revision": "abc", "limit": "10"})
    unknown = Fingerprint(fields={"revision": None, "limit": "10"})
    assert not known.differences(unknown)
    assert not unknown.differences(known)
    assert ONE.differences(OTHER) == ["source: changed"]


def test_provenance_holds_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("FDLLM_IMAGE_SHA256", "abc")
    told = session(accelerator=None, threads=2, device="cpu", dtype="float32")
    assert "hf_verysecret" not in json.dumps(told)
    assert told["image_sha256"] == "abc"
    assert "2 threads" in told["machine"]


def entry(tokens: list[int], seconds: float, finish: str = "stop", **counts: int) -> dict[str, Any]:
    phase = {"forwards": 2, "computed": 20, "reused": 4, "tokens": 16} | counts
    return {
        "tokens": tokens,
        "num_tokens": len(tokens),
        "seconds": seconds,
        "finish": finish,
        "counts": {"denoise": phase, "commit": dict.fromkeys(phase, 0) | {"forwards": 1}},
    }


def test_throughput_of_generation() -> None:
    entries = [entry([1] * 30, 1.0), entry([2] * 10, 3.0, "length")]
    counts = measure.add_counts(entries)
    speed = measure.throughput("generate", entries, entries, counts)
    assert (speed.tokens, speed.seconds, speed.tokens_per_second) == (40, 4.0, 10.0)
    assert speed.tokens_per_forward == pytest.approx(40 / 6)
    assert speed.latency_p50_s == 2.0
    assert speed.scored_tokens_per_second is None
    assert measure.layer_calls(counts).saved_share == pytest.approx(8 / 48)
    quality = measure.quality("generate", entries)
    assert quality is not None
    assert quality.truncation_rate == 0.5


def test_throughput_of_scoring_has_names_of_its_own() -> None:
    entries = [entry([], 0.5) | {"scored_tokens": 3}, entry([], 0.5) | {"scored_tokens": 1}]
    speed = measure.throughput("loglikelihood", entries, entries[:1], measure.add_counts(entries))
    assert (speed.scored_tokens_per_second, speed.requests_per_second) == (4.0, 2.0)
    assert speed.tokens_per_second is None
    assert measure.quality("loglikelihood", entries) is None


def test_repetition() -> None:
    assert measure.is_repetitive([1, 2, 3] * 20)
    assert not measure.is_repetitive(list(range(60)))
    assert not measure.is_repetitive([1] * 15)


STRATEGY = StrategyRecord(
    text="", k=2, subset="middle", layers=(4, 5), n_layers=12, reuses=True
)


@pytest.mark.parametrize(
    ("reuses", "one_forward", "reused", "passed"),
    [
        (True, False, 4, True),
        (True, False, 0, False),
        (False, False, 0, True),
        (False, False, 4, False),
        (True, True, 0, True),
        (True, True, 4, False),
    ],
)
def test_reuse_guard(reuses: bool, one_forward: bool, reused: int, passed: bool) -> None:  # noqa: FBT001
    strategy = STRATEGY.model_copy(update={"reuses": reuses})
    counts = {"denoise": {"forwards": 3, "computed": 10, "reused": reused, "tokens": 8}}
    first, second = measure.guards(
        strategy, counts, one_forward=one_forward, num_samples=2, num_documents=2
    )
    assert first.passed is passed
    assert second.passed


def test_reuse_guard_says_why() -> None:
    counts = {"refresh": {"forwards": 9, "computed": 9, "reused": 0, "tokens": 8}}
    guard, _ = measure.guards(
        STRATEGY, counts, one_forward=False, num_samples=1, num_documents=1
    )
    assert "every step was a REFRESH" in guard.detail
    assert "block cache is off" in guard.detail


def test_headline_counts_only_what_is_right_or_wrong() -> None:
    def samples(*values: float) -> list[dict[str, Any]]:
        return [{"metrics": {"acc": value}} for value in values]

    assert measure.headline("acc", 0.5, samples(1, 0)).num_correct == 1
    assert measure.headline("acc", 0.5, samples(0.5, 0.5)).num_correct is None
    assert measure.headline("acc", 0.9, samples(1, 0)).num_correct is None  # weighed by subject
