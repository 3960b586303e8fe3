"""``fdllm export``: records that stand by themselves, to be checked on another machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fdllm.errors import UsageError
from fdllm.plan import CellState, Planner
from fdllm.record.atomic import explained
from fdllm.record.summary import Summary
from fdllm.release.choose import Allowance, Chosen, choose
from fdllm.release.crate import write_metadata
from fdllm.release.scrub import check_texts, places, scrub_summary

_RECORD = ("samples.jsonl", "results.json")
_HOUSE = ("requirements.lock", "CITATION.cff", "LICENSE")
_PAGES = (".py", ".toml", ".md", ".html")
_SUMS = "SHA256SUMS"
_METADATA = "ro-crate-metadata.json"


@dataclass(frozen=True)
class Release:
    """A folder that was written.

    Attributes:
        folder: where.
        num_cells: records in it.
        remarks: what it lacks, and what was taken as it is.
    """

    folder: Path
    num_cells: int
    remarks: tuple[str, ...]


def export(
    planner: Planner,
    experiment: str,
    tables: Sequence[Sequence[CellState]],
    out: Path,
    *,
    version: str,
    reports: Iterable[Path] = (),
    allowed: frozenset[Allowance] = frozenset(),
) -> Release:
    """Write a release.

    Args:
        planner: knows the checkout and the records.
        experiment: whose.
        tables: its cells by task, limit and model.
        out: the folder to make; it must not exist, or be empty.
        version: of this package.
        reports: report files that lie outside the experiment's folder.
        allowed: defects to take as they are.

    Raises:
        UsageError: the folder is in use.
        FdllmError: cells are stale, invalid or mixed and nobody asked for them; a file holds a
            token or names a folder of this machine; or the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already; name another folder with --out, or move it away")
    chosen = choose(tables, allowed)
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        try:
            remarks = _fill(
                draft, planner, experiment, chosen, reports=tuple(reports), version=version
            )
            forbidden = places(planner.root, planner.layout.results, out.parent)
            check_texts(_texts(draft), forbidden, allow_places="places" in allowed)
            draft.chmod(0o755)
            if out.exists():
                out.rmdir()
            draft.rename(out)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return Release(out, len(chosen.records), remarks)


def _fill(
    draft: Path,
    planner: Planner,
    experiment: str,
    chosen: Chosen,
    *,
    reports: Sequence[Path],
    version: str,
) -> tuple[str, ...]:
    runs = {}
    for cell, _ in chosen.records:
        place = Path("results") / cell.paths.folder.relative_to(planner.layout.results)
        runs[place.as_posix()] = _copy_record(cell, draft / place)
    _copy_experiment(planner.experiment(experiment).folder, draft / "experiments" / experiment)
    for path in reports:
        _copy(path, draft / "report" / path.name)
    absent = []
    for name in _HOUSE:
        if (planner.root / name).is_file():
            _copy(planner.root / name, draft / name)
        else:
            absent.append(f"{name} is missing: it is not in the checkout")
    images = image_hashes(runs.values())
    if images:
        (draft / "image.sha256").write_text("".join(f"{one}\n" for one in images), encoding="utf-8")
    remarks = (*chosen.remarks, *absent)
    _write(draft / "README.md", readme(experiment, runs, remarks, version))
    write_metadata(
        draft,
        sorted(_names(draft)),
        runs,
        title=f"fdllm {experiment}: records",
        description=f"{len(runs)} finished runs of {experiment}, sample by sample, with the code, "
        "settings and versions behind them",
        version=version,
    )
    sums = [f"{_sha256(draft / name)}  {name}\n" for name in sorted(_names(draft))]
    _write(draft / _SUMS, "".join(sums))
    return remarks


def _copy_record(cell: CellState, target: Path) -> Summary:
    """A record, scrubbed; the files that its hashes cover stay as they are."""
    for name in _RECORD:
        if (cell.paths.folder / name).is_file():
            _copy(cell.paths.folder / name, target / name)
    scrubbed = scrub_summary(json.loads(cell.paths.summary.read_text(encoding="utf-8")))
    _write(target / "summary.json", json.dumps(scrubbed, indent=2, ensure_ascii=False) + "\n")
    return Summary(**scrubbed)


def _copy_experiment(source: Path, target: Path) -> None:
    """Code, settings and pages: what somebody needs to run it again."""
    for path in sorted(source.rglob("*")):
        hidden = any(part.startswith((".", "__")) for part in path.relative_to(source).parts)
        if path.is_file() and path.suffix in _PAGES and not hidden:
            _copy(path, target / path.relative_to(source))


def image_hashes(summaries: Iterable[Summary]) -> list[str]:
    """SHA-256 of the container images that computed some records."""
    found = {
        str(session["image_sha256"])
        for summary in summaries
        for session in summary.provenance.get("sessions", [])
        if session.get("image_sha256")
    }
    return sorted(found)


def readme(experiment: str, runs: dict[str, Summary], remarks: Sequence[str], version: str) -> str:
    """What the release holds, and how to check it."""
    lines = [
        f"# Records of {experiment}",
        "",
        f"Written by `fdllm export` ({version}). Every run has its figures and counters in",
        "`summary.json`, one line a document in `samples.jsonl`, and the harness's own results in",
        "`results.json`. `ro-crate-metadata.json` describes the files to machines.",
        "",
        "## Check it",
        "",
        "```bash",
        f"sha256sum -c {_SUMS}                                       # every file is as it was",
        "pip install -c requirements.lock fdllm",
        f"FDLLM_ROOT=$PWD fdllm report --check --experiment {experiment}  # every figure again",
        "python -c 'import fdllm; print(fdllm.results(root=\".\"))'    # as a data frame",
        "```",
        "",
        "## Runs",
        "",
        "| task | limit | model | config | metric | value | documents | fingerprint |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.task} | {s.limit or 'all'} | {s.model} | {s.config} | {s.headline.metric} | "
        f"{s.headline.value:.4f} | {s.headline.num_samples} | {s.fingerprint.digest} |"
        for s in runs.values()
    ]
    if remarks:
        lines += ["", "## Mind", "", *(f"- {remark}" for remark in remarks)]
    return "\n".join(lines) + "\n"


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in files]


def _texts(folder: Path) -> Iterable[tuple[str, str]]:
    for name in sorted(_names(folder)):
        yield name, (folder / name).read_text(encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
