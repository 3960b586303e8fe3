"""Where every cell of a table comes from, and what differs between the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fdllm.report.records import Record

_SESSION = ("machine", "host", "device", "dtype", "threads", "python", "platform")
_BY_DESIGN = frozenset({"config", "strategy", "fingerprint", "samples", "finished", "started"})


@dataclass(frozen=True)
class Origin:
    """The provenance of a table."""

    same: dict[str, str]  # facts that every cell shares, by name
    # facts that differ, by name, each with its value by config
    differing: dict[str, dict[str, str]]
    unexpected: tuple[str, ...]  # those of ``differing`` that a grid does not vary by design


def origin(cells: Sequence[Record]) -> Origin:
    """The facts of all cells, sorted into equal and differing ones."""
    facts = {cell.name: _facts(cell) for cell in cells}
    names = list(dict.fromkeys(name for one in facts.values() for name in one))
    same: dict[str, str] = {}
    differing: dict[str, dict[str, str]] = {}
    for name in names:
        values = {config: one.get(name, "unknown") for config, one in facts.items()}
        if len(set(values.values())) == 1:
            same[name] = next(iter(values.values()))
        else:
            differing[name] = values
    unexpected = tuple(name for name in differing if name not in _BY_DESIGN and name != "decoding")
    return Origin(same, differing, unexpected)


def _facts(cell: Record) -> dict[str, str]:
    summary = cell.summary
    provenance = summary.provenance
    sessions = provenance.get("sessions") or [{}]
    last = sessions[-1]
    packages: Mapping[str, Any] = last.get("packages", {})
    fields = summary.fingerprint.fields
    facts = {
        "fingerprint": summary.fingerprint.digest,
        "strategy": summary.strategy.text,
        "decoding": fields.get("decoding") or "unknown",
        "commit": commit(last.get("git")),
        "source": _short(fields.get("source")),
        "experiment code": _short(fields.get("experiment")),
        "model": summary.model,
        "weights": _short(fields.get("model")),
        "revision": fields.get("revision") or "by content",
        "task definition": _short(fields.get("task")),
        "documents": _short(summary.dataset),
        "few-shot seed": fields.get("fewshot_seed") or "unknown",
        "few-shot examples": fields.get("num_fewshot") or "unknown",
        "chat template": fields.get("chat_template") or "unknown",
        "preset": fields.get("preset") or "unknown",
        "asking": fields.get("asking") or "unknown",
    }
    facts |= {name: str(last[name]) for name in _SESSION if last.get(name) is not None}
    facts |= {
        "packages": ", ".join(f"{name} {version}" for name, version in sorted(packages.items())),
        "image": _short(last.get("image_sha256")) if last.get("image_sha256") else "none",
        "SLURM job": str(last.get("slurm_job_id") or "none"),
        "sessions": str(len(sessions)),
        "started": str(sessions[0].get("started", "unknown")),
        "finished": str(provenance.get("finished", "unknown")),
        "samples": _short(summary.files["samples.jsonl"].sha256),
    }
    return facts


def commit(git: Mapping[str, Any] | None) -> str:
    """A session's commit in short, and whether the code differed from it."""
    if not git:
        return "unknown"
    return str(git["commit"])[:10] + (" with changes" if git["dirty"] else "")


def _short(value: str | None) -> str:
    """A hash in short; anything else whole."""
    if value is None:
        return "unknown"
    bare = value.removeprefix("sha256:")
    return bare[:12] if len(bare) == 64 else value  # noqa: PLR2004 - SHA-256 in hexadecimal
