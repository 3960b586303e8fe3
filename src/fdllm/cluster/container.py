"""The command line that runs something inside the image. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def container_command(
    image: Path,
    argv: Sequence[str],
    *,
    binds: Sequence[str],
    gpu: bool,
    program: str = "apptainer",
) -> list[str]:
    """What starts ``argv`` inside an image, which sees only what it is given.

    ``binds`` are ``/folder`` or ``/folder:/inside[:ro]``, each visible inside; ``gpu`` brings the
    machine's driver in. Variables go in as ``APPTAINERENV_<NAME>`` of the environment, as everyone
    on the machine reads command lines.
    """
    return [
        program,
        "exec",
        *(["--nv"] if gpu else []),
        "--cleanenv",
        "--no-home",
        *(part for bind in binds for part in ("--bind", bind)),
        str(image),
        *argv,
    ]
