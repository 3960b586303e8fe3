"""What follows from a profile: the choice, its test, the words, and one page of it all."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import pytest

from fdllm.errors import UsageError
from fdllm.profiling.profile_page import heat_map, render_markdown, render_page
from fdllm.profiling.profile_tables import map_table, oracle_sentence
from fdllm.profiling.record import BINS, GradedAnswers, Half, PhaseMap
from fdllm.profiling.redundancy import (
    as_dict,
    choose,
    compared_sets,
    layer_figures,
    verdict,
    whole_map,
)
from fdllm.profiling.take_profile import halves
from profiles import answers, made_up_half, made_up_profile


def half_of(same: list[str], change: list[float]) -> Half:
    """Layers by which answers stay, and by how much their residuals change."""
    empty: dict[str, Any] = {"forwards": (1,) * BINS, "compared": (1,) * BINS}
    rows = tuple((value,) * BINS for value in change)
    found = PhaseMap(**empty, similarity=rows, change=rows)
    number = len(same[0])
    return made_up_half(0).model_copy(
        update={
            "layers": tuple(
                GradedAnswers(
                    layers=(i,),
                    values=(1.0,) * number,
                    same=tuple(one == "1" for one in row),
                    calls=(1.0,) * number,
                )
                for i, row in enumerate(same)
            ),
            "map": {"denoise": found, "refresh": found},
        }
    )


def test_layers_that_change_fewest_answers_are_chosen() -> None:
    half = half_of(["111", "011", "111", "110", "001"], [0.0, 0.3, 0.9, 0.2, 0.0])
    assert choose(half, 1) == (2,), "layer 0 never is"
    assert choose(half, 2) == (2, 3), "of equals the one whose residual changes less"
    assert choose(half, 4) == (1, 2, 3, 4)


def test_the_choice_knows_nothing_of_the_other_half() -> None:
    profile = made_up_profile()
    assert choose(profile.choosing, 1) == profile.tested["chosen"].layers == (1,)


def test_halves_share_no_prompt_and_documents_of_one_stay_together() -> None:
    keys = [("leaf", i) for i in range(9)]
    prompts = dict(zip(keys, "abacbdeaf", strict=True))
    one, other = halves(keys, prompts)
    assert sorted([*one, *other]) == keys
    assert not {prompts[key] for key in one} & {prompts[key] for key in other}
    with pytest.raises(UsageError, match="of different prompts"):
        halves(keys, dict.fromkeys(keys, "a"))


def test_figures_follow_from_the_documents() -> None:
    profile = made_up_profile()
    figures = layer_figures(profile)
    assert [one.accuracy for one in figures] == pytest.approx([1 / 3, 2 / 3, 1 / 3])
    assert [one.same for one in figures] == pytest.approx([2 / 3, 1, 2 / 3])
    assert [one.oracle_skip for one in figures] == [0.2, 0.5, 0.3]
    assert [one.chosen for one in figures] == [False, True, False]
    # Of layer 0, by DENOISE: 4 forwards of .5, 2 of .6 and 2 of .8 in one half, .05 more in the
    # other.
    assert figures[0].similarity == pytest.approx((4 * 0.5 + 2 * 0.6 + 2 * 0.8) / 8 + 0.025)
    assert figures[1].change == pytest.approx(0.1)
    joined = whole_map(profile)["denoise"]
    assert (joined.forwards, joined.compared) == ((8, 4, 0, 4), (8, 4, 0, 2))
    assert joined.similarity[0] == pytest.approx((0.525, 0.625, None, 0.825))
    assert joined.change[1] == pytest.approx((0.1, 0.1, None, None))

    chosen, first, _, last = compared_sets(profile)
    assert chosen.than_chosen is None
    assert chosen.saved == pytest.approx(0.1)
    assert [first.accuracy, last.accuracy] == pytest.approx([2 / 3, 0])
    assert last.than_chosen is not None
    assert last.than_chosen.difference.value == pytest.approx(2 / 3)
    assert last.than_plain.difference.value == pytest.approx(-2 / 3)


def many(values: str) -> dict[str, Any]:
    """A profile's test on forty documents, on which one set of layers gives these figures."""
    half = made_up_half(3)
    number = 40
    keys = tuple(("made_up", 3 + i) for i in range(number))
    right = answers("1" * number, "1" * number, 30)
    return {
        "testing": half.model_copy(
            update={
                "documents": keys,
                "prompts": tuple(f"p{3 + i}" for i in range(number)),
                "plain": right,
                "layers": (right,) * 3,
            }
        ),
        "tested": {
            "chosen": answers(values, "1" * number, 27, 1),
            "first": answers("01" * 20, "1" * number, 27, 1),
        },
    }


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("1" * 40, "better than first"),
        ("0" * 40, "worse than first"),
        ("01" * 19 + "11", "no difference from first is shown"),
    ],
)
def test_the_verdict_goes_by_the_paired_interval(chosen: str, words: str) -> None:
    profile = made_up_profile(**many(chosen))
    assert words in verdict(profile)
    assert "40 others" in verdict(profile)


def test_json_is_as_documented() -> None:
    profile = made_up_profile()
    found = as_dict(profile)
    assert found["layers"] == [asdict(one) for one in layer_figures(profile)]
    assert {"layer", "similarity", "change", "accuracy", "oracle_skip"} <= set(found["layers"][0])
    assert found["subset"]["layers"] == (1,)
    assert [one["subset"] for one in found["subset"]["against"]] == ["first", "middle", "last"]
    assert {"difference", "low", "high"} <= set(found["subset"]["against"][0])
    assert (found["docs"], found["oracle"]["layer_calls_saved"]) == (6, 45)
    scored = as_dict(made_up_profile(oracle=None))
    assert scored["oracle"] is None
    assert scored["layers"][0]["oracle_skip"] is None


def test_the_page_says_what_the_tables_say_and_fetches_nothing() -> None:
    evil = "<img src=x onerror=alert(1)>"
    profile = made_up_profile(task=evil)
    page = render_page(profile)
    assert "<img" not in page
    assert not re.search(
        r"url\((?!#)|@import|<script src|<link(?! rel=\"icon\" href=\"data:,\")", page
    )
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg"}
    colours = {*re.findall(r"var\((--\w+)\)", page)}
    assert colours <= {*re.findall(r"[ \"](--\w+):", page)}, "each is defined"
    assert verdict(profile) in page
    assert oracle_sentence(profile) in page
    assert "25.0 %" in oracle_sentence(profile)
    assert "prefers-color-scheme" in page or "light-dark(" in page
    # A cell of the drawing for each value of the table, the chosen layer named.
    maps = whole_map(profile)
    for name in ("similarity", "change"):
        table = map_table(maps, name)
        drawn = str(heat_map(profile, maps, name))
        assert drawn.count('class="heat') == 3 * 2 * BINS
        assert drawn.count("heat none") == sum(
            text == "" for one in table.columns for text in one.texts
        )
        assert "1 chosen" in drawn
    darkest = str(heat_map(profile, maps, "similarity"))
    assert darkest.count("heat h9") == 4, "what is most alike"

    text = render_markdown(made_up_profile())
    assert verdict(profile) in text
    assert "| 1 chosen | 0.925 | 0.100 |" in text
    assert "oracle" not in render_markdown(made_up_profile(oracle=None)).lower()
