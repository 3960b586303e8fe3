"""A number that is none is no result: the run fails and says where, and no file holds it."""

from __future__ import annotations

import lzma
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fdllm
from fdllm import strictjson, tiny
from fdllm.cli import main
from fdllm.core.engine import Engine, NotFiniteError, resolve
from fdllm.core.reuse import LayerPlan
from fdllm.core.row_task import CacheRow, ForwardRequest, RowTask, Steps
from fdllm.core.schedule import Phase
from fdllm.core.unmask import choose_sampled
from fdllm.errors import FdllmError
from fdllm.evaluate.samples import plain
from fdllm.record.atomic import write_json
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import Journal, read_journal
from fdllm.record.summary import describe_file
from fdllm.report.grid import twins
from fdllm.report.records import Record, finished
from models import DECODING, MASK, VOCAB, model_of, random_model, random_prompt
from stubs import StubMachine, do_run, make_planner, make_root, make_run

NAN, INF = float("nan"), float("inf")
ODD = pytest.mark.parametrize("odd", [NAN, INF, -INF])


# --- the engine -----------------------------------------------------------------------------------


@ODD
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["head", "embedding", "layers.3.down", "layers.0.qkv"])
def test_weights_that_are_not_finite_end_every_use(
    name: str, odd: float, *, compiled: bool
) -> None:
    model = random_model(1)
    model.compile(asked=compiled)
    weight = model.network.get_parameter(f"{name}.weight")
    weight[5 if name != "layers.3.down" else 0, 0] = odd
    prompt = [5, *random_prompt(0, 8)]
    with pytest.raises(NotFiniteError, match="request 0: a REFRESH in float32 gave a NaN or inf"):
        fdllm.generate(model, [prompt], DECODING)
    sampling = DECODING.model_copy(update={"temperature": 0.7})
    with pytest.raises(NotFiniteError):
        fdllm.generate(model, [prompt], sampling)
    for scoring in ("denoise", "chain", "first-token"):
        decoding = DECODING.model_copy(update={"end_token": 2})
        with pytest.raises(NotFiniteError, match="its weights or its config.json are damaged"):
            fdllm.score(model, [(prompt, [7])], scoring, decoding)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("read", [0, 15])
def test_every_phase_is_looked_at(phase: Phase, read: int) -> None:
    """Only where logits are read: what nobody reads is no result."""
    model = random_model(1)
    model.network.get_parameter("head.weight")[:, :] = INF
    whole = LayerPlan(model.n_layers)

    def ask(*columns: int) -> RowTask[None]:
        def steps(_: RowTask[None], row: CacheRow) -> Steps[None]:  # noqa: ARG001
            yield ForwardRequest(phase, tuple(random_prompt(0, 16)), whole, read=columns)

        return RowTask(steps, 32, number=7)

    engine = Engine(model, resolve(DECODING, model), 2)
    assert list(engine.run([ask(), ask()])) == [(0, None), (1, None)]
    with pytest.raises(NotFiniteError, match=f"a {phase.name} in float32") as told:
        list(engine.run([ask(), ask(read)]))
    assert told.value.request == 7


def test_the_request_is_named_not_its_neighbour() -> None:
    model = random_model(1)
    model.network.get_parameter("embedding.weight")[9] = NAN
    clean = [[t for t in random_prompt(i, 12) if t != 9] for i in range(4)]
    decoding = DECODING.model_copy(update={"mask_id": MASK, "stop_token": 2})
    for at in range(4):
        prompts = [prompt if i != at else [*prompt, 9] for i, prompt in enumerate(clean)]
        with pytest.raises(NotFiniteError) as told:
            fdllm.generate(model, prompts, decoding, batch_size=4)
        assert told.value.request == at
        with pytest.raises(NotFiniteError) as told:
            fdllm.score(model, [(prompt, [7, 8]) for prompt in prompts], "denoise", decoding)
        assert told.value.request == at


@ODD
def test_the_mask_tokens_logit_counts(odd: float) -> None:
    """It is looked at before it is barred from being chosen."""
    model = random_model(1)
    model.network.get_parameter("head.weight")[MASK] = odd
    for compiled in (True, False):
        model.compile(asked=compiled)
        with pytest.raises(NotFiniteError):
            fdllm.generate(model, [[5, 6]], DECODING)


@ODD
def test_a_draw_tells_of_a_logit_that_is_not_finite(odd: float) -> None:
    for at in range(VOCAB):
        logits = torch.randn(2, VOCAB)
        logits[1, at] = odd
        _, sure = choose_sampled(logits, MASK, 0.8, 0.9, torch.rand(2))
        assert sure[0] > 0
        assert sure[1] != sure[1]


def test_float16_is_told_from_damaged_weights() -> None:
    """Logits beyond 65,504 in float16 are none; float32 has room for them."""
    for dtype, fails in ((torch.float16, True), (torch.float32, False)):
        model = model_of(random_model(1).network.to(dtype))
        model.network.get_parameter("head.weight").mul_(20_000)
        if not fails:
            assert fdllm.generate(model, [[5, 6]], DECODING)[0].tokens
            continue
        with pytest.raises(NotFiniteError, match="in float16 gave .* use --dtype float32, or bf"):
            fdllm.generate(model, [[5, 6]], DECODING)


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, its residual stream times 8,192: the norms make the answers the same."""
    folder = tmp_path_factory.mktemp("weights") / "wide"
    shutil.copytree(tiny.FOLDER, folder)
    tensors = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    for name, tensor in tensors.items():
        if "embed_tokens" in name or "o_proj" in name or "down_proj" in name:
            tensor.mul_(8192)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    root = make_root(tmp_path / "root")
    monkeypatch.setenv("FDLLM_ROOT", str(root))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")

    def run(task: str, folder: Path, dtype: str) -> tuple[int, str]:
        asked = ["--task", task, "--config", "k1_first", "--limit", "3"]
        code = main(["eval", *asked, "--model", str(folder), "--dtype", dtype])
        told = capsys.readouterr()
        return code, told.out + told.err

    yield run
    for path in (root / "results").rglob("*.json*"):
        if path.suffix == ".xz":
            continue
        text = path.read_text()
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            strictjson.loads(part)


@pytest.mark.slow
def test_overflow_in_float16_fails_the_run(
    evaluate: Callable[..., tuple[int, str]], wide_stream: Path
) -> None:
    code, told = evaluate("tiny_arithmetic", wide_stream, "float32")
    assert (code, "100.0" in told) == (0, True), told
    where = {"tiny_arithmetic": "document 0: a REFRESH", "tiny_choice": r"document \d: a [A-Z]+"}
    for task, place in where.items():
        code, told = evaluate(task, wide_stream, "float16")
        assert code == 1
        assert re.search(rf"failed: task '{task}', {place} in float16 gave a NaN", told), told
        assert "use --dtype float32" in told


# --- files ----------------------------------------------------------------------------------------


@ODD
def test_no_file_takes_one(tmp_path: Path, odd: float) -> None:
    data = {"results": [{"acc": 0.5}, {"acc": odd}]}
    with pytest.raises(
        FdllmError, match=r"'results\.1\.acc' is (nan|inf|-inf), which is no result"
    ):
        write_json(tmp_path / "results.json", data)
    assert not (tmp_path / "results.json").exists()
    fingerprint = Fingerprint(fields={"seed": "1"})
    with Journal(tmp_path / "journal.jsonl", fingerprint, {"machine": "m"}) as journal:
        journal.put("a", {"loglikelihood": -1.0})
        with pytest.raises(FdllmError, match=r"'entry\.loglikelihood' is"):
            journal.put("b", {"loglikelihood": odd})
        journal.put("c", {"loglikelihood": -2.0})
    assert set(read_journal(tmp_path / "journal.jsonl").entries) == {"a", "c"}


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_none_is_read_back(word: str) -> None:
    assert strictjson.loads('{"a": [1.5, null]}') == {"a": [1.5, None]}
    with pytest.raises(ValueError, match=f"{word} is no number"):
        strictjson.loads(f'{{"a": [1.5, {word}]}}')


def test_what_the_harness_has_no_figure_for_is_null() -> None:
    found = {"acc": 0.5, "stderr": NAN, "deep": [{"x": -INF}, torch.tensor(NAN).numpy()[()]]}
    assert plain(found) == {"acc": 0.5, "stderr": None, "deep": [{"x": None}, None]}


def test_a_record_with_one_is_not_done(tmp_path: Path) -> None:
    """Whoever wrote it: the runner writes none."""
    root = make_root(tmp_path)
    run = make_run(root)
    assert do_run(root, run, StubMachine()).state.value == "done"
    summary = make_planner(root).layout.run(run).summary
    text = summary.read_text()
    assert '"value": 0.4' in text
    summary.write_text(text.replace('"value": 0.4', '"value": NaN'))
    state = make_planner(root).state(run)
    assert state.state.value == "invalid"
    assert "NaN is no number" in state.reason


def test_samples_with_one_pass_no_comparison(tmp_path: Path) -> None:
    """Of twins that agree in every sample but say NaN in one."""
    root = make_root(tmp_path)
    runs = [make_run(root, config) for config in ("k1_first", "k1_last")]
    for run in runs:
        assert do_run(root, run, StubMachine()).state.value == "done"
    planner = make_planner(root)
    records = finished([planner.state(run) for run in runs])
    assert not twins(records)[0].differing
    for record in records:
        columns = record.folder / "columns.json.xz"
        text = lzma.decompress(columns.read_bytes()).decode()
        odd = re.sub(r'"tokens": ?\[\d+', '"tokens":[NaN', text)
        assert odd != text
        columns.write_bytes(lzma.compress(odd.encode()))
        record.summary.files[columns.name] = describe_file(columns, 5)
    with pytest.raises(FdllmError, match="NaN is no number"):
        twins([Record(record.folder, record.summary) for record in records])
