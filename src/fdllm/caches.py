"""Where files are kept between processes, each asked of whoever owns it. No torch."""

from __future__ import annotations

import os
from pathlib import Path

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""What keeps the Hub's client and the libraries on top of it from asking for anything."""


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


def own_cache() -> Path:
    """What this package remembers between processes: file hashes, compiled kernels."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).expanduser() / "fdllm"
