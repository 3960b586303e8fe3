"""Starts the checks of a compute node in a process of its own, in the image if one is named."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Literal

from fdllm.caches import OFFLINE, TOKENS, hub_home
from fdllm.cluster.render import PASSED_ON, container_command, prefixes
from fdllm.doctor.findings import CHECKUP, FINDINGS, Checkup, Finding, fail
from fdllm.evaluate.hub_errors import hub_token, without_token
from fdllm.record.identity import source_hashes

Mode = Literal["check", "fetch"]

_WORKER = "fdllm.doctor.worker"
_CHECK_S = 900


def ask_node(checkup: Checkup, mode: Mode) -> list[Finding]:
    """What the worker finds.

    ``check`` looks, offline and without a token; ``fetch`` fills the caches.
    """
    environment = _environment(checkup, mode)
    command = [sys.executable, "-P", "-m", _WORKER, mode]
    if checkup.image is not None:  # the same worker, which sees what a job's would
        command = container_command(
            checkup.image,
            ["python3", "-P", "-m", _WORKER, mode],
            binds=checkup.binds,
            gpu=True,
            program=checkup.apptainer,
        )
        # Through the environment, as a job does: a command line is there for everyone to read.
        # Without a token in it there is none to hand in.
        environment |= {
            f"{prefix}{name}": environment[name]
            for prefix in prefixes(checkup.apptainer)
            for name in PASSED_ON
            if environment.get(name)
        }
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, or the container's
            command,
            input=CHECKUP.dump_json(replace(checkup, source=source_hashes())),
            env=environment,
            stdout=subprocess.PIPE,
            # Bars of a download are for whoever waits for it.
            stderr=None if mode == "fetch" else subprocess.PIPE,
            timeout=_CHECK_S if mode == "check" else None,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [_no_answer(checkup, type(error).__name__, str(error))]
    try:
        return FINDINGS.validate_json(done.stdout)
    except ValueError:
        said = (done.stderr or b"").decode(errors="replace")
        lines = [line for line in said.splitlines() if line.strip()]
        last = lines[-1] if lines else "see above" if mode == "fetch" else "no word"
        return [_no_answer(checkup, f"exit code {done.returncode}", last)]


def _environment(checkup: Checkup, mode: Mode) -> dict[str, str]:
    environment = dict(os.environ)
    environment["FDLLM_ROOT"] = str(checkup.root)
    if checkup.hf_home is not None:
        environment["HF_HOME"] = str(checkup.hf_home)
    elif checkup.image is not None and not environment.get("HF_HOME"):
        # The client's default lies in the home folder, which an image does not see.
        environment["HF_HOME"] = str(hub_home())
    if mode == "check":
        environment |= dict.fromkeys(OFFLINE, "1")
        for name in TOKENS:
            for prefix in ("", "APPTAINERENV_", "SINGULARITYENV_"):
                environment.pop(prefix + name, None)
        # The client also looks for a token's file; there is none on this path.
        environment["HF_TOKEN_PATH"] = os.devnull
    elif (token := hub_token()) is not None:
        # Of a login too, whose file lies in a home folder: HF_HOME may be another one there.
        environment["HF_TOKEN"] = token
    return environment


def _no_answer(checkup: Checkup, how: str, detail: str) -> Finding:
    where = f"in image {checkup.image}" if checkup.image else "in this environment"
    return fail(
        "checks",
        f"the checks of a compute node did not end {where} ({how}: {without_token(detail)})",
        "see whether fdllm is whole there: python -m fdllm.cli status; "
        + ("build the image anew" if checkup.image else "install it again under requirements.lock"),
    )
