"""Lists that decide what counts, whole: an entry that comes or goes is a change of the contract."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import fdllm
from cells import make_cell
from fdllm.errors import FdllmError, UsageError
from fdllm.plan import BUSY, SETTLED, State
from fdllm.record.atomic import explained
from fdllm.record.identity import Fingerprint, locked_versions, source_hashes
from fdllm.record.provenance import git_state, session
from fdllm.record.summary import Summary
from fdllm.report.records import NotComparableError
from imports import SOURCE
from stubs import make_planner, make_root, make_run

PACKAGE = SOURCE / "fdllm"


def test_an_identity_has_these_fields(tmp_path: Path) -> None:
    """One more or less makes every record of before stale, or lets one pass that is."""
    root = make_root(tmp_path / "root")
    run = make_run(root)
    found = make_planner(root).fingerprint(run)
    assert set(found.fields) >= {
        "schema", "source", "experiment", "lock", "model", "revision", "task", "decoding",
        "strategy", "dtype", "limit", "fewshot_seed", "scoring", "num_fewshot", "chat_template",
    }  # fmt: skip
    assert None not in found.fields.values()
    code = {name for name in found.files if name.startswith("experiments/")}
    assert code == {"experiments/00_baseline/generation_functions.py"}
    assert set(found.files) - code == set(source_hashes())


def test_every_field_of_an_identity_counts() -> None:
    """What planning does not know is held against nobody; what a record lacks equals nothing."""
    fields: dict[str, str | None] = {"source": "a", "limit": "3", "task": "t"}
    one = Fingerprint(fields=fields, files={"src/x.py": "1"})
    assert one.known() == one
    assert len(one.digest) == 12
    for name in fields:
        other = one.model_copy(update={"fields": fields | {name: "other"}})
        assert other.digest != one.digest
        assert len(other.differences(one)) == len(one.differences(other)) == 1
        unknown = one.model_copy(update={"fields": fields | {name: None}})
        assert unknown.differences(one) == []
        for other in (one, unknown):
            assert other.differences(unknown) == [f"{name}: unknown in the record"]
        with pytest.raises(FdllmError, match=f"this run's {name} cannot be told"):
            unknown.known()
        fewer = one.model_copy(update={"fields": {k: v for k, v in fields.items() if k != name}})
        assert fewer.differences(one) == [f"{name}: no longer a field"]
        assert one.differences(fewer) == [f"{name}: unknown in the record"]


def test_all_code_is_identified_but_what_only_plans_shows_and_keeps() -> None:
    files = {p.relative_to(PACKAGE) for kind in ("*.py", "*.c") for p in PACKAGE.rglob(kind)}
    inside = {Path(name).relative_to("src/fdllm") for name in source_hashes()}
    assert inside <= files
    assert {path.parts[0] for path in files - inside} == {
        "cli", "report", "cluster", "doctor", "record", "release", "tiny", "timing",
        "trace", "plan.py", "shard.py", "errors.py", "presets", "selftest", "applicable.py",
        "criteria.py", "until_decided.py", "__main__.py", "task_facts.py", "profiling", "reproduce",
        "calibrate",
    }  # fmt: skip
    assert not {path.parts[0] for path in files - inside} & {path.parts[0] for path in inside}
    assert Path("fast/kernels.c") in inside


def test_these_libraries_can_change_an_output() -> None:
    told = dict(part.split(" ") for part in locked_versions().split(", "))
    assert list(told) == [
        "antlr4-python3-runtime", "datasets", "latex2sympy2_extended", "lm-eval", "math-verify",
        "numpy", "safetensors", "sympy", "tokenizers", "torch", "transformers",
    ]  # fmt: skip
    assert "absent" not in told.values()
    assert not any("+" in version for version in told.values())


def test_a_session_says_these_things_and_no_more() -> None:
    told = session(accelerator="a GPU", threads=3, device="cuda")
    assert set(told) == {
        "started", "machine", "host", "cpu", "cpus", "platform", "python", "packages", "git",
        "image_sha256", "slurm_job_id", "accelerator", "threads", "device",
    }  # fmt: skip
    assert told["machine"] == "a GPU"
    assert told["started"].endswith("+00:00")
    assert set(told["packages"]) == {
        "datasets", "fdllm", "huggingface-hub", "lm-eval", "numpy", "safetensors", "tokenizers",
        "torch", "transformers",
    }  # fmt: skip
    assert "not installed" not in told["packages"].values()


def test_a_record_has_these_parts() -> None:
    assert set(Summary.model_fields) == {
        "version", "experiment", "task", "config", "limit", "model", "kind", "estimator",
        "headline", "num_requests", "throughput", "peak_memory", "counts", "layer_calls", "quality",
        "strategy", "guards", "files", "fingerprint", "dataset", "task_versions", "provenance",
        "scored", "metrics", "decided",
    }  # fmt: skip


def test_states_are_these_ten() -> None:
    assert [state.value for state in State] == [
        "done", "decided", "pending", "queued", "running", "partial", "failed", "stale", "invalid",
        "not-applicable",
    ]  # fmt: skip
    assert {State.DONE, State.NOT_APPLICABLE} == SETTLED
    assert {State.RUNNING, State.QUEUED} == BUSY


def test_exit_codes() -> None:
    """2 where the question makes no sense or has no answer; 1 where the work failed."""
    for found in pkgutil.walk_packages(fdllm.__path__, "fdllm."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    pending, seen = [FdllmError], set[type[FdllmError]]()
    while pending:
        kind = pending.pop()
        seen.add(kind)
        pending += kind.__subclasses__()
    assert len(seen) > 4
    for kind in seen:
        asked = issubclass(kind, UsageError | NotComparableError)
        assert kind.exit_code == (2 if asked else 1), kind


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        ("ENOSPC", "the disk is full; free some space"),
        ("EDQUOT", "the disk quota is used up; free some space"),
        ("EFBIG", "raise the limit"),
        ("EACCES", "permission denied; choose another place with --results"),
        ("EPERM", "permission denied; choose another place with --results"),
        ("EROFS", "the file system is read-only; choose another place with --results"),
        ("ENOTDIR", "a file where a folder is needed; move it away"),
        ("EEXIST", "in the way; move it away"),
        ("EISDIR", "a folder where a file is needed; move it away"),
        ("EIO", "what the system said"),
    ],
)
def test_a_refusal_to_write_says_what_to_do(error: str, way_out: str) -> None:
    number = getattr(importlib.import_module("errno"), error)
    with pytest.raises(FdllmError) as raised, explained(Path("/place/file")):
        raise OSError(number, "what the system said")
    assert str(raised.value).startswith("cannot write /place/file: ")
    assert way_out in str(raised.value)
    assert "intact; the same command goes on" in str(raised.value)


def test_a_preset_and_a_speed_are_those_that_were_recorded() -> None:
    for words in ("none", "published", "published, but seed=1"):
        summary = make_cell("k1_first", [1, 0], fields={"preset": words}).summary
        assert summary.preset_words == (None if words == "none" else words)
    written = make_cell("k1_first", [1, 0], seconds=[2.0, 2.0], tokens=[10, 30]).summary
    assert written.speed == 10.0
    scored = make_cell("k1_first", [1, 0], seconds=[2.0, 2.0], tokens=[2, 4], task="mmlu").summary
    assert scored.speed == 1.5


def test_outside_of_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None


def test_what_boxes_hold_is_told_where_there_are_any() -> None:
    summary = make_cell("k1_first", [1, 0]).summary
    assert summary.boxed_match is None
    boxed = summary.model_copy(update={"metrics": {"boxed_match,none": 0.25}})
    assert boxed.boxed_match == 0.25


def test_an_estimator_that_was_used_where_it_is_invalid_says_so_in_its_name() -> None:
    for scoring in ("denoise", "first-token, allowed where invalid"):
        name = scoring.partition(",")[0]
        fields = {"scoring": scoring}
        cell = make_cell("k1_first", [1, 0], task="mmlu", estimator=name, fields=fields)
        assert cell.summary.estimator_words == scoring
    assert make_cell("k1_first", [1, 0]).summary.estimator_words is None
