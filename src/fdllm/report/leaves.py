"""Two JSON documents, value by value: what is written, and what it is computed from gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Figure = tuple[str, str, Any, Any]
"""File, place in it, what is written, and what follows from elsewhere."""

JsonPlace = tuple[str | int, ...]
"""Keys of tables and places in lists, from the document down."""

ABSENT = "absent"
_CLOSE = 1e-9


def walk(value: Any, place: JsonPlace = ()) -> Iterator[tuple[JsonPlace, Any]]:  # noqa: ANN401 - any JSON
    """Every value of a JSON document, itself, tables and lists among them, and where it stands."""
    yield place, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, (*place, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from walk(item, (*place, index))


def is_single(value: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether nothing stands below it."""
    return not (isinstance(value, dict | list | tuple) and value)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any JSON
    """The single values of a JSON document, by path; list items with a name go by it."""
    names: dict[JsonPlace, str] = {(): name}
    for place, one in walk(value):
        if place:
            above, key = names[place[:-1]], place[-1]
            names[place] = f"{above}.{key}" if above else str(key)
            if isinstance(key, int):
                names[place] = f"{above}[{_called(one, key)}]"
        if is_single(one):
            yield names[place], one


def _called(item: Any, index: int) -> object:  # noqa: ANN401 - any JSON
    named = item if isinstance(item, dict) else {}
    return named.get("folder") or named.get("name") or named.get("config") or index


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
