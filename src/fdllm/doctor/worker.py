"""``python -m fdllm.doctor.worker check|fetch``: what only the node's environment can tell.

A :class:`~fdllm.doctor.findings.Checkup` as JSON on standard input, findings as JSON on standard
output, and nothing else there. ``check`` runs offline; ``fetch`` fills the caches by doing what the
runs will do. torch and the harness come in as late as possible: where one is missing, that is a
finding.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial

from fdllm.doctor.checks_model import check_device, check_model, fetch_model
from fdllm.doctor.checks_node import check_task, fetch_task, folders, source, versions
from fdllm.doctor.findings import CHECKUP, FINDINGS, Checker, Checkup, run_checks


def main() -> int:
    """Read the question, answer it; the exit code says only whether there is an answer."""
    checkup = CHECKUP.validate_json(sys.stdin.buffer.read())
    # Libraries print what they like; the answer has a channel of its own.
    with os.fdopen(os.dup(1), "wb") as out, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        out.write(FINDINGS.dump_json(run_checks(checks(sys.argv[1], checkup), checkup)))
    return 0


def checks(mode: str, checkup: Checkup) -> dict[str, Checker]:
    """What is looked for and tried on a node, or fetched, by the name of what breaks."""
    tasks = checkup.sweep.tasks
    if mode == "fetch":
        fetched = {f"task {name}": partial(fetch_task, name) for name in tasks}
        return {"model": fetch_model, **fetched}
    return {
        "versions": versions,
        "source": source,
        "folders": folders,
        "GPU": check_device,
        "model": check_model,
        **{f"task {name}": partial(check_task, name) for name in tasks},
    }


if __name__ == "__main__":
    sys.exit(main())
