"""The command line that runs something inside the image. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PREFIXES = {"apptainer": "APPTAINERENV_", "singularity": "SINGULARITYENV_"}


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
    machine's driver in. Variables go in by the environment, see :func:`prefixes`, as everyone on
    the machine reads command lines.
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


def prefixes(program: str) -> tuple[str, ...]:
    """What is put ahead of a variable's name so that ``program`` hands it in.

    SingularityCE reads its own alone. Apptainer reads both, and complains of the other's; a command
    of another name may be either.
    """
    name = Path(program).name
    return tuple(p for known, p in _PREFIXES.items() if known in name) or (*_PREFIXES.values(),)
