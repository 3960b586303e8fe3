"""Why documents cannot be had, in one sentence that says what to do. Never a token's text."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import get_token

from fdllm.errors import FdllmError

_UNAUTHORIZED = 401
_FORBIDDEN = 403
_TOKENS = "https://huggingface.co/settings/tokens"


def explain_access(error: Exception, task: str, repo: str, config: str | None) -> FdllmError:
    """Turn whatever the dataset client raised into one error.

    Args:
        error: what it raised; causes are looked at too.
        task: the task that needs the documents.
        repo: the dataset's name on the Hub.
        config: its configuration, if any.
    """
    if isinstance(error, FdllmError):
        return error
    what = f"task '{task}' needs dataset {repo}" + (f" ({config})" if config else "")
    return FdllmError(f"{what}, {_reason(error, f'https://huggingface.co/datasets/{repo}')}")


def _reason(error: Exception, page: str) -> str:
    chain = list(_causes(error))
    names = {type(cause).__name__ for cause in chain}
    text = " ".join(str(cause) for cause in chain)
    statuses = {_status(cause) for cause in chain}
    if "OfflineModeIsEnabled" in names or any(isinstance(e, ConnectionError) for e in chain):
        reason = (
            "which is not in the cache of this machine, and the Hub cannot be reached (offline, or "
            f"no network); fetch it where there is a network ({page}) into the same HF_HOME, then "
            "try again"
        )
    elif _UNAUTHORIZED in statuses and get_token() is not None:
        reason = (
            "and the Hub does not accept the token that is set (wrong, expired, or not allowed to "
            f"see it); make a new one at {_TOKENS}, set HF_TOKEN, and see {page}"
        )
    elif _FORBIDDEN in statuses or ("gated" in text and get_token() is not None):
        reason = (
            "which is gated, and the account of the token that is set has not been granted access; "
            f"agree to the conditions at {page} with that account, then try again"
        )
    elif "GatedRepoError" in names or "gated" in text:
        reason = (
            f"which is gated, and no token is set; agree to the conditions at {page}, make a token "
            f"at {_TOKENS} and set HF_TOKEN"
        )
    elif names & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        reason = f"which the Hub does not know, or hides from this account; see {page}"
    else:
        line = next(iter(text.strip().splitlines()), "no reason given")
        reason = (
            f"which cannot be read ({type(error).__name__}: {without_token(line)}); see {page}, "
            "or delete its folder in the dataset cache and try again"
        )
    return reason


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
    token = get_token()
    return text.replace(token, "<token>") if token else text
