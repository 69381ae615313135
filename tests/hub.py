"""A model hub on this machine: as much of the hub's protocol as a download needs, served from a
dictionary. Knows nothing of who asks."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34
"""The one commit of every repository here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A model as the hub holds it."""

    files: Mapping[str, bytes]
    """Content of each file by its path."""
    refusal: tuple[int, str] | None = None
    """Status and error code with which files are refused, such as (403, "GatedRepo"); their names
    and sizes can be listed all the same."""
    stated: Mapping[str, int] = field(default_factory=dict)
    """Sizes in bytes that the hub claims of files, where they are not the truth."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hub:
    """Where it listens and what it was asked."""

    url: str
    """For HF_ENDPOINT."""
    asked: list[str]
    """Method and path of every request so far."""

    def downloads(self) -> list[str]:
        """Names of the files whose content was sent, in alphabetical order."""
        sent = [line for line in self.asked if line.startswith("GET") and "/resolve/" in line]
        return sorted(line.rsplit("/", 1)[1] for line in sent)


@contextlib.contextmanager
def serve(repositories: Mapping[str, Repository], broken: int | None = None) -> Iterator[Hub]:
    """The repositories under their ids; `broken` is a status that every request gets instead, or
    0 to hang up without an answer."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            if broken == 0:
                self.close_connection = True
                return
            answer = Answer(broken) if broken else answer_to(path, repositories)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer_to(path: str, repositories: Mapping[str, Repository]) -> Answer:
    """What the hub says to a GET of `path`."""
    if listed := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
        repository = repositories.get(listed[1])
        return listing(listed[1], listed[2] or "", repository) if repository else unknown("Repo")
    if wanted := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        repository = repositories.get(wanted[1])
        return content(wanted[3], repository) if repository else unknown("Repo")
    return Answer(404)


def listing(name: str, what: str, repository: Repository) -> Answer:
    if what in ("", "/revision/main", f"/revision/{COMMIT}"):
        return as_json({"id": name, "modelId": name, "sha": COMMIT, "siblings": []})
    if what not in ("/tree/main", f"/tree/{COMMIT}"):
        return unknown("Revision")
    return as_json(
        [
            {"type": "file", "path": path, "size": len(body), "oid": digest(body)[:40]}
            for path, body in repository.files.items()
        ]
    )


def content(path: str, repository: Repository) -> Answer:
    body = repository.files.get(path)
    if body is None:
        return unknown("Entry")
    if repository.refusal:
        status, code = repository.refusal
        return Answer(status, headers={"X-Error-Code": code} if code else {})
    headers = {"ETag": f'"{digest(body)}"', "X-Repo-Commit": COMMIT}
    if path in repository.stated:
        headers["X-Linked-Size"] = str(repository.stated[path])
    return Answer(200, body, headers)


def unknown(what: str) -> Answer:
    return Answer(404, headers={"X-Error-Code": f"{what}NotFound"})


def as_json(value: object) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
