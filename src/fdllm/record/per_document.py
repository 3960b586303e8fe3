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

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # that of typing comes with 3.12

from fdllm import strictjson
from fdllm.outside import OutsideError, parse_json, unpack_xz
from fdllm.record.measure import is_repetitive
from fdllm.spec import first_problem

FROM_JOURNAL = frozenset(
    {"requests", "truncated", "repetitive", "steps", "scored_step", "reused_tokens"}
)
"""Facts of a row that its answers show, and its line of ``samples.jsonl`` does not."""

_TEXTS = ("prompt", "target", "filtered", "programs")
_HASH = 6  # hexadecimal digits, of a document or a prompt
_SECONDS, _NATS = 7, 6  # decimals
MOST = 1 << 30  # bytes of a run's documents
_MOST_COLUMNS = 1 << 28  # the same without texts, unpacked


class _Facts(TypedDict):
    """What every document has; a line of ``samples.jsonl`` and a row here."""

    task: str
    doc_id: int
    doc_hash: str
    prompt_hash: str
    output: str | list[str] | list[float | None]
    metrics: dict[str, Any]
    tokens: int
    seconds: float


class Row(_Facts, total=False):
    """A document; see :func:`rows_of`. There may be more."""

    __pydantic_config__ = ConfigDict(extra="allow", allow_inf_nan=False)  # type: ignore[misc] # read by pydantic

    counts: dict[str, dict[str, int | float]]
    requests: int
    truncated: int
    repetitive: int
    steps: list[list[int]]
    scored_step: list[int | None]
    reused_tokens: list[int]


_ROW = TypeAdapter(Row)


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
        columns = parse_json(unpack_xz(data, most=_MOST_COLUMNS))
    except OutsideError as error:
        raise ValueError(f"it {error.wrong}") from None
    if not isinstance(columns, dict) or not all(isinstance(one, list) for one in columns.values()):
        raise ValueError("it holds no columns")
    lacking = [name for name in _Facts.__annotations__ if name not in (*columns, "metrics")]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    if len({len(one) for one in columns.values()}) != 1:
        raise ValueError("its columns differ in length")
    return [
        checked(_nested(dict(zip(columns, values, strict=True))), f"row {number}: ")
        for number, values in enumerate(zip(*columns.values(), strict=True))
    ]


def checked(row: Any, where: str = "") -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """A row, or a line of ``samples.jsonl``, with whatever every document has.

    Raises:
        ValueError: it lacks some of that, or has it otherwise; ``where`` stands ahead.
    """
    try:
        return dict(_ROW.validate_python(row, strict=True))
    except ValidationError as error:
        raise ValueError(where + first_problem(error)) from None


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
            if value is not None and (not isinstance(value, list) or len(value) != len(names)):
                raise ValueError(f"its counts of {phase} are not {len(names)} numbers")
            count = {} if value is None else dict(zip(names, value, strict=True))
            row.setdefault(table, {})[phase] = count
        else:
            row[name] = value
    return row
