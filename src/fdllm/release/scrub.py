"""Nothing of the machine or its user leaves with a release: scrubbed where it can be, else refused.

``samples.jsonl`` and ``results.json`` are bound to their summary by a hash, so they are never
changed; what must not leave them is an error.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fdllm.errors import FdllmError
from fdllm.record.paths import model_slug

_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,})"
)
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_SHORTEST_SECRET = 8
_PRIVATE = ("host", "slurm_job_id")


def scrub_summary(data: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without the names of machines and folders.

    A model that is a folder keeps its last name with a hash; its content stands in the
    fingerprint. Nothing that identifies the run is touched.
    """
    provenance = dict(data.get("provenance", {}))
    sessions = provenance.get("sessions", [])
    provenance["sessions"] = [scrub_session(session) for session in sessions]
    model = str(data["model"])
    is_folder = Path(model).expanduser().is_absolute() or model.startswith(".")
    return {
        **data,
        "model": model_slug(model) if is_folder else model,
        "provenance": provenance,
    }


def scrub_session(session: Mapping[str, Any]) -> dict[str, Any]:
    """Who computed, without the facts that name a machine rather than its kind."""
    return {name: value for name, value in session.items() if name not in _PRIVATE}


def places(*more: Path) -> tuple[str, ...]:
    """Folders of this machine that no file may name."""
    found = {Path.home(), Path(sys.prefix), Path.cwd(), Path(tempfile.gettempdir()), *more}
    whole = {str(path) for path in found} | {str(path.resolve()) for path in found}
    return tuple(sorted(place for place in whole if len(Path(place).parts) > 1))


def check_texts(
    texts: Iterable[tuple[str, str]], forbidden: Iterable[str], *, allow_places: bool
) -> None:
    """Look through every text of a release, by its name and content.

    A model may write by itself what names a forbidden folder: such places can be allowed.

    Raises:
        FdllmError: a token or a folder of this machine is in one of them. The message says where,
            never what.
    """
    secrets = [
        value for name in _SECRETS if len(value := os.environ.get(name, "")) >= _SHORTEST_SECRET
    ]
    inside = [re.compile(r"(?<![\w.-])" + re.escape(place) + r"(?![\w.-])") for place in forbidden]
    for name, text in texts:
        token = _TOKEN.search(text)
        at = (
            token.start()
            if token
            else min((text.find(s) for s in secrets if s in text), default=-1)
        )
        if at >= 0:
            raise FdllmError(
                f"not exported: {name}, line {_line(text, at)}, holds something shaped like an "
                "access token; revoke it, then remove it where it comes from"
            )
        found = next((match for pattern in inside if (match := pattern.search(text))), None)
        if found is not None and not allow_places:
            raise FdllmError(
                f"not exported: {name}, line {_line(text, found.start())}, names a folder of this "
                f"machine ({found.group()}); if it is part of a sample and harmless, --allow places"
            )


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
