"""Records as pandas data frames: ``fdllm.results(...)`` and ``fdllm.samples(...)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fdllm import strictjson
from fdllm.errors import UsageError, did_you_mean
from fdllm.record.measure import CountsByPhase, total
from fdllm.record.paths import Layout, TaskFolder, find_root
from fdllm.report.records import Record, load_records

_IDENTITY = {
    "experiment": "str",
    "task": "str",
    "config": "str",
    "limit": "Int64",
    "preset": "str",
    "model": "str",
}
_COST = ("flops", "weight_bytes", "kv_bytes", "stored_bytes")
RESULT_COLUMNS: Mapping[str, str] = {
    **_IDENTITY,
    "k": "int64",
    "subset": "str",
    "n_layers": "int64",
    "layers": "str",
    "strategy": "str",
    "kind": "str",
    "estimator": "str",
    "metric": "str",
    "value": "float64",
    "num_samples": "int64",
    "num_correct": "Int64",
    "num_requests": "int64",
    "seconds": "float64",
    "tokens": "Int64",
    "tokens_per_second": "float64",
    "tokens_per_forward": "float64",
    "scored_tokens": "Int64",
    "scored_tokens_per_second": "float64",
    "requests_per_second": "float64",
    "latency_p50_s": "float64",
    "latency_p95_s": "float64",
    "forwards": "int64",
    "computed": "int64",
    "reused": "int64",
    "trimmed": "float64",
    "saved_share": "float64",
    **dict.fromkeys(_COST, "Int64"),
    "truncation_rate": "float64",
    "repetition_rate": "float64",
    "peak_memory_bytes": "int64",
    "machine": "str",
    "fingerprint": "str",
    "finished": "datetime64[s, UTC]",
    "folder": "str",
}
"""Columns of :func:`results` and their types. Numbers that may be absent are ``Int64``, or
``float64`` with NaN."""

SAMPLE_COLUMNS: Mapping[str, str] = {
    **_IDENTITY,
    "subtask": "str",
    "doc_id": "int64",
    "doc_hash": "str",
    "prompt_hash": "str",
    "prompt": "str",
    "target": "object",
    "output": "object",
    "value": "float64",
    "tokens": "int64",
    "forwards": "int64",
    "computed": "int64",
    "reused": "int64",
    **dict.fromkeys(_COST, "Int64"),
    "seconds": "float64",
    "finish": "str",
    "subject": "str",
}
"""Columns of :func:`samples` and their types. ``output`` is a text, or the log-likelihoods of the
choices; it, ``prompt`` and ``target`` are None where there is only git's copy of a run. ``value``
is the headline metric. The task's other metrics follow under the harness's names, as ``float64``
where they are numbers."""


def results(
    experiment: str | None = None,
    task: str | None = None,
    root: str | Path | None = None,
    *,
    limit: int | None = None,
    preset: str | None = None,
    model: str | None = None,
    pool: bool = False,
) -> pd.DataFrame:
    """Finished runs, one row a cell; columns are :data:`RESULT_COLUMNS`.

    Rows of one task are of one experiment, limit, preset and model, so that a mean over a config's
    rows is that config's.

    Args:
        experiment: folder under ``experiments/``; None is the only one with records.
        task: only this one; None is all of them.
        root: the checkout, an exported release, or a folder of records; None finds the checkout.
        limit: runs cut to this many documents; None is those that were not cut.
        preset: runs under this preset; None is the experiments' own protocol.
        model: runs of this model, as the column names it; None is each task's only one.
        pool: what is None above chooses nothing; columns tell apart what there is.

    Raises:
        UsageError: there is no such folder, no such record in it, or more than one experiment or
            model where one is asked for.
        FdllmError: a record is broken.
    """
    chosen = {"limit": limit, "preset": preset, "model": model}
    rows = [_result(cell) for cell in _cells(experiment, task, root, chosen, pool=pool)]
    return _frame(rows, RESULT_COLUMNS)


def samples(
    experiment: str | None = None,
    task: str | None = None,
    root: str | Path | None = None,
    *,
    limit: int | None = None,
    preset: str | None = None,
    model: str | None = None,
    config: str | None = None,
    pool: bool = False,
) -> pd.DataFrame:
    """Documents of finished runs, one row a sample; columns are :data:`SAMPLE_COLUMNS`, and more.

    Arguments are those of :func:`results`, and ``config``: only this cell; None is all of them.

    Raises:
        UsageError: as :func:`results`, or there is no such config.
        FdllmError: a record is broken.
    """
    chosen = {"limit": limit, "preset": preset, "model": model}
    cells = _cells(experiment, task, root, chosen, pool=pool)
    names = list(dict.fromkeys(cell.name for cell in cells))
    if config is not None:
        _check("record of config", config, names, "there are")
        cells = [cell for cell in cells if cell.name == config]
    rows = [row for cell in cells for row in _samples(cell)]
    metrics = dict.fromkeys(name for row in rows for name in row if name not in SAMPLE_COLUMNS)
    types = {name: "float64" if _numbers(rows, name) else "object" for name in metrics}
    return _frame(rows, {**SAMPLE_COLUMNS, **types})


def _frame(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> pd.DataFrame:
    """One column for each name, of its type, also where there is no row."""
    return pd.DataFrame(
        {
            name: pd.Series([row.get(name) for row in rows], dtype=kind)
            for name, kind in types.items()
        }
    )


def _cells(
    experiment: str | None,
    task: str | None,
    root: str | Path | None,
    chosen: Mapping[str, Any],
    *,
    pool: bool,
) -> list[Record]:
    layout = _layout(root)
    roots = (layout.results, layout.artifacts)
    found = (path for place in roots for path in place.glob("*/*/*/summary.json"))
    known = sorted({path.parents[2].name for path in found})
    if experiment is not None:
        _check("records of experiment", experiment, known, f"{layout.results} has")
    names = known if experiment is None else [experiment]
    if len(names) > 1 and not pool:
        raise _several("experiment", names, f"{layout.results} has")
    cells = [cell for name in names for cell in load_records(layout, name)]
    if task is not None:
        _check("records of task", task, sorted({cell.task for cell in cells}), "there are")
        cells = [cell for cell in cells if cell.task == task]
    for name, wanted in chosen.items():
        if wanted is not None or not (pool or name == "model"):
            cells = _of(cells, name, wanted)
    for one in () if pool else dict.fromkeys(cell.task for cell in cells):
        models = list(dict.fromkeys(_facet(cell, "model") for cell in cells if cell.task == one))
        if len(models) > 1:
            raise _several("model", models, f"records of {one} are of")
    return cells


def _of(cells: list[Record], name: str, wanted: str | int | None) -> list[Record]:
    """The records with this limit, preset or model; where there are others only, they are named."""
    kept = [cell for cell in cells if _facet(cell, name) == wanted]
    if cells and not kept:
        what = f"without a {name}" if wanted is None else f"of {name} '{wanted}'"
        there = sorted({f"{name}={_facet(cell, name)!r}" for cell in cells})
        raise UsageError(f"no records {what}; there are those of {', '.join(there)}")
    return kept


def _facet(cell: Record, name: str) -> str | int | None:
    """A record's limit, preset or model, as they are asked for."""
    place = TaskFolder.parse(cell.folder.parent.name) if name == "preset" else None
    value: str | int | None = getattr(cell.summary if place is None else place, name)
    return value


def _several(name: str, found: Sequence[Any], there: str) -> UsageError:
    return UsageError(
        f"{there} {len(found)} {name}s ({', '.join(map(str, found))}): choose one with {name}=..., "
        f"or have all of them with pool=True; the column {name} tells them apart"
    )


def _check(what: str, name: str, known: Sequence[str], there: str) -> None:
    if name not in known:
        near = did_you_mean(name, known)
        raise UsageError(f"no {what} '{name}'{near}; {there} {', '.join(known) or 'none'}")


def _layout(root: str | Path | None) -> Layout:
    """Where the records lie.

    Raises:
        UsageError: there is no such folder.
    """
    place = find_root() if root is None else Path(root).expanduser()
    whole = Layout.of(place)
    if whole.results.is_dir() or (place / "experiments").is_dir():
        return whole
    if root is None or not place.is_dir():
        raise UsageError(
            f"no records in {place}; sweep first, or name the checkout, a release or a folder of "
            "records as root"
        )
    return Layout.of(place, place)


def _result(cell: Record) -> dict[str, Any]:
    summary = cell.summary
    parts = (
        summary,
        summary.headline,
        summary.throughput,
        summary.layer_calls,
        summary.strategy,
        summary.quality,
    )
    fields = {name: value for part in parts for name, value in dict(part or {}).items()}
    return fields | {
        "preset": summary.preset_words,
        "layers": " ".join(map(str, summary.strategy.layers)),
        "strategy": summary.strategy.text,
        "forwards": sum(count["forwards"] for count in summary.counts.values()),
        **_cost(summary.counts),
        "peak_memory_bytes": summary.peak_memory.bytes,
        "machine": " then ".join(summary.machines),
        "fingerprint": summary.fingerprint.digest,
        "finished": pd.Timestamp(summary.provenance["finished"]),
        "folder": str(cell.folder),
    }


def _samples(cell: Record) -> Iterator[dict[str, Any]]:
    for key, figures in cell.by_key.items():
        sample = cell.texts.get(key, figures | {"output": None})
        counts = sample["counts"].values()
        metrics = {
            name: float(value) if isinstance(value, (bool, int, float)) else strictjson.dumps(value)
            for name, value in sample["metrics"].items()
        }
        yield {
            **metrics,
            **{name: sample.get(name) for name in SAMPLE_COLUMNS if name not in _IDENTITY},
            **{n: getattr(cell.summary, n) for n in _IDENTITY if n != "preset"},
            "preset": cell.summary.preset_words,
            "subtask": sample["task"],
            "value": cell.value(sample),
            "forwards": sum(count["forwards"] for count in counts),
            "computed": sum(count["computed"] for count in counts),
            "reused": sum(count["reused"] for count in counts),
            **_cost(sample["counts"]),
        }


def _cost(counts: CountsByPhase) -> dict[str, int | None]:
    """Work and traffic, all phases; None where a record is older than its counter."""
    return {
        name: int(total(counts, name)) if any(name in one for one in counts.values()) else None
        for name in _COST
    }


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(isinstance(row.get(name, 0.0), float) for row in rows)
