"""``python -m fdllm.doctor.worker check|fetch``: what only the node's environment can tell.

A :class:`~fdllm.doctor.findings.Checkup` as JSON on standard input, findings as JSON on standard
output, and nothing else there. ``check`` runs offline; ``fetch`` fills the caches by doing what the
runs will do. torch and the harness come in as late as possible: where one is missing, that is a
finding.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from fdllm.doctor.checks_model import check_device, check_model, fetch_model
from fdllm.doctor.checks_tasks import check_task, fetch_task
from fdllm.doctor.findings import Finding, fail, ok, warn
from fdllm.errors import FdllmError, first_line
from fdllm.evaluate.hub_errors import without_token
from fdllm.record.identity import source_hashes
from fdllm.runs import Sweep

_SHOWN = 3


def main() -> int:
    """Read the question, answer it; the exit code says only whether there is an answer."""
    question = json.load(sys.stdin)
    # Libraries print what they like; the answer has a channel of its own.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        findings = check(question) if sys.argv[1] == "check" else fetch(question)
        json.dump([finding.as_dict() for finding in findings], out, allow_nan=False)
    return 0


def check(question: Mapping[str, Any]) -> list[Finding]:
    """Everything that a node needs, looked for and tried."""
    sweep = Sweep.read(question["sweep"], "sweep")
    found = guarded("versions", lambda: _versions(question["pins"]))
    found += guarded("source", lambda: _source(question["source"], image=question["image"]))
    found += [_writable(Path(folder)) for folder in question["folders"]]
    found += guarded("GPU", lambda: check_device(sweep.model, question["executor"]))
    found += guarded("model", lambda: [check_model(sweep.model)])
    for name in sweep.tasks:
        found += guarded(f"task {name}", partial(check_task, name, sweep))
    return found


def fetch(question: Mapping[str, Any]) -> list[Finding]:
    """Fill the caches; what failed is a finding, and the rest goes on."""
    sweep = Sweep.read(question["sweep"], "sweep")
    found = guarded("model", lambda: [fetch_model(sweep.model)])
    for name in sweep.tasks:
        sys.stderr.write(f"task {name}: fetching what it needs\n")
        found += guarded(f"task {name}", partial(fetch_task, name, sweep))
    return found


def guarded(name: str, work: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check finds; that it broke down is a finding too."""
    try:
        return work()
    except FdllmError as error:
        found, _, remedy = str(error).partition("; ")
        return [fail(name, found, remedy or "mend that, then try again")]
    except Exception as error:  # noqa: BLE001 - a missing library, a damaged file: say which
        said = first_line(error, "no message")
        return [
            fail(
                name,
                f"{type(error).__name__}: {without_token(said)}",
                "install fdllm again under requirements.lock (nox, or a fresh image), then see "
                "whether this check passes",
            )
        ]


def _versions(pins: Mapping[str, str] | None) -> list[Finding]:
    if pins is None:
        return [
            warn(
                "versions",
                "the checkout has no requirements.lock to compare with",
                "run from a whole checkout, or set FDLLM_ROOT to one",
            )
        ]
    wrong = []
    for name, pinned in pins.items():
        try:
            # A local label (+cpu) is the kind of machine, not another release.
            here = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            here = "not installed"
        if here != pinned.partition("+")[0]:
            wrong.append(f"{name} {here} (locked: {pinned})")
    if not wrong:
        return [ok("versions", f"all {len(pins)} packages are at the locked version")]
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return [
        fail(
            "versions",
            ", ".join(wrong[:_SHOWN]) + more,
            "pip install -c requirements.lock -e . in this environment, or build the image anew",
        )
    ]


def _source(checkout: Mapping[str, str], *, image: bool) -> list[Finding]:
    here = source_hashes()
    differ = sorted(n for n in {*here, *checkout} if here.get(n) != checkout.get(n))
    if not differ:
        return [ok("source", f"the checkout's, {len(here)} files")]
    more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
    what = "the image was built from" if image else "this interpreter imports"
    return [
        fail(
            "source",
            f"{what} other code than the checkout's: {', '.join(differ[:_SHOWN])}{more} differ, so "
            "its records would read stale here",
            "build the image from this checkout (nox -s container), or check out its commit"
            if image
            else "start the command from the environment of this checkout",
        )
    ]


def _writable(folder: Path) -> Finding:
    """Try it: permissions, quotas and read-only binds all show only then."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    name = f"folder {folder.name}"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0" * 4096)
    except OSError as error:
        return fail(
            name,
            f"{place} cannot be written to ({error.strerror})",
            "make it writable, bind it into the image, or choose another folder with --results",
        )
    return ok(name, f"{folder} can be written to")


if __name__ == "__main__":
    sys.exit(main())
