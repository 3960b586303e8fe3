"""JSON as the standard has it: NaN and infinity are in no file, neither written nor read.

Python's own module writes them bare and reads them back, so that a figure that is none would pass
every check that compares what was written with what was computed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from fdllm.errors import FdllmError


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
        ValueError: it is no JSON, or holds NaN or infinity.
    """
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def _odd(data: object, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Numbers that JSON cannot hold, and where they stand."""
    if isinstance(data, float) and not math.isfinite(data):
        yield place, data
    if isinstance(data, (list, tuple)):
        data = dict(enumerate(data))
    for key, part in data.items() if isinstance(data, dict) else ():
        yield from _odd(part, (*place, str(key)))
