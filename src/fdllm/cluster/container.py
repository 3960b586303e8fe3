"""The command line that runs something inside the image. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fdllm.errors import UsageError

_SECRET = ("TOKEN", "SECRET", "PASSWORD")


def container_command(
    image: Path,
    argv: Sequence[str],
    *,
    binds: Sequence[str],
    gpu: bool,
    environment: Mapping[str, str],
    program: str = "apptainer",
) -> list[str]:
    """What starts ``argv`` inside an image, which sees only what it is given.

    Args:
        image: the image file.
        argv: program of the image, and its arguments.
        binds: ``/folder`` or ``/folder:/inside[:ro]``, each visible inside.
        gpu: bring the machine's driver in.
        environment: variables inside. No secret may be among them, as everyone on the machine
            reads command lines: ``APPTAINERENV_<NAME>`` of the environment is for those.
        program: the command that runs images.

    Raises:
        UsageError: nothing to run, a secret, or a value that the command cannot express.
    """
    if not argv:
        raise UsageError("nothing to run in the image; name a command, such as 'fdllm status'")
    for name, value in environment.items():
        if any(word in name.upper() for word in _SECRET):
            raise UsageError(f"{name} may not stand in a command line; export APPTAINERENV_{name}")
        if any(character in value for character in ',"\n'):
            raise UsageError(
                f"{name}={value!r} cannot be handed into an image: --env splits at a comma, a "
                f"quote or a line's end; export APPTAINERENV_{name} instead"
            )
    return [
        program,
        "exec",
        *(["--nv"] if gpu else []),
        "--cleanenv",
        "--no-home",
        *(part for bind in binds for part in ("--bind", bind)),
        *(part for pair in environment.items() for part in ("--env", "=".join(pair))),
        str(image),
        *argv,
    ]
