"""A profile's file: whole or refused, found where it belongs, told from another run's."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from fdllm.profiling.record import Profile, read_beside
from fdllm.record.paths import Layout, TaskFolder
from fdllm.record.summary import InvalidRecordError
from fdllm.runs import Run
from profiles import FINGERPRINT, answers, made_up_half, made_up_profile
from stubs import make_planner, make_root, make_run


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    root = make_root(tmp_path / "root")
    return make_planner(root).layout.profile(make_run(root))


def read(layout: Layout, run: Run) -> Profile | None:
    return read_beside(layout, str(TaskFolder.of(run)))


def test_it_is_read_as_it_was_written_and_git_s_copy_stands_for_it(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    layout, run = make_planner(root).layout, make_run(root)
    assert read(layout, run) is None
    profile = made_up_profile()
    profile.write(*places)
    assert read(layout, run) == profile
    places[0].unlink()
    assert read(layout, run) == profile
    assert places[1].is_relative_to(root / "artifacts" / "profile")
    assert read(layout, make_run(root, limit=3)) is None, "a limit has a place of its own"


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 2}', "\x00"])
def test_what_is_no_profile_is_refused(
    places: tuple[Path, Path], tmp_path: Path, text: str
) -> None:
    places[0].parent.mkdir(parents=True)
    places[0].write_text(text)
    with pytest.raises(InvalidRecordError):
        read(make_planner(tmp_path / "root").layout, make_run(tmp_path / "root"))


def test_halves_share_no_document() -> None:
    half = made_up_half(0)
    with pytest.raises(ValidationError, match="chosen on and tested on"):
        made_up_profile(testing=half.model_copy(update={"documents": (("other", 1),) * 3}))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layers": 4},
        {"tested": {"chosen": answers("11", "11", 27, 1)}},
        {"testing": made_up_half(3).model_copy(update={"plain": answers("1111", "1111", 30)})},
    ],
)
def test_every_figure_has_its_layer_and_its_document(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="it has"):
        made_up_profile(**changes)


def test_what_a_run_does_otherwise_is_named() -> None:
    profile = made_up_profile()
    assert profile.differs(FINGERPRINT | {"limit": "10", "strategy": "any"}) == []
    assert profile.differs({"model": "m", "decoding": None}) == []
    assert profile.differs(FINGERPRINT | {"source": "t", "scoring": "chain"}) == [
        "source",
        "scoring",
    ]
