"""Which image a process runs in, and an image's hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from fdllm.errors import FdllmError
from fdllm.record.atomic import write_text

SHA256 = "FDLLM_IMAGE_SHA256"
"""Variable by which whoever starts a container tells it its image's hash."""


def image_digest(image: Path) -> str:
    """SHA-256 of an image file, hexadecimal.

    It is kept beside the image, as ``<image>.sha256``, under the size and the time of change it
    was computed for; where that folder cannot be written it is computed each time.

    Raises:
        FdllmError: the image cannot be read.
    """
    try:
        status = image.stat()
        state = f"{status.st_size} {status.st_mtime_ns}"
        kept = image.with_name(f"{image.name}.sha256")
        known = _kept(kept)
        if known and known[1:] == state.split():
            return known[0]
        with image.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FdllmError(
            f"the image {image} cannot be read ({error.strerror}); an image is a file that "
            "'nox -s container' builds"
        ) from None
    if os.access(image.parent, os.W_OK):
        write_text(kept, f"{digest} {state}\n")
    return digest


def own_image_digest(environment: Mapping[str, str] = os.environ) -> str | None:
    """Hash of the image that this process runs in; None outside of one.

    Raises:
        FdllmError: it runs in one whose file it does not see, and was not told the hash.
    """
    told = environment.get(SHA256)
    image = environment.get("APPTAINER_CONTAINER") or environment.get("SINGULARITY_CONTAINER")
    if told or not image:
        return told or None
    if not Path(image).is_file():
        raise FdllmError(
            f"a record made in an image names the image's hash, and {image} is not visible from "
            f"inside it; add '--bind {Path(image).parent}', or '--env {SHA256}=' with what "
            f"'sha256sum {image}' prints"
        )
    return image_digest(Path(image))


def _kept(path: Path) -> list[str] | None:
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return None
    return words if len(words) == 3 and len(words[0]) == 64 else None  # noqa: PLR2004
