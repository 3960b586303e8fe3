"""What ifeval needs besides its documents: a sentence tokenizer's data, and a seed. No torch.

The harness fetches the tokenizer when its module is imported and goes on where that fails; the task
then breaks off when answers are scored, hours later. Here it is looked for ahead of time, fetched
where there is a network, and tried. It is kept beside the datasets in ``HF_HOME``, which is bound
into a container where a home folder is not; ``NLTK_DATA`` and nltk's usual places count as well.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from fdllm.caches import hub_home, offline_by
from fdllm.errors import FdllmError, first_line

_RESOURCE = "tokenizers/punkt_tab/english/"
_PACKAGE = "punkt_tab"


def sentence_folder() -> Path:
    """Where the tokenizer's data are kept: in ``NLTK_DATA``, else ``$HF_HOME/nltk_data``."""
    named = os.environ.get("NLTK_DATA", "").split(os.pathsep)[0]
    return Path(named).expanduser() if named else hub_home() / "nltk_data"


def require_sentences() -> None:
    """Find the sentence tokenizer, or fetch it, and split a text with it.

    Raises:
        FdllmError: it is not on this machine and cannot be fetched, or is damaged.
    """
    import nltk  # noqa: PLC0415 - only this task needs it
    from langdetect import DetectorFactory  # noqa: PLC0415

    # Unseeded, a short text's language changes from call to call, and the score with it.
    DetectorFactory.seed = 0
    folder = str(sentence_folder())
    if folder not in nltk.data.path:
        nltk.data.path.append(folder)
    try:
        nltk.data.find(_RESOURCE)
    except LookupError:
        _fetch(folder)
    try:
        found = nltk.data.load("nltk:tokenizers/punkt/english.pickle").tokenize("One. Two.")
    except Exception as error:
        raise FdllmError(
            f"task 'ifeval': the sentence tokenizer in {folder} (or another nltk_data folder) "
            f"cannot be read ({type(error).__name__}: {first_line(error, 'no message')}); "
            f"delete {_PACKAGE} there and prefetch it again"
        ) from error
    if not found:
        raise FdllmError(f"task 'ifeval': the sentence tokenizer {_PACKAGE} splits no text")


def _fetch(folder: str) -> None:
    import nltk  # noqa: PLC0415

    offline = bool(offline_by())
    said = io.StringIO()
    fetched = False
    if not offline:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            contextlib.suppress(OSError),  # a folder that may not be written
        ):
            fetched = bool(nltk.download(_PACKAGE, download_dir=folder, quiet=True))
    if not fetched:
        why = "this process is offline" if offline else "it cannot be fetched from here"
        raise FdllmError(
            f"task 'ifeval' needs nltk's sentence tokenizer '{_PACKAGE}', which is not on this "
            f"machine, and {why}; where there is a network run 'fdllm prefetch --task ifeval' (or "
            f"python -m nltk.downloader -d {folder} {_PACKAGE}) with the same HF_HOME, "
            "or with NLTK_DATA set to a folder of yours where that may not be written"
        )
