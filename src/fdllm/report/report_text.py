"""What a report says in words of a table: its sentence, and what to know ahead of its figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fdllm.report.build import TablePage
from fdllm.report.compare_text import points
from fdllm.report.times import shown


@dataclass(frozen=True)
class Notice:
    """Something a reader must know before the figures."""

    text: str  # a sentence
    kind: str = ""  # ``good``, ``bad`` or empty


def notices(table: TablePage, overlap: str | None) -> list[Notice]:
    """Too few rows, edited criteria, A/A check, identical cells, collapsed ones, overlaps."""
    found = [Notice(f"! {text}.", "bad") for text in (table.undecidable, table.lock) if text]
    found += [
        Notice(f"{one.mark} {one.text}.", "good" if one.kind == "twins" else "bad")
        for one in table.findings
    ]
    collapsed = [f"{n} ({'; '.join(a.collapsed)})" for n, a in table.against.items() if a.collapsed]
    if collapsed:
        text = f"Collapsed, so that their time is no merit: {', '.join(collapsed)}."
        found.append(Notice(text, "bad"))
    ended = {cell.name for cell in table.cells if cell.decided}  # which the table says
    told = [
        one
        for one in table.against.values()
        if not (one.same_computation or one.identical or {one.a, one.b} & ended)
    ]
    notes = dict.fromkeys(note for one in told for note in one.notes)
    found += [Notice(f"{note[:1].upper()}{note[1:]}.") for note in notes]
    if overlap:
        found.append(Notice(f"{overlap[:1].upper()}{overlap[1:]}."))
    if table.kind == "generate" and any(cell.repetition is None for cell in table.cells):
        found.append(
            Notice("Some journals are not here: repetition and unmasking cannot be shown for them.")
        )
    return found


def summary_sentence(table: TablePage) -> str:
    """The table in one sentence: accuracy held or lost, and the least time that is claimed."""
    base = table.base
    if base is None:
        return "No cell without reuse is done, so nothing can be compared yet."
    found = f"{base.name} reaches {100 * base.accuracy:.1f} % on {base.num_samples} documents"
    others = [one for one in table.against.values() if not one.same_computation]
    if not others:
        return f"{found}; no other computation stands beside it; {_time(table)}."
    number = Counter[str](one.verdict for one in others)
    parts = (
        ("same-or-better", "hold that"), ("worse", "lose some"),
        ("cannot-tell", "cannot be told from it"),
    )  # fmt: skip
    held = ", ".join(f"{number[verdict]} {word}" for verdict, word in parts if number[verdict])
    return f"{found}; of {len(others)} other configs {held}; {_time(table)}."


def _time(table: TablePage) -> str:
    """What is claimed of the times."""
    if not table.times.pairs:
        return table.times.sentence
    timed = [one for one in table.against.values() if one.speed is not None and not one.collapsed]
    faster = [(one, one.speed) for one in timed if one.speed and one.speed.claim == "faster"]
    if faster:
        best, speed = min(faster, key=lambda pair: pair[1].ratio.value)
        return (
            f"the fastest, {best.b}, takes {shown(speed.ratio)} of {best.a}'s time at "
            f"{points(best.difference.value)} ({table.times.reach})"
        )
    return f"none is shown to be faster ({table.times.reach})"
