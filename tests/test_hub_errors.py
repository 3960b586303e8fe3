"""Why something cannot be had from the Hub: each cause, with and without a token, in one line."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from fdllm.caches import hub_cache
from fdllm.errors import FdllmError, MissingError
from fdllm.evaluate import hub_errors
from fdllm.evaluate.hub_errors import Access, ask_access, explain_access, without_token

SITE = "https://huggingface.co"
PAGE = f"{SITE}/datasets/org/rows"


def error(name: str, text: str = "no", *, status: object = None) -> Exception:
    """An error as a client raises it: known by its class's name and the status of its answer."""
    made: Exception = type(name, (Exception,), {})(text)
    if status is not None:
        vars(made)["response"] = SimpleNamespace(status_code=status)
    return made


def caused(outer: Exception, inner: Exception, *, handled: bool) -> Exception:
    """``outer`` raised from ``inner``, or while ``inner`` was handled."""
    if handled:
        outer.__context__ = inner
    else:
        outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("raised", "token", "found", "remedy"),
    [
        (error("OfflineModeIsEnabled"), None, "the Hub cannot be reached", "fdllm prefetch"),
        (error("ConnectTimeout"), None, "the Hub cannot be reached", PAGE),
        (error("ReadTimeout"), "t", "the Hub cannot be reached", PAGE),
        (error("ProxyError"), None, "the Hub cannot be reached", PAGE),
        (error("gaierror"), None, "the Hub cannot be reached", PAGE),
        (ConnectionResetError(), None, "the Hub cannot be reached", PAGE),
        (error("HTTPError", status=401), "t", "does not accept the token", "/settings/tokens"),
        (error("HTTPError", status=403), None, "has not been granted access", PAGE),
        (error("HTTPError", "gated repo"), "t", "has not been granted access", PAGE),
        (error("HTTPError", "gated repo"), None, "which is gated, and no token is set", PAGE),
        (error("GatedRepoError"), None, "which is gated, and no token is set", "set HF_TOKEN"),
        (error("DatasetNotFoundError"), None, "the Hub does not know", f"see {PAGE}"),
        (error("RepositoryNotFoundError"), "t", "the Hub does not know", f"see {PAGE}"),
        (
            PermissionError(errno.EACCES, "no", "/site/datasets/a.lock"),
            *(
                None,
                "/site/datasets cannot be written (no)",
                "set HF_DATASETS_CACHE to a folder",
            ),
        ),
        (
            OSError(errno.EROFS, "no", str(hub_cache() / "datasets--a" / "refs")),
            *("t", "cannot be written (no)", "set HF_HUB_CACHE to a folder of yours"),
        ),
        (error("Odd", "first\nsecond"), None, "cannot be read (Odd: first)", "delete its folder"),
        (error("Odd", " "), None, "cannot be read (Odd: no reason given)", "delete its folder"),
        (error("HTTPError", status="401"), "t", "cannot be read (HTTPError: no)", PAGE),
        (error("HTTPError", status=401), None, "cannot be read (HTTPError: no)", PAGE),
    ],
)
def test_every_cause_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, token: str | None, found: str, remedy: str
) -> None:
    monkeypatch.setattr(hub_errors, "get_token", lambda: token)
    outer = ValueError("wrapped")
    for one in (
        raised,
        caused(ValueError("wrapped"), raised, handled=False),
        caused(ValueError("wrapped"), raised, handled=True),
    ):
        if found.startswith("cannot be read") and one is not raised:
            continue  # the outermost error is the one that is named then
        told = explain_access(one, "rows_task", "org/rows", "main")
        assert type(told) is MissingError
        said, _, do = str(told).partition("; ")
        assert said.startswith("task 'rows_task' needs dataset org/rows (main), ")
        assert found in said
        assert remedy in do
        assert "cannot be written" not in said or "delete" not in do, "a site's copy is for all"
    assert str(explain_access(outer, "t", "org/rows", None)).startswith(
        "task 't' needs dataset org/rows, which cannot be read (ValueError: wrapped)"
    )


def test_what_is_explained_already_stays_as_it_is() -> None:
    ours = FdllmError("ours")
    assert explain_access(ours, "t", "org/rows", None) is ours


def test_causes_in_a_circle_end() -> None:
    one, other = error("Odd"), error("GatedRepoError")
    one.__cause__, other.__cause__ = other, one
    assert "which is gated" in str(explain_access(one, "t", "org/rows", None))


def test_a_token_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_errors, "get_token", lambda: "hf_secret")
    assert without_token("a hf_secret b hf_secret") == "a <token> b <token>"
    monkeypatch.setattr(hub_errors, "get_token", lambda: None)
    assert without_token("a hf_secret") == "a hf_secret"


# --- asking ---------------------------------------------------------------------------------------


class Session:
    """Stands in for the client's session."""

    def __init__(self, answer: Exception | int) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def get(self, address: str, **named: Any) -> Any:
        self.asked.append((address, named))
        if isinstance(self.answer, Exception):
            raise self.answer
        return SimpleNamespace(status_code=self.answer)


@pytest.mark.parametrize(
    ("answer", "state", "found"),
    [
        (200, "granted", "dataset org/rows may be read"),
        (403, "refused", "dataset org/rows, which is gated, and the account"),
        (error("ConnectTimeout"), "unknown", "dataset org/rows, which is not in the cache"),
    ],
)
def test_the_hub_is_asked_once_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | int, state: str, found: str
) -> None:
    session = Session(answer)

    def check(answered: Any) -> None:
        if answered.status_code >= 400:
            raise error("HTTPError", status=answered.status_code)

    monkeypatch.setattr("huggingface_hub.utils._http.get_session", lambda: session)
    monkeypatch.setattr("huggingface_hub.utils._http.hf_raise_for_status", check)
    told = ask_access("org/rows", "dataset")
    assert (told.state, bool(told.remedy)) == (state, state != "granted")
    assert told.found.startswith(found)
    ((address, named),) = session.asked
    assert address.endswith("/api/datasets/org/rows/auth-check")
    assert 0 < named["timeout"] <= 60
    if state == "refused":
        assert PAGE in told.remedy


def test_a_model_has_a_page_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(error("RepositoryNotFoundError", status=404))
    monkeypatch.setattr("huggingface_hub.utils._http.get_session", lambda: session)
    told = ask_access("org/name", "model")
    assert told == Access(
        "refused",
        "model org/name, which the Hub does not know, or hides from this account",
        f"see {SITE}/org/name",
    )
    assert session.asked[0][0].endswith("/api/models/org/name/auth-check")
