"""A server on loopback with the part of the Hugging Face Hub's API that a download uses."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass
class Repository:
    """A repository in which every branch and tag is at one commit."""

    files: dict[str, bytes]
    commit: str = "c0ffee" * 6 + "c0de"
    revisions: set[str] = field(default_factory=lambda: {"main"})
    stated: dict[str, str | None] = field(default_factory=dict)
    """Digests that are stated instead of the right ones; None states none."""
    denied: tuple[int, str] | None = None
    """Status and error code of every answer without a token."""


class Hub:
    """The server; a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.requests.append(f"{request.command} {path}")
        token = request.headers.get("Authorization")
        self.tokens.add(token)
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        repository = self.repositories.get(f"{owner}/{name}")
        if repository is None:
            _send(request, 404, {"X-Error-Code": "RepoNotFound"})
        elif repository.denied and not token:
            _send(request, repository.denied[0], {"X-Error-Code": repository.denied[1]})
        elif path.startswith("/api/models"):
            self._describe(request, repository, rest[1] if rest else "main")
        else:
            _, revision, *file = rest
            self._send_file(request, repository, revision, "/".join(file))

    def _describe(self, request: BaseHTTPRequestHandler, repository: Repository, revision: str) -> None:
        if revision not in {*repository.revisions, repository.commit}:
            return _send(request, 404, {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for file, data in repository.files.items():
            sha256 = repository.stated.get(file, hashlib.sha256(data).hexdigest())
            lfs = {"sha256": sha256, "size": len(data), "pointerSize": 134} if sha256 else None
            siblings.append({"rfilename": file, "size": len(data), "blobId": "0" * 40, "lfs": lfs})
        return _send(request, 200, {}, json.dumps({"id": "x", "sha": repository.commit, "siblings": siblings}).encode())

    def _send_file(self, request: BaseHTTPRequestHandler, repository: Repository, revision: str, file: str) -> None:
        data = repository.files[file]
        assert revision == repository.commit, "a file is always asked for by its commit"
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        return _send(request, 200, headers, data)


def _send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b"{}") -> None:
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)
