"""RO-Crate metadata of a release, by its library: what each file is and which run made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from fdllm.record.summary import Summary

_FORMATS = {
    ".cff": "application/yaml",
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".py": "text/x-python",
    ".toml": "application/toml",
    ".xz": "application/x-xz",
}
_MEANINGS = {
    "CITATION.cff": "how to cite the software",
    "README.md": "what this release holds and how to check it",
    "SHA256SUMS": "SHA-256 of every other file",
    "columns.json.xz": "what every figure is computed from: a column a fact, a row a document",
    "requirements.lock": "exact versions of every dependency",
    "results.json": "the evaluation harness's results",
    "samples.jsonl": "one line a document: prompt, output, metrics, cost",
    "summary.json": "the record of a run: figures, counters, guards, fingerprint, provenance",
}
_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"


def write_metadata(
    folder: Path,
    names: Sequence[str],
    runs: Mapping[str, Summary],
    *,
    title: str,
    description: str,
    version: str,
) -> None:
    """Write ``ro-crate-metadata.json`` into a release.

    ``names`` are its other files, relative and with forward slashes; ``runs`` its summaries by the
    relative folder of their record.
    """
    crate = ROCrate()
    crate.name, crate.description = title, description
    crate.license = "https://spdx.org/licenses/Apache-2.0"
    crate.keywords = ["diffusion language models", "layer reuse", "evaluation"]
    crate.root_dataset["conformsTo"] = _add(
        crate, _PROFILE, "CreativeWork", name="Process Run Crate"
    )
    files = {
        name: crate.add_file(folder / name, name, properties=_about(folder, name)) for name in names
    }
    software = _add(crate, "#fdllm", "SoftwareApplication", name="fdllm", version=version)
    for place, summary in runs.items():
        actions = _add(
            crate,
            f"#{place}",
            "CreateAction",
            name=f"{summary.experiment} / {summary.task} / {summary.config}",
            instrument=software,
            object=[file for name, file in files.items() if name.startswith("experiments/")],
            result=[file for name, file in files.items() if name.startswith(f"{place}/")],
            description=f"{summary.headline.metric} = {summary.headline.value:.6g} on "
            f"{summary.headline.num_samples} documents; {summary.strategy.text}",
            **_times(summary),
        )
        crate.root_dataset.append_to("mentions", actions)
    crate.metadata.write(folder)


def _add(crate: ROCrate, identifier: str, kind: str, **properties: Any) -> ContextEntity:  # noqa: ANN401
    entity = ContextEntity(crate, identifier, properties={"@type": kind})
    crate.add(entity)
    for key, value in properties.items():
        entity[key] = value
    return entity


def _about(folder: Path, name: str) -> dict[str, Any]:
    path = PurePosixPath(name)
    about: dict[str, Any] = {
        "name": name,
        "contentSize": str((folder / name).stat().st_size),
        "encodingFormat": _FORMATS.get(path.suffix, "text/plain"),
    }
    if path.name in _MEANINGS:
        about["description"] = _MEANINGS[path.name]
    return about


def _times(summary: Summary) -> dict[str, str]:
    sessions = summary.provenance.get("sessions", [])
    times = {"endTime": summary.provenance.get("finished")}
    times["startTime"] = sessions[0].get("started") if sessions else None
    return {name: str(value) for name, value in times.items() if value}
