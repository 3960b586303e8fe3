"""Starts the checks of a compute node in a process of its own, in the image if one is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal

from fdllm.caches import OFFLINE, hub_home
from fdllm.cluster.container import container_command
from fdllm.cluster.render import PASSED_ON
from fdllm.doctor.findings import Checkup, Finding, fail
from fdllm.evaluate.hub_errors import without_token

Mode = Literal["check", "fetch"]

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_WORKER = "fdllm.doctor.worker"
_CHECK_S = 900


def ask_node(checkup: Checkup, mode: Mode) -> list[Finding]:
    """Run the worker and read what it found.

    Args:
        checkup: the runs and their place.
        mode: ``check`` looks, offline and without a token; ``fetch`` fills the caches.
    """
    environment = _environment(checkup, mode)
    command = [sys.executable, "-P", "-m", _WORKER, mode]
    if checkup.image is not None:
        command, environment = _inside(checkup, mode, environment)
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, or the container's
            command,
            input=json.dumps(_question(checkup), allow_nan=False),
            env=environment,
            stdout=subprocess.PIPE,
            # Bars of a download are for whoever waits for it.
            stderr=None if mode == "fetch" else subprocess.PIPE,
            text=True,
            timeout=_CHECK_S if mode == "check" else None,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [_no_answer(checkup, type(error).__name__, str(error))]
    try:
        return [Finding.read(one) for one in json.loads(done.stdout)]
    except (ValueError, KeyError, TypeError, AttributeError):
        lines = [line for line in (done.stderr or "").splitlines() if line.strip()]
        last = lines[-1] if lines else "see above" if mode == "fetch" else "no word"
        return [_no_answer(checkup, f"exit code {done.returncode}", last)]


def _question(checkup: Checkup) -> dict[str, Any]:
    layout = checkup.layout
    return {
        "root": str(checkup.root),
        "folders": [str(layout.results), str(layout.artifacts), str(layout.logs)],
        "sweep": checkup.sweep.model_dump(mode="json"),
        "executor": checkup.executor,
        "pins": pinned_versions(checkup),
        "image": checkup.image is not None,
        "source": _source(),
    }


def pinned_versions(checkup: Checkup) -> dict[str, str] | None:
    """Versions of the checkout's ``requirements.lock``, by name; None where it has none."""
    try:
        text = (checkup.root / "requirements.lock").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = [line.split("#")[0].split(";")[0].strip().rstrip("\\") for line in text.splitlines()]
    return {
        name.strip(): version.strip()
        for name, mark, version in (line.partition("==") for line in lines)
        if mark
    }


def _source() -> dict[str, str]:
    from fdllm.record.identity import source_hashes  # noqa: PLC0415 - reads every source file

    return source_hashes()


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
    return environment


def _inside(
    checkup: Checkup, mode: Mode, environment: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """The same worker in the image, which sees what a job's would."""
    assert checkup.image is not None  # noqa: S101 - the caller looked
    command = container_command(
        checkup.image,
        ["python3", "-P", "-m", _WORKER, mode],
        binds=checkup.binds,
        gpu=True,
        environment={},
    )
    # Through the environment, as a job does: a command line is there for everyone to read. Without
    # a token in it there is none to hand in.
    handed = {f"APPTAINERENV_{n}": environment[n] for n in PASSED_ON if environment.get(n)}
    return command, {**environment, **handed}


def _no_answer(checkup: Checkup, how: str, detail: str) -> Finding:
    where = f"in image {checkup.image}" if checkup.image else "in this environment"
    return fail(
        "checks",
        f"the checks of a compute node did not end {where} ({how}: {without_token(detail)})",
        "see whether fdllm is whole there: python -m fdllm.cli status; "
        + ("build the image anew" if checkup.image else "install it again under requirements.lock"),
    )
