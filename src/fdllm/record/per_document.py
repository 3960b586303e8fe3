"""``columns.json.xz``: what every figure of a run is computed from, a row a document.

It holds numbers and hashes, no texts, so that it is small enough for git: a clone computes every
published figure anew. ``samples.jsonl`` and the journal, which it is made from, stay where the run
was. ``pandas.read_json`` opens it.
"""

from __future__ import annotations

import hashlib
import lzma
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fdllm import strictjson
from fdllm.record.measure import is_repetitive

FROM_JOURNAL = frozenset(
    {"requests", "truncated", "repetitive", "steps", "scored_step", "reused_tokens"}
)
"""Facts of a row that its answers show, and its line of ``samples.jsonl`` does not."""

_TEXTS = ("prompt", "target", "filtered", "programs")
_HASH = 6  # hexadecimal digits, of a document or a prompt
_SECONDS, _NATS = 7, 6  # decimals
_NEEDED = ("task", "doc_id", "doc_hash", "prompt_hash", "output", "tokens", "seconds")


def digest_of_answer(output: str | float | Sequence[str | float | None]) -> str:
    """Sixteen hexadecimal digits of an answer: of its text, or of which choice is likeliest.

    Args:
        output: a text or several, or the choices' log-likelihoods; a sample's ``output``.
    """
    given: Sequence[Any] = output if isinstance(output, list | tuple) else [output]
    if all(isinstance(one, str) for one in given):
        text = "\0".join(map(str, given))
    else:
        scores = [-math.inf if one is None else float(one) for one in given]
        text = str(max(range(len(scores)), key=scores.__getitem__))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def rows_of(
    samples: Sequence[Mapping[str, Any]], entries: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row a document.

    Args:
        samples: lines of ``samples.jsonl``.
        entries: the answers to their requests, from the journal.

    Returns:
        The samples without their texts and with what only the answers show. ``output`` is the
        text's digest, or the log-likelihoods of the choices (to 1e-6 nats); ``seconds`` are
        rounded to 1e-7, hashes to 6 digits. From the answers: ``requests``, how many there were;
        of texts how many were ``truncated`` and ``repetitive`` and by answer the ``steps`` (tokens
        that each unmasked); of scores, by choice, the ``scored_step`` and the ``reused_tokens``.
    """
    answers: defaultdict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        answers[entry["task"], entry["doc_id"]].append(entry)
    return [_row(sample, answers[sample["task"], sample["doc_id"]]) for sample in samples]


def _row(sample: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row = {name: value for name, value in sample.items() if name not in _TEXTS}
    row |= {name: sample[name][:_HASH] for name in ("doc_hash", "prompt_hash")}
    row |= {"output": _output(sample["output"]), "seconds": round(sample["seconds"], _SECONDS)}
    if not answers:
        return row
    answers = sorted(answers, key=lambda one: one["index"])  # they come as they are ready
    row["requests"] = len(answers)
    if answers[0]["kind"] == "generate":
        return row | {
            "truncated": sum(one["finish"] == "length" for one in answers),
            "repetitive": sum(is_repetitive(one["tokens"]) for one in answers),
            "steps": [one["steps"] for one in answers],
        }
    return row | {name: [one[name] for one in answers] for name in ("scored_step", "reused_tokens")}


def _output(said: Any) -> Any:  # noqa: ANN401 - a text, texts, or scores
    texts = isinstance(said, str) or all(isinstance(one, str) for one in said)
    return digest_of_answer(said) if texts else [round(one, _NATS) for one in said]


def pack(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The file's content; the same rows give the same bytes.

    A fact that only some rows have is None in the others. The counts of a phase are one column,
    whose name lists them: ``counts.denoise forwards computed …``.
    """
    flat = [_flat(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    columns = {name: [row.get(name) for row in flat] for name in names}
    text = ",\n".join(
        f"{strictjson.dumps(name)}: {strictjson.dumps(values)}" for name, values in columns.items()
    )
    return lzma.compress(f"{{{text}}}\n".encode("utf-8", "surrogatepass"), preset=9)


def unpack(data: bytes) -> list[dict[str, Any]]:
    """The rows behind :func:`pack`.

    Raises:
        ValueError: these are not the columns of a run.
    """
    try:
        columns = strictjson.loads(lzma.decompress(data))
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from None
    if not isinstance(columns, dict) or not all(isinstance(one, list) for one in columns.values()):
        raise ValueError("it holds no columns")
    lacking = [name for name in _NEEDED if name not in columns]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    if len({len(one) for one in columns.values()}) != 1:
        raise ValueError("its columns differ in length")
    return [
        _nested(dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row by column: each metric has one, and each phase, whose counts repeat as a whole."""
    flat = {name: value for name, value in row.items() if name not in ("metrics", "counts")}
    flat |= {f"metrics.{name}": value for name, value in row["metrics"].items()}
    for phase, count in row.get("counts", {}).items():
        flat[" ".join((f"counts.{phase}", *count))] = [*count.values()]
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"metrics": {}}
    for name, value in flat.items():
        table, _, rest = name.partition(".")
        if table == "metrics":
            row[table][rest] = value
        elif table == "counts":
            phase, *names = rest.split(" ")
            count = {} if value is None else dict(zip(names, value, strict=True))
            row.setdefault(table, {})[phase] = count
        else:
            row[name] = value
    return row
