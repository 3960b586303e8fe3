"""Whether the Hub lets this user have what is not in the cache: asked with the token at hand."""

from __future__ import annotations

from typing import Literal

from fdllm.doctor.findings import Checkup, Finding, fail, ok, warn
from fdllm.evaluate.hub_errors import ask_access
from fdllm.evaluate.tasks import task_info


def with_access(checkup: Checkup, findings: list[Finding]) -> list[Finding]:
    """The findings of a node, with the reason where something gated is missing.

    What lies in the cache needs no token, so nobody is asked about it.

    Args:
        checkup: the runs.
        findings: of ``task NAME`` and ``model``, as :mod:`fdllm.doctor.worker` names them.
    """
    return [extra for found in findings for extra in _with_access(checkup, found)]


def _with_access(checkup: Checkup, found: Finding) -> list[Finding]:
    kind, _, name = found.name.partition(" ")
    if found.state != "fail" or "not in the cache" not in found.found:
        return [found]
    if kind == "model":
        return [found, *_asked(found.name, checkup.sweep.model.name, "model")]
    info = task_info(name) if kind == "task" else None
    if info is None or not info.gated or info.dataset is None:
        return [found]
    return [found, *_asked(found.name, info.dataset, "dataset")]


def _asked(name: str, repo: str, kind: Literal["dataset", "model"]) -> list[Finding]:
    answer = ask_access(repo, kind)
    title = f"access {name.rsplit(' ', maxsplit=1)[-1]}"
    if answer.state == "granted":
        return [ok(title, answer.found)]
    if answer.state == "refused":
        return [fail(title, answer.found, answer.remedy)]
    return [
        warn(
            title,
            f"the Hub cannot be asked from here whether you may read {kind} {repo}",
            "run fdllm doctor where there is a network: it asks with your token",
        )
    ]
