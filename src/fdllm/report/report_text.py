"""What a report says in words about a table: its summary, and what to know ahead of its figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fdllm.report.build import TablePage
from fdllm.report.speed import agreement_sentence


@dataclass(frozen=True)
class Notice:
    """Something a reader must know before the figures."""

    text: str  # a sentence
    kind: str = ""  # ``good``, ``bad`` or empty


def notices(table: TablePage, overlap: str | None) -> list[Notice]:
    """A/A check, identical cells, overlapping subsets, speed without accuracy."""
    found = [Notice(f"{one.mark} {one.text}.", "bad") for one in table.findings]
    if table.floor is None:
        text = "No two cells here are one computation, so the noise of the speeds is unknown and "
        found.append(Notice(text + "no speed-up is claimed."))
    elif not any(one.kind == "twins-differ" for one in table.findings):
        text = agreement_sentence(table.floor.names, "every output", table.floor)
        # Equal outputs are good news; speeds that far apart are none.
        found.append(Notice(f"✓ {text}.", "good" if table.floor.odd is None else ""))
    collapsed = [f"{n} ({'; '.join(a.collapsed)})" for n, a in table.against.items() if a.collapsed]
    if collapsed:
        text = f"Collapsed, so that their speed is no merit: {', '.join(collapsed)}."
        found.append(Notice(text, "bad"))
    if overlap:
        found.append(Notice(f"{overlap[:1].upper()}{overlap[1:]}."))
    if table.kind == "generate" and any(cell.repetition is None for cell in table.cells):
        found.append(
            Notice("Some journals are not here: repetition and unmasking cannot be shown for them.")
        )
    return found


def summary_sentence(table: TablePage) -> str:
    """The table in two sentences."""
    reusing = [(cell, table.against.get(cell.name)) for cell in table.cells if cell.reuses]
    if not reusing:
        speeds = [cell.speed for cell in table.cells]
        best = max(table.cells, key=lambda cell: cell.accuracy)
        return (
            f"nothing is reused here. Accuracy is at best {100 * best.accuracy:.1f} % "
            f"({best.name}), speed {min(speeds):.1f} to {max(speeds):.1f} {table.unit}."
        )
    if table.base is None:
        return "no cell without reuse is done, so nothing can be compared yet."
    verdicts = Counter(a.verdict for _, a in reusing if a is not None)
    held, worse = verdicts["same-or-better"], verdicts["worse"]
    text = (
        f"{table.baseline} reaches {100 * table.base.accuracy:.1f} % at "
        f"{table.base.speed:.1f} {table.unit}. Of {len(reusing)} configs that reuse, {held} "
        f"hold its accuracy, {worse} lose some, {len(reusing) - held - worse} cannot be told."
    )
    timed = [
        (a.speed, cell)
        for cell, a in reusing
        if a is not None and a.speed is not None and not a.collapsed
    ]
    if not timed:
        return f"{text} None of them is worth a word on speed."
    speed, cell = max(timed, key=lambda one: one[0].ratio.value)
    rest = "" if len(timed) == len(reusing) else " that did not collapse"
    said = (
        f"is not shown to be faster ({speed.ratio.value:.2f} times the speed)"
        if speed.claim == "none"
        else f"takes {100 / speed.ratio.value:.0f} % of the time"
    )
    saved = f"{100 * cell.saved_share:.0f} % of its layer calls saved"
    made = f"it makes {cell.made / table.base.made:.2f} times {table.baseline}'s"
    return f"{text} The fastest{rest}, {cell.name}, {said}, with {saved}; {made}."
