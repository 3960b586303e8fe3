"""Fills the caches so that a node without a network can run, then proves it offline.

Each task is instantiated as the run will do it, so whatever it fetches on the way is fetched: its
documents, its metric's data, ifeval's sentence tokenizer. humaneval's metric is ours and fetches
nothing. The proof is the check-up's own, in a fresh process, offline, without the token.
"""

from __future__ import annotations

from fdllm.caches import offline_by
from fdllm.doctor.checks_here import image_file
from fdllm.doctor.checks_hub import with_access
from fdllm.doctor.findings import Checkup, Finding, blocking
from fdllm.doctor.remote import ask_node
from fdllm.errors import UsageError

_FETCHED = ("model", "task", "checks")


def prefetch(checkup: Checkup) -> list[Finding]:
    """Fetch the model and the tasks of a sweep, and prove that they are all there.

    Args:
        checkup: the runs; with an image, the same is done inside it.

    Returns:
        What is proved, one finding for the model and for each task; where fetching failed, why.

    Raises:
        UsageError: this process is told to stay offline.
    """
    offline = offline_by()
    if offline:
        raise UsageError(
            f"{' and '.join(offline)} forbid to fetch anything; unset them here, or run prefetch "
            "where there is a network, with the same HF_HOME"
        )
    image = image_file(checkup)
    if blocking(image):
        return image
    fetched = ask_node(checkup, "fetch")
    failed = {finding.name: finding for finding in blocking(fetched)}
    if "checks" in failed:
        return [failed["checks"]]
    proved = [found for found in ask_node(checkup, "check") if _is_fetched(found)]
    # What lies in the cache is enough, whatever the network said; else its word is the reason.
    told = [failed.get(found.name, found) if found.state == "fail" else found for found in proved]
    return with_access(checkup, told)


def _is_fetched(found: Finding) -> bool:
    return found.name.split(" ")[0] in _FETCHED
