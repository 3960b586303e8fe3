"""``fdllm selftest``: right arithmetic passes, wrong arithmetic does not, and records say so.

There is no GPU here: a stand-in takes the place of a graph, as in ``test_cuda_graphs.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as File

import pytest
import torch
from torch import Tensor

from fdllm.cli import main
from fdllm.core.torch_backend import TorchBackend, TorchWindow
from fdllm.evaluate.adapter import LoadedModel
from fdllm.fast.cuda_graphs import CudaGraphs, Work
from fdllm.record import identity, selftested
from fdllm.record.selftested import Selftested
from fdllm.runs import Evaluating
from fdllm.selftest import checks, result
from fdllm.selftest.checks import BATCHES, Check, Path, Tried, paths_of, run_checks
from fdllm.selftest.result import Result, run_selftest
from fdllm.selftest.subjects import CPU, Subject, copied, embedded
from models import random_model

HALF = torch.bfloat16
GPU = "a GPU"


def short() -> Subject:
    """The embedded model, asked for a few tokens."""
    subject = embedded()
    decoding = subject.decoding.model_copy(update={"max_new_tokens": 8})
    return replace(subject, decoding=decoding, strategies=subject.strategies[1:])


def recording(device: torch.device, dtype: torch.dtype) -> list[Path]:  # noqa: ARG001
    """A GPU's paths: here the work stands in for its replay."""
    return [Path("plain"), Path("graphs", frozen=True, accelerator=CudaGraphs(lambda w: w))]


def plain(device: torch.device, dtype: torch.dtype) -> list[Path]:  # noqa: ARG001
    return [Path("plain")]


@pytest.fixture(autouse=True)
def cache(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> File:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fdllm"


@pytest.fixture(scope="module")
def recorded() -> Result:
    return run_selftest(CPU, lambda _: None, [short], recording, [HALF])


def test_right_arithmetic_passes_by_rounding_alone(recorded: Result) -> None:
    assert [(c.dtype, c.path, c.batch) for c in recorded.checks] == [
        ("bfloat16", path, batch) for path in ("plain", "graphs") for batch in BATCHES
    ]
    assert all(c.verdict == "passed" and 0 < c.error <= c.bound for c in recorded.checks)


def test_a_copy_where_a_view_is_needed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the pairs of a projection are a view of it; kept, they are right there alone."""
    pairs = TorchBackend._pairs  # noqa: SLF001
    kept: dict[object, Tensor] = {}

    def keeping(self: TorchBackend, at: TorchWindow, heads: Tensor) -> Tensor:
        if heads is not self.work.heads:
            return pairs(self, at, heads)
        return kept.setdefault((self, at.shape), pairs(self, at, heads))

    monkeypatch.setattr(TorchBackend, "_pairs", keeping)
    full, half = (list(run_checks(CPU, [short], plain, [t])) for t in (torch.float32, HALF))
    assert {c.verdict for c in full} == {"passed"}
    assert {c.verdict for c in half} == {"failed"}


def test_a_replay_that_gives_an_old_answer_fails() -> None:
    def stale(work: Work) -> Work:
        old = work().clone()
        return lambda: old * 1.01

    def paths(device: torch.device, dtype: torch.dtype) -> list[Path]:  # noqa: ARG001
        return [Path("graphs", frozen=True, accelerator=CudaGraphs(stale))]

    found = run_selftest(CPU, lambda _: None, [short], paths, [HALF])
    assert found.kept.failed
    assert found.graphs == {}  # and nobody takes them by default


def test_what_is_no_number_fails_and_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(short(), CPU, HALF)
    right = checks._stepped  # noqa: SLF001 - what is put in its place needs its shape
    monkeypatch.setattr(checks, "_stepped", lambda *given: right(*given) * torch.nan)
    found = list(tried.on(Path("plain")))
    assert {c.verdict for c in found} == {"failed"}
    assert json.loads(json.dumps(found[0].as_dict(), allow_nan=False))["error"] is None


@pytest.mark.parametrize(("on_cpu", "verdict"), [(True, "failed"), (False, "passed")])
def test_tokens_that_depend_on_the_batch(
    on_cpu: bool, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault on a CPU; on a GPU it is written down."""
    tried = Tried(replace(short(), trained=False), CPU, HALF)
    tried.on_cpu = on_cpu
    monkeypatch.setattr(checks, "_texts", lambda _, __, rows, batch: [[batch] for _ in rows])
    found = list(tried.on(Path("plain")))
    assert [c.depends_on_batch for c in found] == [False, True, True]
    assert [c.verdict for c in found] == ["passed", verdict, verdict]
    told = Result(GPU, tuple(found), {}).kept
    assert told.batch_words == "tokens depend on the batch in bfloat16 (plain)"


def test_texts_of_a_trained_model_must_be_those_of_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = Tried(short(), CPU, HALF)
    monkeypatch.setattr(checks, "_texts", lambda _, __, rows, batch: [[0] for _ in rows])  # noqa: ARG005
    assert [c.problems for c in tried.on(Path("plain"))][-1] == (
        "17 of 17 texts are not those of float32",
    )


def test_an_error_of_a_path_is_its_check_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access\nand so on")

    tried = Tried(short(), CPU, HALF)
    monkeypatch.setattr(checks, "_stepped", fails)
    assert [c.problems for c in tried.on(Path("plain"))] == [
        ("RuntimeError: CUDA error: an illegal memory access",)
    ] * len(BATCHES)


def test_recorded_steps_are_timed_beside_plain_ones(recorded: Result) -> None:
    assert recorded.kept.failed == ()
    assert recorded.graphs.keys() == {"bfloat16"}
    assert recorded.graphs["bfloat16"].keys() == {"DENOISE", "REFRESH"}
    assert recorded.kept.graphs["bfloat16"] == max(recorded.graphs["bfloat16"].values()) > 0


def test_paths_of_a_cpu_and_of_a_gpu() -> None:
    names = {dtype: [p.name for p in paths_of(CPU, dtype)] for dtype in checks.DTYPES}
    assert names[torch.float32][:2] == ["plain", "packed"]
    assert all(found[0] == "plain" for found in names.values())
    assert [p.name for p in paths_of(torch.device("cuda"), HALF)] == ["plain", "graphs"]


def test_a_copy_shares_nothing() -> None:
    model = random_model(0)
    other = copied(model, CPU, HALF)
    before = model.network.norm.weight.clone()
    other.network.norm.weight.zero_()
    assert torch.equal(model.network.norm.weight, before)
    assert other.dtype == other.network.head.weight.dtype == HALF


# --- what is remembered ---------------------------------------------------------------------------


FAILED = Selftested(("tiny, float16, plain, batch 1: logits err", "another"), (), {"float16": 0.5})


def test_an_outcome_is_remembered_by_device() -> None:
    assert selftested.last(None) is None
    selftested.keep(None, FAILED)
    selftested.keep(GPU, Selftested(graphs={"bfloat16": 0.25}))
    assert selftested.last(None) == FAILED
    assert selftested.last(GPU) == Selftested(graphs={"bfloat16": 0.25})
    selftested.keep(None, Selftested())
    assert selftested.last(None) == Selftested()


@pytest.mark.parametrize("other", ["torch", "source"])
def test_an_outcome_is_of_one_torch_and_one_source(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    selftested.keep(GPU, FAILED)
    if other == "torch":
        monkeypatch.setattr("importlib.metadata.version", lambda _: "9.9")
    else:
        monkeypatch.setattr(selftested, "source_hashes", lambda: {"src/a.py": "0"})
    assert selftested.last(GPU) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"DEVICE": 3}', '{"DEVICE": {"failed": 1}}'])
def test_a_damaged_cache_is_no_outcome(text: str, cache: File) -> None:
    selftested.keep(GPU, FAILED)
    file = cache / "selftest.json"
    [key] = json.loads(file.read_text())
    file.write_text(text.replace("DEVICE", key))
    assert selftested.last(GPU) is None


def test_the_selftest_changes_no_fingerprint() -> None:
    assert not [path for path in identity.source_hashes() if "/selftest/" in path]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, "not run"),
        (Selftested(), "passed"),
        (FAILED, "failed: tiny, float16, plain, batch 1: logits err, and 1 more"),
    ],
)
def test_a_record_says_what_its_device_s_selftest_found(
    found: Selftested | None, told: str
) -> None:
    if found is not None:
        selftested.keep(None, found)
    facts = LoadedModel(random_model(0)).facts(Evaluating(scoring="denoise"))
    assert facts["selftest"] == told
    assert facts["selftest_batch"] is None


@pytest.mark.parametrize(
    ("ratios", "asked", "told"),
    [
        (None, None, "no"),  # never run
        ({}, None, "no"),  # its graphs failed
        ({"float16": 0.5}, None, "no"),  # of another type
        ({"bfloat16": 1.1}, None, "no"),  # slower
        ({"bfloat16": 0.9}, None, "CUDA graphs"),
        ({"bfloat16": 0.9}, False, "no"),
        (None, True, "CUDA graphs"),
    ],
)
def test_graphs_are_the_default_where_they_are_right_and_pay(
    ratios: dict[str, float] | None,
    asked: bool | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: GPU)
    if ratios is not None:
        selftested.keep(GPU, Selftested(graphs=ratios))
    model = replace(random_model(0), device=torch.device("cuda"), dtype=HALF)
    facts = LoadedModel(model).facts(Evaluating(scoring="denoise", compile=asked))
    assert facts["compile"] == told
    batch = None if ratios is None else "tokens do not depend on the batch"
    assert facts["selftest_batch"] == batch


# --- the command ----------------------------------------------------------------------------------


PASSED = Check("tiny", "float32", "plain", 1, 1e-4, 1e-6, 1e-6)
WRONG = replace(PASSED, error=1.0, problems=("logits err by 1",))


def outcome(*found: Check) -> Callable[..., Result]:
    def run(device: torch.device, on_check: Callable[[Check], None]) -> Result:  # noqa: ARG001
        for check in found:
            on_check(check)
        return Result(None, found, {})

    return run


def test_a_verdict_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "run_selftest", outcome(PASSED, WRONG))
    assert main(["selftest", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("passed")
    assert lines[2].endswith("failed: logits err by 1")
    kept = selftested.last(None)
    assert kept is not None
    assert kept.words == "failed: tiny, float32, plain, batch 1: logits err by 1"


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "run_selftest", outcome(PASSED))
    assert main(["selftest", "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["device"] == Result(None, (), {}).device
    [check] = document["checks"]
    assert {"dtype", "path", "batch", "error", "verdict"} <= check.keys()
    assert check["verdict"] == "passed"


def test_a_cache_that_cannot_be_written_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: File
) -> None:
    cache.write_text("a file where a folder is needed")
    monkeypatch.setattr(result, "run_selftest", outcome(PASSED))
    assert main(["selftest", "--device", "cpu"]) == 0
    assert "records will not name this result: cannot write" in capsys.readouterr().err


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--device", "tpu"]) == 2
    assert "unknown device 'tpu'" in capsys.readouterr().err


@pytest.mark.slow
def test_this_machine_is_right() -> None:
    """Every type, path and batch, of both models."""
    found = run_selftest(CPU)
    assert found.kept.words == "passed"
    made = {(c.model, c.dtype, c.path, c.batch) for c in found.checks}
    assert made == {
        (model, str(dtype).removeprefix("torch."), path.name, batch)
        for model in ("tiny", "28x512")
        for dtype in checks.DTYPES
        for path in paths_of(CPU, dtype)
        for batch in BATCHES
    }
