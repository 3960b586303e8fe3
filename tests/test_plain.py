"""What others wrote is shown as it is: it moves no cursor and hides nothing."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdllm.plain import escaped, in_code, one_line, shown

ANY = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain text, é, 漢字, 👍🏽, a\u3000b", "plain text, é, 漢字, 👍🏽, a\u3000b"),
        ("\x1b[31mred", r"\u001b[31mred"),
        ("\x1b]0;title\x07", r"\u001b]0;title\u0007"),
        ("\x9b31m", r"\u009b31m"),  # the same escape in one byte
        ("gone\r\x7fback\x08", r"gone\r\u007fback\b"),
        ("user\u202etxt.exe\u2066", r"user\u202etxt.exe\u2066"),
        ("a\u200bb\u200d\ufeff\u00ad\u3164", r"a\u200bb\u200d\ufeff\u00ad\u3164"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\ud83d alone", r"\ud83d alone"),
        ("\U000e0041", r"\udb40\udc41"),  # a tag, which nothing draws
    ],
)
def test_what_acts_is_seen(text: str, seen: str) -> None:
    assert shown(text) == seen
    assert one_line(text) == seen


def test_lines_stay_where_there_may_be_some() -> None:
    assert shown("a\n\tb") == "a\n\tb"
    assert one_line("a\n\tb") == r"a\n\tb"
    assert escaped("a\n# b") == r"a\n# b"


@given(ANY)
def test_nothing_that_acts_is_left_and_doing_it_twice_changes_nothing(text: str) -> None:
    kinds = {unicodedata.category(one) for one in one_line(text)}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert shown(shown(text)) == shown(text)
    shown(text).encode("utf-8")


@settings(max_examples=40)
@given(st.recursive(ANY, lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)))
def test_json_stays_the_same_data(data: object) -> None:
    assert json.loads(shown(json.dumps(data, ensure_ascii=False))) == data


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ("k1_first reaches 93.2 % [91.5, 94.6]; p < 0.001", None),
        ("a | b", r"a \| b"),
        (r"a \| b", r"a \\\| b"),
        ("`rm`", r"\`rm\`"),
        ("<img src=x>", r"\<img src=x>"),
        ("<!-- -->", r"\<!-- -->"),
        ("[here](http://x)", r"[here\](http://x)"),
        ("[here]: http://x", r"[here\]: http://x"),
        ("&lt;b&#62;", r"\&lt;b\&#62;"),
        ("**bold**", r"\*\*bold\*\*"),
    ],
)
def test_markdown_reads_none_of_it_as_its_own(text: str, page: str | None) -> None:
    assert escaped(text) == (text if page is None else page)


def test_code_ends_where_it_should() -> None:
    assert in_code("a`b\x1b") == r"a'b\u001b"
