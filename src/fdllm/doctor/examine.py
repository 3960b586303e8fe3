"""A check-up before anything is queued: what is ready, what is not, and what to do about it.

Nothing is imported here that takes time. What needs torch or the harness is asked of a process of
its own, in the image if one is named, offline and without the token, as on a compute node
(:mod:`fdllm.doctor.remote`). Whether the Hub gives access is asked from here, with the token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fdllm.doctor.checks_here import consent, disk, image_file, scheduler
from fdllm.doctor.checks_hub import with_access
from fdllm.doctor.findings import Checkup, Finding, blocking
from fdllm.doctor.remote import ask_node

_HERE: Sequence[Callable[[Checkup], list[Finding]]] = (consent, disk, scheduler)


def examine(checkup: Checkup) -> list[Finding]:
    """Check everything that the runs of a sweep need; changes nothing.

    Args:
        checkup: the runs and their place.

    Returns:
        One finding a check, in an order to read them in; :func:`blocking` picks those that must be
        mended first. A check that cannot be made is a finding too.
    """
    findings = [finding for check in _HERE for finding in check(checkup)]
    image = image_file(checkup)
    findings += image
    if blocking(image):
        return findings
    # A token that is not needed on a node is not given to it.
    there = ask_node(checkup, "check")
    return findings + [
        replace(found, name=f"{found.name} (image)") if checkup.image else found
        for found in with_access(checkup, there)
    ]
