"""A loopback Hub: answers the dataset clients as the real one does, for a handful of repositories.

Start it, point ``HF_ENDPOINT`` at :attr:`Hub.url` *before* the clients are imported (so in another
process), and give that process an ``HF_HOME`` of its own.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

GRANTED = "hf_granted"
"""A token whose account may read the gated repositories."""
STRANGER = "hf_stranger"
"""A token whose account may not."""


@dataclass(frozen=True)
class Repository:
    """One dataset repository.

    Attributes:
        files: contents by path; a ``README.md`` maps configurations to files.
        gated: whether reading asks for a token with access.
    """

    files: Mapping[str, bytes]
    gated: bool = False

    @property
    def sha(self) -> str:
        """The commit: 40 hexadecimal digits that change with the content."""
        digest = hashlib.sha256()
        for path in sorted(self.files):
            digest.update(path.encode() + b"\0" + self.files[path])
        return digest.hexdigest()[:40]


@dataclass
class Hub:
    """The server, running while the ``with`` block lasts.

    Attributes:
        repositories: by name, ``owner/name``.
        seen: ``(method, path, token)`` of every request, in order.
    """

    repositories: Mapping[str, Repository]
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The address to put into ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/") if part]
        self.hub.seen.append((self.command, self.path, self._token))
        if self._token not in (None, GRANTED, STRANGER):
            message = "Invalid credentials in Authorization header"
            self._error(HTTPStatus.UNAUTHORIZED, "", message)
            return
        if parts[:1] == ["datasets"] and len(parts) > 5 and parts[3] == "resolve":
            self._resolve("/".join(parts[1:3]), "/".join(parts[5:]))
        elif parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            self._api("/".join(parts[2:4]), parts[4:], body)
        elif parts == ["api", "whoami-v2"]:
            self._json({"name": "someone", "type": "user"})
        else:
            self._error(HTTPStatus.NOT_FOUND, "EntryNotFound", f"no such page: {self.path}")

    @property
    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def _repository(self, name: str) -> Repository | None:
        """The repository, or None after an error has been sent.

        The real Hub hides what does not exist and what is private behind the same 401.
        """
        found = self.hub.repositories.get(name)
        if found is None:
            status = HTTPStatus.NOT_FOUND if self._token else HTTPStatus.UNAUTHORIZED
            self._error(status, "RepoNotFound", "Repository not found")
        return found

    def _may_read(self, repository: Repository, name: str) -> bool:
        """Whether the account may; False after an error has been sent."""
        if not repository.gated or self._token == GRANTED:
            return True
        status = HTTPStatus.FORBIDDEN if self._token else HTTPStatus.UNAUTHORIZED
        self._error(status, "GatedRepo", f"Access to dataset {name} is restricted.")
        return False

    def _resolve(self, name: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if not self._may_read(repository, name):
            return
        content = repository.files.get(path)
        if content is None:
            self._error(
                HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found", commit=repository.sha
            )
            return
        self._send(
            HTTPStatus.OK,
            content,
            {
                "Content-Type": "application/octet-stream",
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": repository.sha,
                "Accept-Ranges": "bytes",
            },
        )

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if rest == ["auth-check"]:
            if self._may_read(repository, name):
                self._json({})
        elif not rest or rest[0] == "revision":
            self._json(
                {
                    "id": name,
                    "sha": repository.sha,
                    "private": False,
                    "gated": "auto" if repository.gated else False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": path} for path in sorted(repository.files)],
                }
            )
        elif rest[0] == "tree":
            query = parse_qs(urlsplit(self.path).query)
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            self._tree(repository, "/".join(rest[2:]), recursive=recursive)
        elif rest[0] == "paths-info":
            wanted = parse_qs(body.decode()).get("paths") or json.loads(body).get("paths", [])
            self._json([_file(repository, path) for path in wanted if path in repository.files])
        else:
            self._error(HTTPStatus.NOT_FOUND, "EntryNotFound", f"no such page: {self.path}")

    def _tree(self, repository: Repository, folder: str, *, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        below = [path for path in sorted(repository.files) if path.startswith(prefix)]
        if not below:
            self._error(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
            return
        entries: dict[str, dict[str, Any]] = {}
        for path in below:
            head, _, tail = path.removeprefix(prefix).partition("/")
            if tail:
                oid = hashlib.sha256(f"{prefix}{head}".encode()).hexdigest()[:40]
                entries[prefix + head] = {
                    "type": "directory",
                    "path": prefix + head,
                    "size": 0,
                    "oid": oid,
                }
            if recursive or not tail:
                entries[path] = _file(repository, path)
        self._json(list(entries.values()))

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self._send(HTTPStatus.OK, content, {"Content-Type": "application/json"})

    def _error(
        self, status: HTTPStatus, code: str, message: str, commit: str | None = None
    ) -> None:
        headers = {"X-Error-Message": message}
        if code:
            headers["X-Error-Code"] = code
        if commit:
            headers["X-Repo-Commit"] = commit
        content = json.dumps({"error": message}).encode()
        self._send(status, content, {"Content-Type": "application/json", **headers})

    def _send(self, status: HTTPStatus, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _file(repository: Repository, path: str) -> dict[str, Any]:
    content = repository.files[path]
    oid = hashlib.sha256(content).hexdigest()[:40]
    return {"type": "file", "path": path, "size": len(content), "oid": oid}
