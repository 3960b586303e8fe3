"""Why documents cannot be had, in one sentence that says what to do. Never a token's text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import get_token

from fdllm.caches import check_token, read_only_cache
from fdllm.errors import FdllmError, MissingError, first_line

_PREFETCH = "fdllm prefetch"
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_TOKENS = "https://huggingface.co/settings/tokens"
_SITE = "https://huggingface.co"
_ASK_S = 20
# Names, because each client wraps the errors of another library.
_UNREACHED = frozenset(
    {"OfflineModeIsEnabled", "ConnectTimeout", "ReadTimeout", "ProxyError", "gaierror"}
)


@dataclass(frozen=True)
class Access:
    """What the Hub says of a repository to the token at hand."""

    # ``granted``, ``refused``, or ``unknown`` where the Hub did not answer
    state: Literal["granted", "refused", "unknown"]
    found: str  # what was found, as a sentence without its end
    remedy: str = ""  # what to do, with the address to visit; empty where access is granted


def ask_access(repo: str, kind: Literal["dataset", "model"]) -> Access:
    """Ask the Hub whether a repository (``owner/name``) may be read with the token at hand."""
    from huggingface_hub import constants  # noqa: PLC0415 - only where the Hub is asked
    from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415
    from huggingface_hub.utils._http import get_session, hf_raise_for_status  # noqa: PLC0415

    address = f"{constants.ENDPOINT}/api/{kind}s/{repo}/auth-check"
    try:
        check_token()
        # The client's own auth_check has no time limit: behind a firewall it waits for ever.
        answer = get_session().get(address, headers=build_hf_headers(), timeout=_ASK_S)
        hf_raise_for_status(answer)
    except Exception as error:  # noqa: BLE001 - whatever the client raises is explained
        found, remedy = _reason(error, _page(repo, kind))
        state: Literal["refused", "unknown"] = "refused" if _status(error) else "unknown"
        return Access(state, f"{kind} {repo}, {found}", remedy)
    return Access("granted", f"{kind} {repo} may be read")


def _page(repo: str, kind: str) -> str:
    return f"{_SITE}/datasets/{repo}" if kind == "dataset" else f"{_SITE}/{repo}"


def explain_access(error: Exception, task: str, repo: str, config: str | None) -> FdllmError:
    """Turn whatever the dataset client raised, and its causes, into one error."""
    if isinstance(error, FdllmError):
        return error
    what = f"task '{task}' needs dataset {repo}" + (f" ({config})" if config else "")
    found, remedy = _reason(error, _page(repo, "dataset"))
    which = f" --task {task}" if remedy.endswith(_PREFETCH) else ""
    return MissingError(f"{what}, {found}; {remedy}{which}")


def _reason(error: Exception, page: str) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    if isinstance(error, FdllmError):
        found, _, remedy = str(error).partition("; ")
        return found, remedy
    chain = list(_causes(error))
    for cause in chain:
        moved = read_only_cache(cause)
        if moved and isinstance(cause, OSError):
            folder = Path(os.fsdecode(cause.filename)).parent
            return f"and {folder} cannot be written ({cause.strerror})", moved
    return _clients_reason(chain, page)


def _clients_reason(chain: list[BaseException], page: str) -> tuple[str, str]:
    """The same of an error with its causes, by what the Hub and its clients say."""
    names = {type(cause).__name__ for cause in chain}
    text = " ".join(str(cause) for cause in chain)
    statuses = {_status(cause) for cause in chain}
    if names & _UNREACHED or any(isinstance(e, ConnectionError) for e in chain):
        return (
            (
                "which is not in the cache of this machine, and the Hub cannot be reached "
                "(offline, or no network)"
            ),
            f"fetch it where there is a network ({page}), with the same HF_HOME: {_PREFETCH}",
        )
    if _UNAUTHORIZED in statuses and hub_token() is not None:
        return (
            (
                "and the Hub does not accept the token that is set (wrong, expired, or not "
                "allowed to see it)"
            ),
            f"make a new one at {_TOKENS}, set HF_TOKEN, and see {page}",
        )
    if _FORBIDDEN in statuses or ("gated" in text and hub_token() is not None):
        return (
            "which is gated, and the account of the token that is set has not been granted access",
            f"agree to the conditions at {page} with that account, then try again",
        )
    if "GatedRepoError" in names or "gated" in text:
        return (
            "which is gated, and no token is set",
            f"agree to the conditions at {page}, make a token at {_TOKENS} and set HF_TOKEN",
        )
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        return "which the Hub does not know, or hides from this account", f"see {page}"
    line = first_line(text, "no reason given")
    return (
        f"which cannot be read ({type(chain[0]).__name__}: {without_token(line)})",
        f"see {page}, or delete its folder in the dataset cache and try again",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status of a client error, if it is one."""
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    return code if isinstance(code, int) else None


def without_token(text: str) -> str:
    """The text with the Hub token, should it occur, struck out."""
    token = hub_token()
    return text.replace(token, "<token>") if token else text


def hub_token() -> str | None:
    """The token that the Hub's client finds here; None where there is none that can be read."""
    try:
        return get_token()
    except (OSError, ValueError):  # its file is a folder, or no text
        return None
