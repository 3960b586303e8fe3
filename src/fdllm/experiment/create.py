"""``fdllm new``: the next experiment, begun from the template or from another one."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from fdllm.errors import UsageError
from fdllm.experiment.load import (
    EXPERIMENT_NAME,
    FOLDER,
    SETTINGS_FILE,
    TEMPLATE,
    list_experiments,
    load_experiment,
)
from fdllm.record.atomic import explained

_PAGES = ("proposal.md", "tasks.md", "results.md")
_TITLE = re.compile(r"^title\s*=.*$", re.MULTILINE)


def create_experiment(name: str, root: Path, source: str | None = None) -> Path:
    """Make ``experiments/NN_name``.

    Code and settings are the source's; proposal, tasks and results start empty from the template.

    Args:
        name: ``adaptive_skip`` (the next free number goes in front) or ``04_adaptive_skip``.
        root: the checkout.
        source: an experiment to begin from; None is the template.

    Returns:
        The new folder.

    Raises:
        UsageError: the name has another form or is taken, or the source is unknown.
        FdllmError: the folder cannot be written.
    """
    whole = _whole_name(name, root)
    target = root / FOLDER / whole
    template = root / FOLDER / TEMPLATE
    if not template.is_dir():
        raise UsageError(f"{template} is missing; fdllm new needs the checkout's template")
    origin = template if source is None else load_experiment(source, root).folder
    with explained(target):
        draft = Path(tempfile.mkdtemp(dir=root / FOLDER, prefix=f".{whole}-"))
        try:
            shutil.copytree(
                origin,
                draft,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("__pycache__", *_PAGES),
            )
            for page in _PAGES:
                text = (template / page).read_text(encoding="utf-8")
                text = text.replace("NAME", whole).replace("SOURCE", source or "the template")
                (draft / page).write_text(text, encoding="utf-8")
            settings = draft / SETTINGS_FILE
            title = f'title = "{whole[3:].replace("_", " ").capitalize()}"'
            text = settings.read_text(encoding="utf-8")
            settings.write_text(_TITLE.sub(title, text, count=1), encoding="utf-8")
            draft.chmod(0o755)
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return target


def _whole_name(name: str, root: Path) -> str:
    taken = list_experiments(root)
    if not re.match(r"^\d\d_", name):
        number = max((int(other[:2]) for other in taken), default=-1) + 1
        name = f"{number:02d}_{name}"
    if not EXPERIMENT_NAME.match(name):
        raise UsageError(
            f"'{name}' is no name for an experiment; use small letters, digits and _, for example "
            "adaptive_skip (the next number goes in front) or 04_adaptive_skip"
        )
    same_number = [other for other in taken if other[:2] == name[:2]]
    if same_number or (root / FOLDER / name).exists():
        raise UsageError(
            f"experiments/{same_number[0] if same_number else name} exists already; choose another "
            "name, or leave the number out to take the next free one"
        )
    return name
