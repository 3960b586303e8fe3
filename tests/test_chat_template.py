"""Chat templates, which are programs: what they make, and what ends them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fdllm.checkpoint.chat_template import Renderer, render_chat
from fdllm.errors import FdllmError
from hub.checkpoint import CHAT_TEMPLATE, byte_tokenizer

CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "u {{ 1 }}"}]
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def small() -> Iterator[Renderer]:
    """Of little patience and room."""
    renderer = Renderer(cpu_s=1, memory_mb=64, longest=1 << 16)
    yield renderer
    renderer.close()


def rendered(template: str, renderer: Renderer | None = None) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return render_chat(tokenizer, "m", CHAT, add_generation_prompt=True, renderer=renderer)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{{ eos_token }}{{ messages | tojson }}\n  {% if true %}\n x\n{% endif %}",
        "{%- for m in messages %}{% if loop.last %}{{ m.content | trim }}{% endif %}{% endfor %}  ",
    ],
)
def test_a_prompt_is_what_transformers_makes(template: str, *, begins: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    theirs = tokenizer.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=begins, continue_final_message=not begins
    )
    assert render_chat(tokenizer, "m", CHAT, add_generation_prompt=begins) == theirs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "why"),
    [
        (LOOP, "more than 1 s of processor time"),
        ("{{ 'x' * 10**11 }}", "more than 64 MiB"),
        ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "more than 64 MiB"),
        ("{{ 'x' * 99999 }}", "more than 64 KiB of text"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}", "maximum recursion depth"),
        ("{{ raise_exception('\x1b[2J' + 'x' * 999) }}", r"\?\[2Jx{200}"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{% if %}", "Expected an expression"),
        ("{{ " + "(" * 9999 + " }}", "maximum recursion depth"),
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
    ],
)
def test_a_template_that_is_no_good_is_one_line(template: str, why: str, small: Renderer) -> None:
    with pytest.raises(FdllmError, match=f"of model 'm' refuses .* system, user: .*{why}") as told:
        rendered(template, small)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 500
    assert rendered("{{ messages[1].content }}", small) == "u {{ 1 }}"  # the next one is well


@pytest.mark.slow
def test_a_template_that_waits_is_ended_by_the_clock() -> None:
    renderer = Renderer(cpu_s=600, wall_s=0.2)
    with pytest.raises(FdllmError, match=r"takes more than 0.2 s; run without"):
        rendered(LOOP, renderer)


@pytest.mark.slow
def test_a_process_that_does_not_start_is_not_the_templates_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fdllm.checkpoint.rendering.__file__", "/nowhere")
    with pytest.raises(FdllmError, match="that renders chat templates did not start"):
        rendered(CHAT_TEMPLATE, Renderer())


def test_no_template_is_the_default_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"a": "x", "b": "y"}
    with pytest.raises(FdllmError, match="refuses messages .*with no default specified"):
        render_chat(tokenizer, "m", CHAT, add_generation_prompt=True)
