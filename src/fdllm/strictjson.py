"""JSON as the standard has it: NaN and infinity are in no file, neither written nor read.

Python's own module writes them bare and reads them back, so that a figure that is none would pass
every check that compares what was written with what was computed. Nor is anything read that two
readers may take differently, or that ends one of them: a key that stands there twice, a number that
no double or 64-bit integer holds, lists inside lists without end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from fdllm.errors import FdllmError

_DEEPEST = 64  # lists and tables inside each other; the harness's files have less than ten


def dumps(data: Any, *, indent: int | None = None) -> str:  # noqa: ANN401 - any JSON value
    """``data`` as text.

    Raises:
        FdllmError: a number is NaN or infinite; it says which.
    """
    try:
        return json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        place, value = next(_odd(data, ()), ((), None))
        if value is None:
            raise
        raise FdllmError(
            f"'{'.'.join(place)}' is {value}, which is no result: nothing is written. Look for "
            "the answers that it was computed from"
        ) from None


def loads(text: str | bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The data of a text.

    Raises:
        ValueError: it is no JSON, or holds what the module's own words exclude.
    """
    try:
        data = json.loads(
            text,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_short,
            object_pairs_hook=_once,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [data]
    for _ in range(_DEEPEST):
        level = [
            part
            for whole in level
            if isinstance(whole, (dict, list))
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return data
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"it is nested more than {_DEEPEST} deep"


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(digits: str) -> float:
    if math.isfinite(value := float(digits)):
        return value
    raise ValueError(f"{digits:.40} is more than a double holds")


def _short(digits: str) -> int:
    if len(digits) <= len(str(-(2**63))) and -(2**63) <= (value := int(digits)) < 2**63:
        return value
    raise ValueError(f"{digits:.40} is more than 64 bits hold")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return table


def _odd(data: object, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Numbers that JSON cannot hold, and where they stand."""
    if isinstance(data, float) and not math.isfinite(data):
        yield place, data
    if isinstance(data, (list, tuple)):
        data = dict(enumerate(data))
    for key, part in data.items() if isinstance(data, dict) else ():
        yield from _odd(part, (*place, str(key)))
