"""The artifact appendix that ACM's and USENIX's evaluations ask for, from claims and records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fdllm.plain import escaped, one_line
from fdllm.record.identity import installed
from fdllm.report.records import Record
from fdllm.reproduce.found import TaskFigures
from fdllm.reproduce.reproduction import CheckedFigure, FiguresOf, command


def appendix(
    form: str,
    claims: Sequence[CheckedFigure],
    places: Sequence[tuple[str, str]],
    figures: FiguresOf,
    model: str,
) -> str:
    """The appendix as Markdown, in the ``acm`` or the ``usenix`` form.

    ``places`` are the experiments and tasks that are computed for the claims.
    """
    of = [figures(*place) for place in places]
    names = {place: f"E{number}" for number, place in enumerate(places, 1)}
    texts = list(dict.fromkeys(one.claim for one in claims))
    by_text = {text: [one for one in claims if one.claim == text] for text in texts}
    claim_of = {text: f"C{number}" for number, text in enumerate(texts, 1)}
    records = [record for one in of for record in one.records.values()]
    experiments = [
        {
            "name": names[place],
            "experiment": escaped(place[0]),
            "task": escaped(place[1]),
            "command": command(*place, model),
            "results": f"fdllm reproduce --from-records --experiment {place[0]}",
            "hours": f"{_seconds(one) / 3600:.2f}",
            "disk": f"{_bytes(one) / 1e6:.1f}",
            "claims": [
                claim_of[text]
                for text, those in by_text.items()
                if place in {(claim.experiment, claim.task) for claim in those}
            ],
        }
        for place, one in zip(places, of, strict=True)
    ]
    values: dict[str, Any] = {
        "experiments": experiments,
        "claims": [
            {
                "name": claim_of[text],
                "text": escaped(text),
                "by": list(dict.fromkeys(names[one.experiment, one.task] for one in those)),
                "told": _told(those),
            }
            for text, those in by_text.items()
        ],
        "rows": [
            {
                "name": names[one.experiment, one.task],
                "of": escaped(one.of),
                "figure": escaped(one.figure),
                "words": escaped(one.words),
                "tolerance": f"{one.tolerance:g}",
                "verdict": one.verdict,
            }
            for one in claims
        ],
        "figures": len(claims),
        "told": f"Here: {_told(claims)}.",
        "hours": f"{sum(map(_seconds, of)) / 3600:.1f}",
        "disk": f"{sum(map(_bytes, of)) / 1e6:.0f}",
        "machines": _each(name for record in records for name in record.summary.machines),
        "versions": _each(map(_versions, records)),
        "commits": _each(map(_commit, records)),
        "tasks": _each(task for _, task in places),
        "model": escaped(model),
        "version": installed("fdllm", "of a checkout"),
    }
    templates = Environment(  # noqa: S701 - Markdown
        loader=PackageLoader("fdllm.reproduce", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(f"{form}.md.j2").render(values).strip()


def _told(claims: Iterable[CheckedFigure]) -> str:
    return ", ".join(f"{n} {word}" for word, n in Counter(c.verdict for c in claims).most_common())


def _each(names: Iterable[str]) -> str:
    return ", ".join(escaped(one_line(one)) for one in dict.fromkeys(names)) or "no record yet"


def _seconds(of: TaskFigures) -> float:
    """Model time of its records and its study, where they were computed."""
    records = of.records.values()
    study = of.study if records else None
    return sum(one.summary.throughput.seconds for one in records) + (study.seconds if study else 0)


def _bytes(of: TaskFigures) -> int:
    folders: set[Path] = {record.folder for record in of.records.values()}
    return sum(file.stat().st_size for one in folders for file in one.rglob("*") if file.is_file())


def _session(record: Record) -> dict[str, Any]:
    sessions: list[dict[str, Any]] = record.summary.provenance.get("sessions") or [{}]
    return sessions[-1]


def _versions(record: Record) -> str:
    packages: dict[str, str] = _session(record).get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in packages.items()) or "unknown"


def _commit(record: Record) -> str:
    git = _session(record).get("git") or {}
    return str(git.get("commit") or "unknown")[:10]
