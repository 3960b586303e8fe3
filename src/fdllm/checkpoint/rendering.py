"""Render chat templates: the script of a process that :mod:`fdllm.checkpoint.chat_template` starts.

It renders as ``transformers`` does, by its own function. What a template takes of processor time
and memory ends this process, and not the run.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path


def main(channel: int, cpu_s: int, memory_mb: int) -> None:
    """Answer each request, arguments of ``render_jinja_template``, with a text or an error."""
    # What ends the run ends this process too, by its closed pipe, and not before the run is done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415

    connection = Connection(channel)
    with contextlib.suppress(OSError):  # only Linux says what is held already
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + (memory_mb << 20))
    connection.send_bytes(b"ready")
    while True:
        asked = json.loads(connection.recv_bytes())
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_s)
        try:
            answer = _text("text", render_jinja_template(**asked)[0][0])
        except MemoryError:
            answer = _text("error", f"it takes more than {memory_mb} MiB")
        except Exception as error:  # noqa: BLE001 - whatever a template does
            answer = _text("error", str(error)[:300] or type(error).__name__)
        connection.send_bytes(answer)


def _text(kind: str, text: str) -> bytes:
    return json.dumps({kind: text}, allow_nan=False).encode()


def _limit(kind: int, value: int) -> None:
    most = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):  # nobody asks any more
        main(*map(int, sys.argv[1:]))
