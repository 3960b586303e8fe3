"""Where files are kept between processes, each asked of whoever owns it. No torch."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from fdllm.errors import FdllmError
from fdllm.outside import AbsentError, read_bytes

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""What keeps the Hub's client and the libraries on top of it from asking for anything."""

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Where the Hub's client looks for a token, ahead of the file that ``hf auth login`` writes."""
_TOKEN = re.compile(rb"[!-~]*")  # what a header can carry
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)

PLACES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_TOKEN_PATH",
    "XDG_CACHE_HOME",
)
"""What names a file or folder of the Hub's client, of datasets, and of this package."""


def resolve_places() -> None:
    """Let relative paths of :data:`PLACES` mean this folder, in whatever this process starts too.

    A job runs in another folder. The client reads them at its import and looks from where it is,
    which is here.
    """
    for name in PLACES:
        given = os.environ.get(name)
        if given:
            os.environ[name] = str(Path(os.path.expandvars(given)).expanduser().absolute())


def offline_by() -> list[str]:
    """The variables that keep this process offline; empty where it may ask."""
    return [name for name in OFFLINE if os.environ.get(name, "") not in ("", "0")]


def hub_home() -> Path:
    """``HF_HOME`` as the Hub's client takes it in this process: models, datasets, a token."""
    from huggingface_hub import constants  # noqa: PLC0415 - not needed for the embedded model

    return Path(constants.HF_HOME).expanduser()


def hub_cache() -> Path:
    """Where the Hub's client keeps models in this process, whichever variable says so."""
    from huggingface_hub import constants  # noqa: PLC0415

    return Path(constants.HF_HUB_CACHE).expanduser()


def token_file() -> Path:
    """Where ``hf auth login`` left this user's token, if there is one."""
    from huggingface_hub import constants  # noqa: PLC0415

    return Path(constants.HF_TOKEN_PATH).expanduser()


def check_token() -> None:
    """Look at the Hub's token, where this process may use one, before the Hub is asked.

    Raises:
        FdllmError: no request can carry it, or its file cannot be read. Its text is not shown.
    """
    if offline_by():
        return
    named = next((name for name in TOKENS if os.environ.get(name)), None)
    try:
        text = os.environb[named.encode()] if named else read_bytes(token_file(), most=1 << 16)
    except AbsentError:
        return
    if not _TOKEN.fullmatch(text.strip()):
        raise FdllmError(
            f"the Hub token in {named or token_file()} holds a line break, a space or a character "
            "outside ASCII, which no token has; copy it again from "
            "https://huggingface.co/settings/tokens, whole and alone"
        )


def read_only_cache(error: BaseException) -> str | None:
    """What to do where an error says that the Hub's caches may not be written; None: it does not.

    A site's shared copy is for all to read. Deleting anything of it is never the way out.
    """
    if not isinstance(error, OSError) or error.errno not in _REFUSED or not error.filename:
        return None
    in_hub = Path(os.fsdecode(error.filename)).is_relative_to(hub_cache())
    name = "HF_HUB_CACHE" if in_hub else "HF_DATASETS_CACHE"
    return f"set {name} to a folder of yours, then 'fdllm prefetch' with a network fills it"


def own_cache() -> Path:
    """What this package remembers between processes: file hashes, compiled kernels."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).expanduser() / "fdllm"
