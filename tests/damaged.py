"""A checkpoint damaged in one place, and loaded: by hand ``python tests/damaged.py 240 0``.

Each damage is loaded in a process of its own, which is ended where it takes too long. What comes
out is ``loaded``, the line of an error of ours, or what must not be: another exception, a signal,
no end.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

import fdllm
from fdllm import tiny
from fdllm.checkpoint.folder import INDEX, WEIGHTS
from fdllm.errors import FdllmError
from fdllm.record.identity import model_identity
from fdllm.runs import ModelChoice
from hub.lm import Recorder, engine_lm

LONGEST_S = 25.0
LONGEST_LINE = 1200
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+2"}]
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**30, 2**63, 10**4000, "", "x" * 10**6, "\x1b[2J\n", "\ud800",
    "../..", "\0", [], {}, [[]], {"": {}}, ["x"] * 9, float("nan"),
]  # fmt: skip
TEMPLATES = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxx{% endfor %}{% endfor %}",
    "{{ 'x' * 10**11 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ ('x' | center(10**9)) * 9 }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ raise_exception('\x1b[2J\nno ' + 'x' * 9999) }}",
    "{{ 1 / 0 }}",
    "{{ nothing.at.all }}",
    "{{ messages[9].content }}",
    "{{ messages['x' * 9999].content }}",
    "{% if %}",
    "{{ " + "(" * 9999 + ")" * 9999 + " }}",
    "{% include 'x' %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ '\ud800' }}",
    "\x1b[2J{{ 'x' * 99999999 }}",
]


@dataclass(frozen=True)
class Damage:
    """One place of a checkpoint, spoiled."""

    name: str
    spoil: Callable[[Path], None]


def whole(place: Path) -> None:
    """The embedded model's files, and those that published checkpoints have besides."""
    for path in tiny.FOLDER.iterdir():
        shutil.copy(path, place)
    settings = json.loads((place / "tokenizer_config.json").read_text())
    (place / "chat_template.jinja").write_text(settings.pop("chat_template"))
    settings["added_tokens_decoder"] = {"0": {"content": settings["pad_token"], "special": True}}
    write(place / "tokenizer_config.json", settings)
    write(place / "generation_config.json", {"eos_token_id": [1], "temperature": 1.0})
    write(place / "special_tokens_map.json", {"eos_token": {"content": settings["eos_token"]}})
    (place / WEIGHTS).rename(place / "part-1.safetensors")
    names = load_file(place / "part-1.safetensors")
    write(place / INDEX, {"metadata": {}, "weight_map": dict.fromkeys(names, "part-1.safetensors")})


def write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


# --- damages --------------------------------------------------------------------------------------


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def leaves(data: Any) -> list[tuple[Any, Any]]:
    """Each place of a JSON value: what holds it, and its key there."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, part in items:
        found.append((data, key))
        if isinstance(part, (dict, list)):
            found += leaves(part)
    return found


def one_leaf(path: Path, draw: random.Random) -> None:
    """A value of a JSON file becomes another, or its key goes, or becomes another."""
    text = path.read_bytes()
    head = 8 if path.suffix == ".safetensors" else 0
    size = int.from_bytes(text[:8], "little") if head else len(text)
    data, rest = json.loads(text[head : head + size]), text[head + size :] if head else b""
    holder, key = draw.choice(leaves(data))
    what = draw.choice(["value"] * 6 + ["gone", "renamed"])
    old = holder.pop(key) if isinstance(holder, dict) else holder[key]
    if what == "value":
        holder[key] = draw.choice(ODD)
    elif isinstance(holder, dict) and what == "renamed":
        holder[draw.choice([f"{key}\x1b[2J", "x" * 10**5, "", f"{key}{key}"])] = old
    body = json.dumps(data).encode()
    path.write_bytes((len(body).to_bytes(8, "little") if head else b"") + body + rest)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def special(path: Path, draw: random.Random) -> tuple[str, Callable[[Path], object]]:
    """What may stand in a file's place, or be left of it."""
    size = path.stat().st_size
    at = draw.randrange(size)
    text = path.read_bytes()
    kinds: dict[str, Callable[[Path], object]] = {
        "absent": lambda _: None,
        "empty": lambda p: p.write_bytes(b""),
        "zeros": lambda p: p.write_bytes(b"\0" * size),
        "cut": lambda p: p.write_bytes(text[:at]),
        "a byte changed": lambda p: p.write_bytes(
            text[:at] + bytes([text[at] ^ draw.randrange(1, 256)]) + text[at + 1 :]
        ),
        "noise": lambda p: p.write_bytes(draw.randbytes(min(size, 4096))),
        "a pipe": os.mkfifo,
        "a folder": lambda p: p.mkdir(),
        "a link to nothing": lambda p: p.symlink_to("gone"),
        "a link to itself": lambda p: p.symlink_to(p.name),
        "a link to zeros": lambda p: p.symlink_to("/dev/zero"),
        "a terabyte": sparse,
        "deep lists": lambda p: p.write_bytes(b"[" * 10**6),
        "deep tables": lambda p: p.write_bytes(b'{"a":' * 10**6),
        "another value": lambda p: p.write_text(draw.choice(["[]", "7", '"x"', "null", "{}"])),
        "a long header": lambda p: p.write_bytes(b"\xff" * 7 + b"\0" + text[8:]),
        "latin": lambda p: p.write_bytes(b'{"a": "\xe9"}'),
    }
    return draw.choice(list(kinds.items()))


def drawn(place: Path, draw: random.Random) -> Damage:
    """A damage of the checkpoint that lies whole in ``place``."""
    path = draw.choice(sorted(place.iterdir()))
    if path.suffix == ".jinja" and draw.random() < 0.8:
        text = draw.choice(TEMPLATES)
        data = text.encode("utf-8", "surrogatepass")
        return Damage(f"{path.name}: {text[:60]!r}", lambda p: put(p / path.name, data))
    if path.suffix != ".jinja" and draw.random() < 0.6:
        seed = draw.random()
        return Damage(f"{path.name}: leaf {seed}", lambda p: one_leaf(p / path.name, seeded(seed)))
    kind, make = special(path, draw)
    if kind == "a terabyte" and path.suffix == ".safetensors":
        make = os.mkfifo  # weights may be as large, and are hashed whole
    return Damage(f"{path.name}: {kind}", lambda p: replaced(p / path.name, make))


def seeded(seed: float) -> random.Random:
    return random.Random(seed)


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


# --- loading --------------------------------------------------------------------------------------


def use(place: Path) -> str:
    """Whatever a run does with a checkpoint, in short."""
    choice = ModelChoice(name=str(place), device="cpu")
    model_identity(choice)
    model = fdllm.load_model(place, device="cpu")
    lm = engine_lm(Recorder(), tokenizer=model.tokenizer, max_positions=2048)
    prompt = lm.tok_encode(lm.apply_chat_template(CHAT))
    fdllm.generate(model, [prompt[:64] or [3]], fdllm.Decoding(max_new_tokens=8))
    return "loaded"


def tried(place: Path) -> str:
    """How using it ends: the first word says it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = use(place)
        except FdllmError as error:
            text = str(error)
            bad = len(text) > LONGEST_LINE or "\n" in text or "\x1b" in text
            said = f"{'unreadable' if bad else 'refused'} {text[:300]!r}"
        except BaseException as error:  # noqa: BLE001 - any of them is a finding
            said = f"unexpected {type(error).__name__} {str(error)[:300]!r}"
        os.write(theirs, said.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(theirs)
    heard, _, _ = select.select([ours], [], [], LONGEST_S)
    if not heard:
        os.kill(child, signal.SIGKILL)
    said = os.read(ours, 4000).decode() if heard else "endless"
    os.close(ours)
    _, status = os.waitpid(child, 0)
    return said or f"died {status}"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(count: int, seed: int) -> int:
    """Say how each of ``count`` damages ended; 1 where one must not."""
    draw = seeded(seed)
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "whole"
        base.mkdir()
        whole(base)
        say(f"{tried(base)} <- nothing")
        for i in range(count):
            damage = drawn(base, draw)
            place = Path(folder) / str(i)
            shutil.copytree(base, place)
            damage.spoil(place)
            said = tried(place)
            shutil.rmtree(place)
            ends[said.split()[0]] += 1
            say(f"{said} <- {damage.name}")
    say(str(dict(ends)))
    return int(set(ends) - {"loaded", "refused"} != set())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
