"""From messages to a prompt, by a checkpoint's chat template, which may be anything. No torch.

A template is a program: it may loop, or make more text than there is memory. ``transformers``
renders it, inside jinja's sandbox, which keeps it from files but not from that; so it is done in a
process (:mod:`fdllm.checkpoint.rendering`) that is ended where it takes too much.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdllm.checkpoint import rendering
from fdllm.errors import FdllmError, first_line

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]
_LONGEST_WORD = 300  # characters of what a template says
_START_S = 300.0  # a busy machine, and libraries on a slow disk


@dataclass(eq=False)
class Renderer:
    """Renders templates one after the other, each within limits, in one process while that lives.

    Attributes:
        cpu_s: processor time that one prompt may take; the limit that decides.
        wall_s: the same by the clock.
        memory_mb: what rendering may hold.
        longest: bytes of a prompt.
    """

    cpu_s: int = 5
    wall_s: float = 60.0
    memory_mb: int = 512
    longest: int = 16 << 20
    _channel: Any = field(default=None, init=False)
    _process: Any = field(default=None, init=False)
    _end: Any = field(default=None, init=False)

    def render(self, asked: dict[str, Any]) -> dict[str, str]:
        """``text``, or ``error``: why there is none.

        Args:
            asked: arguments of ``render_jinja_template``.

        Raises:
            FdllmError: the process does not start; that is not the template's fault.
        """
        if self._process is None:
            self._start()
        try:
            self._channel.send_bytes(json.dumps(asked, allow_nan=False).encode())
            if not self._channel.poll(self.wall_s):
                return {"error": self._ended(f"it takes more than {self.wall_s:g} s")}
            return json.loads(self._channel.recv_bytes(self.longest))  # type: ignore[no-any-return]
        except EOFError:
            return {"error": self._ended(f"it takes more than {self.cpu_s} s of processor time")}
        except OSError:
            return {"error": self._ended(f"it makes more than {self.longest >> 10} KiB of text")}

    def _start(self) -> None:
        self._channel, theirs = Pipe()
        limits = (theirs.fileno(), self.cpu_s, self.memory_mb)
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
            [sys.executable, "-P", str(Path(rendering.__file__)), *map(str, limits)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"USE_TORCH": "0"},  # seconds to load, and not needed
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self._channel)
        try:
            if self._channel.poll(_START_S) and self._channel.recv_bytes():
                return
        except EOFError:
            pass
        raise FdllmError(
            f"the process that renders chat templates did not start "
            f"({self._ended('no answer')}); try again, or run without a chat template"
        )

    def close(self) -> None:
        """End the process; the next prompt starts another."""
        if self._process is not None:
            self._end()
            self._process = None

    def _ended(self, why: str) -> str:
        """End the process; why, or what ended it before."""
        code = self._process.poll()
        self.close()
        if code is None or code == -signal.SIGXCPU:
            return why
        return f"its process ended by {signal.Signals(-code).name}" if code < 0 else why


@cache
def _shared() -> Renderer:
    """The process takes a second to start, and does for all templates."""
    return Renderer()


def _end(process: subprocess.Popen[bytes], channel: Connection) -> None:
    channel.close()
    process.kill()
    process.wait()


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    messages: Messages,
    *,
    add_generation_prompt: bool,
    renderer: Renderer | None = None,
) -> str:
    """The prompt that a tokenizer's chat template makes of messages.

    Args:
        tokenizer: whose template.
        name: the model's, for errors.
        messages: each a ``role`` and its ``content``.
        add_generation_prompt: whether an answer begins behind them; else the last one goes on.
        renderer: with limits of its own.

    Raises:
        FdllmError: the template refuses them, fails, or takes too much. Dropping a message that it
            refuses would drop the task's description, so it is not done.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several, and none is the default one
        answer = {"error": str(error)}
    else:
        asked = {
            "conversations": [list(messages)],
            "chat_template": template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        answer = (renderer or _shared()).render(tokenizer.special_tokens_map | asked)
    if "text" in answer:
        return answer["text"]
    roles = ", ".join(message["role"] for message in messages)
    why = first_line(answer["error"])[:_LONGEST_WORD]
    raise FdllmError(
        f"the chat template of model '{name}' refuses messages of roles {roles}: "
        f"{''.join(c if c.isprintable() else '?' for c in why)}; run without a chat template"
    )
