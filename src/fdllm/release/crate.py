"""RO-Crate metadata of a release, by its library: what each file is and which run made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rocrate.model.computationalworkflow import ComputationalWorkflow
from rocrate.model.contextentity import ContextEntity
from rocrate.model.file import File
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
# Workflow Run Crate and what it stands on, https://w3id.org/ro/wfrun/workflow/0.5
_PROCESS = ("https://w3id.org/ro/wfrun/process/0.5", "Process Run Crate")
_WORKFLOW = ("https://w3id.org/ro/wfrun/workflow/0.5", "Workflow Run Crate")
_WORKFLOW_CRATE = ("https://w3id.org/workflowhub/workflow-ro-crate/1.0", "Workflow RO-Crate")
_PARAMETER = "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"
_INPUTS = ("task", "config", "model")


def write_metadata(
    folder: Path,
    names: Sequence[str],
    runs: Mapping[str, Summary],
    *,
    experiment: str,
    title: str,
    description: str,
    version: str,
) -> None:
    """Write ``ro-crate-metadata.json`` into a release.

    ``names`` are its other files, relative and with forward slashes; ``runs`` its summaries by the
    relative folder of their record; ``experiment`` is the one that is released, whose
    ``experiment.toml`` is the workflow.
    """
    crate = ROCrate(version="1.1")  # what the three profiles stand on
    crate.name, crate.description = title, description
    crate.license = "https://spdx.org/licenses/Apache-2.0"
    crate.keywords = ["diffusion language models", "layer reuse", "evaluation"]
    software = _add(crate, "#fdllm", "SoftwareApplication", name="fdllm", version=version)
    language = _add(crate, "#experiment", "ComputerLanguage", name="experiment.toml of fdllm")
    inputs = {
        name: _add(
            crate,
            f"#input-{name}",
            "FormalParameter",
            name=name,
            additionalType="Text",
            valueRequired=True,
            conformsTo={"@id": _PARAMETER},
        )
        for name in _INPUTS
    }
    workflows = {
        f"experiments/{one}/experiment.toml" for one in {s.experiment for s in runs.values()}
    }
    files: dict[str, File] = {}
    for name in names:
        kind = ComputationalWorkflow if name in workflows else File
        file = files[name] = crate.add(
            kind(crate, folder / name, name, properties=_about(folder, name))
        )
        if name in workflows:
            file["programmingLanguage"] = language
            file["softwareRequirements"] = software
            file["input"] = list(inputs.values())
    profiles = [_PROCESS]
    if main := files.get(f"experiments/{experiment}/experiment.toml"):
        crate.mainEntity = main
        profiles += [_WORKFLOW, _WORKFLOW_CRATE]
        crate.metadata.append_to("conformsTo", {"@id": _WORKFLOW_CRATE[0]})
    crate.root_dataset["conformsTo"] = [
        _add(crate, address, "CreativeWork", name=name, version=address.rpartition("/")[2])
        for address, name in profiles
    ]
    for place, summary in runs.items():
        actions = _add(
            crate,
            f"#{place}",
            "CreateAction",
            name=f"{summary.experiment} / {summary.task} / {summary.config}",
            instrument=files.get(f"experiments/{summary.experiment}/experiment.toml", software),
            object=[
                *(file for name, file in files.items() if name.startswith("experiments/")),
                *_values(crate, place, summary, inputs),
            ],
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


def _values(
    crate: ROCrate, place: str, summary: Summary, inputs: Mapping[str, ContextEntity]
) -> list[ContextEntity]:
    """What this run was given for the workflow's inputs."""
    given = {"task": summary.task, "config": summary.config, "model": summary.model}
    return [
        _add(
            crate,
            f"#{place}/{name}",
            "PropertyValue",
            name=name,
            value=given[name],
            exampleOfWork=entity,
        )
        for name, entity in inputs.items()
    ]


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
