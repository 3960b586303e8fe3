"""Two JSON documents, value by value: what is written, and what it is computed from gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Figure = tuple[str, str, Any, Any]
"""File, place in it, what is written, and what follows from elsewhere."""

ABSENT = "absent"
_CLOSE = 1e-9


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any JSON
    """The single values of a JSON document, by path; list items with a name go by it."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            label = index
            if isinstance(item, dict):
                label = item.get("folder") or item.get("name") or item.get("config") or index
            yield from leaves(item, f"{name}[{label}]")
    else:
        yield name, value


def compared(file: str, written: Any, found: Any, name: str = "") -> Iterator[Figure]:  # noqa: ANN401
    """Every value of either document beside that of the other."""
    then, now = dict(leaves(written, name)), dict(leaves(found, name))
    for place in {**then, **now}:
        yield file, place, then.get(place, ABSENT), now.get(place, ABSENT)


def same(written: Any, found: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Whether two figures are one; but for counts, sums in another order may differ at the end."""
    kinds = {type(written), type(found)}
    if float in kinds and kinds <= {int, float}:
        return math.isclose(written, found, rel_tol=_CLOSE, abs_tol=_CLOSE)
    if bool in kinds and kinds != {bool}:
        return False
    return bool(written == found)
