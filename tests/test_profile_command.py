"""``fdllm profile``: what is taken, kept and refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from command import Command
from fdllm.core.checkpoint import load_model
from fdllm.core.reuse import NoReuse
from fdllm.evaluate.adapter import LoadedModel
from fdllm.evaluate.attempt import NOWHERE
from fdllm.evaluate.tasks import task_facts
from fdllm.profiling import take_profile
from fdllm.profiling.record import Profile, read_beside
from fdllm.record.paths import TaskFolder
from fdllm.report.sums import check_profiles
from fdllm.runs import ModelChoice
from profiles import made_up_profile
from stubs import make_planner, make_run

TASK = ("--task", "tiny_arithmetic")
TINY = ModelChoice(name="tiny", device="cpu", dtype="float32")


@pytest.fixture
def profiling(fdllm: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``fdllm`` with a profile that is there at once; ``asked`` gets what it was taken of."""

    def take(_: Any, __: Any, run: Any, number: int, *, watch: Any) -> Profile:
        watch("layer 1", 0.5)
        return made_up_profile(task=run.task, seconds=float(number))

    monkeypatch.setattr(take_profile, "take_profile", take)
    return fdllm


def test_a_profile_is_kept_with_its_page_and_said(profiling: Command) -> None:
    assert profiling("profile", *TASK) == 0
    assert "Layer 1, chosen on 3 documents" in profiling.out
    assert "1 chosen" in profiling.out
    assert "100 documents at most" in profiling.err
    layout, run = make_planner(profiling.root).layout, make_run(profiling.root)
    path, copy = layout.profile(run)
    found = read_beside(layout, str(TaskFolder.of(run)))
    assert found is not None
    assert found.seconds == 100
    assert path.read_bytes() == copy.read_bytes()
    assert path.with_suffix(".html").exists()
    assert copy.with_suffix(".md").exists()

    assert profiling("profile", *TASK, "--docs", "7", "--json") == 0
    said = json.loads(profiling.out)
    assert (said["task"], said["seconds"]) == ("tiny_arithmetic", 7)
    assert [one["layer"] for one in said["layers"]] == [0, 1, 2]
    assert ".superseded" in profiling.err, "the one that stood is kept"
    assert profiling("profile", *TASK, "--limit", "3", "--json") == 0
    assert json.loads(profiling.out)["seconds"] == 3
    assert ".superseded" not in profiling.err, "of a limit it lies elsewhere"


def test_a_changed_figure_of_a_page_or_of_a_copy_is_found(profiling: Command) -> None:
    assert profiling("profile", *TASK) == 0
    layout, run = make_planner(profiling.root).layout, make_run(profiling.root)
    path, copy = layout.profile(run)
    beside = [layout.run(run).folder]
    assert check_profiles(layout, beside).num_figures > 20
    assert check_profiles(layout, beside).differences == ()
    for file in (path.with_suffix(".html"), copy.with_suffix(".md"), copy):
        text = file.read_text()
        assert "0.9" in text
        file.write_text(text.replace("0.9", "0.8", 1))
        [found] = check_profiles(layout, beside).differences
        assert file.name in found.where
        file.write_text(text)
    path.write_text("{}")
    assert [one.figure for one in check_profiles(layout, beside).differences][1:] == ["the profile"]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        (*TASK, "--task", "tiny_choice"),
        (*TASK, "--config", "k2_first"),
        (*TASK, "--docs", "0"),
        ("--task", "tiny_choice", "--scoring", "first-token"),
        ("--task", "tiny_choice", "--scoring", "chain"),
    ],
)
def test_what_cannot_be_profiled_is_refused_ahead_of_any_work(
    profiling: Command, flags: tuple[str, ...]
) -> None:
    assert profiling("profile", *flags) == 2
    assert len(profiling.err.splitlines()) == 1
    assert profiling.loads == 0
    assert not (profiling.root / "results").exists()


def test_an_interrupted_profile_leaves_nothing(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Profile:
        raise KeyboardInterrupt

    monkeypatch.setattr(take_profile, "take_profile", interrupted)
    assert fdllm("profile", *TASK) == 130
    assert "nothing was kept" in fdllm.err
    assert not (fdllm.root / "results").exists()
    assert not (fdllm.root / "artifacts").exists()


# --- taken for real -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["tiny_arithmetic", "tiny_choice"])
def test_a_layer_that_does_nothing_is_chosen(root: Any, task: str) -> None:
    """It changes no answer when it is reused, nor does its residual change."""
    model = load_model("tiny", device="cpu", dtype="float32", freeze=False)
    layer = 7
    for part in (model.network.stack[layer].o, model.network.stack[layer].down):
        part.weight.data.zero_()
    loaded, planner = LoadedModel(model), make_planner(root, task_facts)
    run = make_run(root, "k1_first", tasks=(task,), model=TINY, limit=9)
    short = run.decoding.model_copy(update={"max_new_tokens": 12, "threshold": 0.6})
    run = run.model_copy(update={"decoding": short})
    shares: list[float] = []
    found = take_profile.take_profile(
        planner, loaded, run, 4, watch=lambda _, share: shares.append(share)
    )
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert layer in found.tested["chosen"].layers
    assert len(found.tested["chosen"].layers) == len(found.tested["first"].layers) == 4
    assert found.num_documents == 4
    for half in (found.choosing, found.testing):
        assert all(half.layers[layer].same)
        assert sum(half.map["denoise"].forwards) > 0
        for means in (half.map["denoise"], half.map["refresh"]):
            assert {v for v in means.similarity[layer] if v is not None} <= {1.0}
            assert {v for v in means.change[layer] if v is not None} <= {0.0}
        assert all(
            one < whole
            for one, whole in zip(half.layers[layer].calls, half.plain.calls, strict=True)
        )
    # What a run of the same documents comes to, by its own grading.
    evaluated = loaded.evaluate(run, NOWHERE, NOWHERE, strategy=NoReuse())
    values = {
        (one["task"], one["doc_id"]): one["metrics"][found.metric] for one in evaluated.samples
    }
    for half in (found.choosing, found.testing):
        assert [values[key] for key in half.documents] == list(half.plain.values)
    if task == "tiny_choice":
        assert found.oracle is None
    else:
        assert found.oracle is not None
        assert found.oracle.equal_texts == 4
        assert found.oracle.by_layer[layer] > 0
    assert found.differs(planner.fingerprint(run).fields) == []
