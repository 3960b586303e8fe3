"""The program in a reply. No torch, no harness, and nothing is parsed as Python or run here.

A model without a chat template continues the prompt: its text is the function's body. A chat model
answers: with a fenced block, with the whole function, with prose around either. Both forms stand
beside each other; which one a run takes goes by whether a chat template wraps its prompts.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
Replies = Sequence[Sequence[str]]

# A fence that names a language and ends its line opens a block, whatever is open already.
_FENCE = re.compile(r"```(?:([\w+#.-]+)[ \t]*(?=\n|\Z))?")
_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")


def fenced_blocks(reply: str) -> list[str]:
    """What stands between fences, in order; a last block may lack its closing fence."""
    blocks, opened = [], None
    for fence in _FENCE.finditer(reply):
        if opened is not None:
            blocks.append(reply[opened : fence.start()])
        opened = fence.end() if opened is None or fence[1] else None
    if opened is not None:
        blocks.append(reply[opened:])
    return [block.lstrip(" \t").removeprefix("\n") for block in blocks if block.strip()]


def program_of(reply: str, doc: Document) -> str:
    """The program that a reply answers a document with.

    The last fenced block that defines the function; else a block, or a text ahead of all blocks,
    that is the function's body; else the whole reply. It stands behind the document's own code
    (its imports and helpers), where there is some.

    Args:
        reply: what the model wrote.
        doc: humaneval's (``prompt``, ``entry_point``) or mbpp's (``test_list``).
    """
    ahead, names = _code_ahead(doc), _functions(doc)
    blocks = fenced_blocks(reply)
    defines = re.compile(
        rf"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+(?:{names})\b|(?:{names})[ \t]*=)", re.MULTILINE
    )
    for block in reversed(blocks):
        if defines.search(block):
            return ahead + textwrap.dedent(block)
    if not blocks:
        return ahead + reply
    bodies = [text for text in (reply.partition("```")[0], *blocks) if _is_indented(text)]
    if bodies or not ahead:
        return ahead + (bodies or blocks)[0]
    return ahead + textwrap.indent(blocks[0], "    ")


def completed(replies: Replies, docs: Sequence[Document]) -> list[list[str]]:
    """The programs of texts that continue their prompts: the harness's ``build_predictions``."""
    return [
        [_code_ahead(doc) + reply for reply in row] for row, doc in zip(replies, docs, strict=True)
    ]


def answered(replies: Replies, docs: Sequence[Document]) -> list[list[str]]:
    """The programs of a chat model's replies."""
    return [
        [program_of(reply, doc) for reply in row] for row, doc in zip(replies, docs, strict=True)
    ]


def begun(replies: Replies, docs: Sequence[Document]) -> list[list[str]]:
    """The programs of replies to a prompt that ends in an open fence (``*_instruct``)."""
    return answered([["```python\n" + reply for reply in row] for row in replies], docs)


def _code_ahead(doc: Document) -> str:
    """Code that a document's prompt consists of; mbpp's prompts are prose."""
    return str(doc["prompt"]) if "entry_point" in doc else ""


def _functions(doc: Document) -> str:
    """The names of the functions that a document's tests call, as a pattern."""
    if "entry_point" in doc:
        return re.escape(str(doc["entry_point"]))
    return "|".join(sorted(set(_CALLED.findall("\n".join(doc["test_list"])))))


def _is_indented(text: str) -> bool:
    return text.strip() != "" and text.lstrip("\n")[:1] in (" ", "\t")
