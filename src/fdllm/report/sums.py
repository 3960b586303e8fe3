"""``artifacts/<experiment>/SHA256SUMS``: the copies in git that a written report stands on.

Figures are held to the columns, and these by a hash to their summary; what else a summary or a
timing study says is held by this list, in a clone and whatever the code has become since.
``sha256sum --check`` reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fdllm.record.atomic import write_text
from fdllm.record.paths import COLUMNS, TIMING, Layout
from fdllm.report.recheck import Mismatch, Recheck
from fdllm.report.records import Record

SUMS = "SHA256SUMS"
_ABSENT = "absent"


def write_sums(layout: Layout, experiment: str, records: Iterable[Record]) -> Path:
    """List the copies of some records and of the timing studies beside them."""
    place = layout.artifacts / experiment
    kept = [layout.artifacts / layout.part(record.folder) for record in records]
    files = {folder / name for folder in kept for name in ("summary.json", COLUMNS)}
    files |= {folder.parent / TIMING / "study.json" for folder in kept}
    lines = [f"{_digest(path)}  {path.relative_to(place).as_posix()}\n" for path in sorted(files)]
    write_text(place / SUMS, "".join(line for line in lines if not line.startswith(_ABSENT)))
    return place / SUMS


def check_sums(layout: Layout, experiment: str) -> Recheck:
    """Compare the copies with the list, where a report wrote one."""
    place = layout.artifacts / experiment
    if not (place / SUMS).is_file():
        return Recheck(notes=(f"no {place / SUMS}: fdllm report writes it",))
    lines = (place / SUMS).read_text(encoding="utf-8").splitlines()
    differences = []
    for line in lines:
        written, _, name = line.partition("  ")
        found = _digest(place / name)
        if found != written:
            differences.append(
                Mismatch(f"artifacts/{experiment}/{name}", "SHA-256", written, found)
            )
    return Recheck(0, len(lines), tuple(differences))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else _ABSENT
