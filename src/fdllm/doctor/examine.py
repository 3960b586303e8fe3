"""A check-up before anything is queued, and the fetching of what it misses.

Nothing is imported here that takes time. What needs torch or the harness is asked of a process of
its own, in the image if one is named, offline and without the token, as on a compute node
(:mod:`fdllm.doctor.remote`). Whether the Hub gives access is asked from here, with the token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from fdllm.caches import check_token, offline_by
from fdllm.doctor import checks_here
from fdllm.doctor.findings import Checker, Checkup, Finding, blocking, fail, ok, run_checks, warn
from fdllm.doctor.remote import ask_node
from fdllm.errors import UsageError
from fdllm.evaluate.hub_errors import ask_access
from fdllm.evaluate.tasks import task_info

_IMAGE: Mapping[str, Checker] = {"image": checks_here.image}
_HERE: Mapping[str, Checker] = {
    "consent": checks_here.consent,
    "criteria": checks_here.criteria,
    "links": checks_here.links,
    "disk": checks_here.disk,
    "scheduler": checks_here.scheduler,
    **_IMAGE,
}
_FETCHED = ("model", "task", "checks")


def examine(checkup: Checkup) -> list[Finding]:
    """Check everything that the runs of a sweep need; changes nothing.

    Returns:
        One finding a check, in an order to read them in; :func:`blocking` picks those that must be
        mended first. A check that cannot be made is a finding too.
    """
    findings = run_checks(_HERE, checkup)
    if any(found.name == "image" for found in blocking(findings)):
        return findings
    # A token that is not needed on a node is not given to it.
    return findings + [
        replace(found, name=f"{found.name} (image)") if checkup.image else found
        for found in with_access(checkup, ask_node(checkup, "check"))
    ]


def prefetch(checkup: Checkup) -> list[Finding]:
    """Fill the caches so that a node without a network can run, then prove it offline.

    Each task is instantiated as the run will do it, so whatever it fetches on the way is fetched:
    its documents, its metric's data, ifeval's sentence tokenizer. humaneval's metric fetches
    nothing. The proof is the check-up's own, in a fresh process, offline, without the token, and
    all of it is done in the image where there is one.

    Returns:
        What is proved, one finding for the model and for each task; where fetching failed, why.

    Raises:
        UsageError: this process is told to stay offline.
        FdllmError: no request can carry the token that is set.
    """
    if offline_by():
        raise UsageError(
            f"{' and '.join(offline_by())} forbid to fetch anything; unset them here, or run "
            "prefetch where there is a network, with the same HF_HOME"
        )
    check_token()
    image = blocking(run_checks(_IMAGE, checkup))
    if image:
        return image
    failed = {finding.name: finding for finding in blocking(ask_node(checkup, "fetch"))}
    if "checks" in failed:
        return [failed["checks"]]
    # What lies in the cache is enough, whatever the network said; else its word is the reason.
    told = [
        failed.get(found.name, found) if found.state == "fail" else found
        for found in ask_node(checkup, "check")
        if found.name.split(" ")[0] in _FETCHED
    ]
    return list(with_access(checkup, told))


def with_access(checkup: Checkup, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings of a node, with the Hub's word where something gated is missing.

    What lies in the cache needs no token, so nobody is asked about it.
    """
    for found in findings:
        yield found
        kind, _, name = found.name.partition(" ")
        if found.state != "fail" or "not in the cache" not in found.found:
            continue
        if kind == "model":
            yield _access(kind, checkup.sweep.model.name, "model")
        elif kind == "task":
            info = task_info(name, checkup.sweep.include)
            if info.gated and info.dataset is not None:
                yield _access(name, info.dataset, "dataset")


def _access(name: str, repo: str, kind: Literal["dataset", "model"]) -> Finding:
    """Whether the Hub lets this user have it: asked with the token at hand."""
    answer = ask_access(repo, kind)
    if answer.state == "granted":
        return ok(f"access {name}", answer.found)
    if answer.state == "refused":
        return fail(f"access {name}", answer.found, answer.remedy)
    return warn(
        f"access {name}",
        f"the Hub cannot be asked from here whether you may read {kind} {repo}",
        "run fdllm doctor where there is a network: it asks with your token",
    )
