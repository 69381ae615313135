"""A model hub on this machine: as much of the hub's protocol as a download needs, served from a
dictionary, with the troubles of a bad line on request."""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.loopback import QuietHandler, served

COMMIT = "c0ffee" + "0" * 34
"""The one commit of every repository here."""
KNOWN_TOKENS = ("hf_right", "hf_other")
BAD_TOKEN = "Invalid credentials in Authorization header"
BLOCK = 1 << 16
"""Bytes sent at a time."""
STALLED = 1_000_000
"""Bytes that a stalled line holds back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A model as the hub holds it."""

    files: Mapping[str, bytes]
    """Content of each file by its path; those of weights lie in the hub's large file storage."""
    refusal: tuple[int, str] | None = None
    """Status and error code with which files are refused, such as (403, "GatedRepo"); their names
    and sizes can be listed all the same."""
    stated: Mapping[str, int] = field(default_factory=dict)
    """Sizes in bytes that the hub claims of files, where they are not the truth."""
    in_git: tuple[str, ...] = ()
    """Files of weights that are small enough to lie in git."""
    large: tuple[str, ...] = ()
    """Other files that lie in the storage."""
    token: str = ""
    """What must be shown to be given anything; empty: nothing."""
    tags: tuple[str, ...] = ()
    """Other names of the one commit, beside main."""


@dataclass(kw_only=True, slots=True)
class Trouble:
    """What goes wrong with the answers of the storage; each is used up by what it spoils."""

    breaks: list[int] = field(default_factory=list)
    """The connection is cut after so many bytes of an answer."""
    damages: int = 0
    """In so many answers, one byte is another."""
    statuses: list[int] = field(default_factory=list)
    """Given instead of an answer; 200 lets one pass."""
    seconds_a_block: float = 0.0
    """How slow the line is; not used up."""
    stall: threading.Event = field(default_factory=threading.Event)
    """Set: an answer of weights stops before its last `STALLED` bytes until this is cleared."""
    whole_only: bool = False
    """Ranges are not understood; not used up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    """Of the file whose content this is."""


@dataclass(frozen=True, slots=True)
class Hub:
    """Where it listens, what it was asked and what it sent."""

    url: str
    """For HF_ENDPOINT."""
    trouble: Trouble
    asked: list[str] = field(default_factory=list)
    """Method and path of every request so far."""
    starts: list[tuple[str, int]] = field(default_factory=list)
    """File and first byte of every answer with content."""
    sent: Counter[str] = field(default_factory=Counter)
    """File -> bytes of content sent."""

    def downloads(self) -> list[str]:
        """Names of the files whose content was sent, in alphabetical order."""
        return sorted(name for name, _ in self.starts)

    def weights_sent(self) -> int:
        """Bytes of weights that were sent, headers among them."""
        return sum(count for name, count in self.sent.items() if name.endswith(".safetensors"))

    def forget(self) -> None:
        """Count from here on."""
        for kept in (self.asked, self.starts, self.sent):
            kept.clear()


@contextlib.contextmanager
def serve(
    repositories: Mapping[str, Repository],
    broken: int | None = None,
    trouble: Trouble | None = None,
) -> Iterator[Hub]:
    """The repositories under their ids; `broken` is a status that every request gets instead, or
    0 to hang up without an answer."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            if broken == 0:
                self.close_connection = True
                return
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            answer = Answer(broken) if broken else answer_to(path, repositories, storage, token)
            if self.command == "GET" and path.startswith("/cdn/"):
                answer = spoilt(answer, self.headers.get("Range", ""), hub.trouble)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.send_body(answer)

        do_HEAD = do_GET

        def send_body(self, answer: Answer) -> None:
            body, last = answer.body, None
            if answer.name:
                start = answer.headers.get("Content-Range", "bytes 0-")
                hub.starts.append((answer.name, int(start.split()[1].split("-")[0])))
            if self.path.startswith("/cdn/") and hub.trouble.breaks:
                last = hub.trouble.breaks.pop(0)
                self.close_connection = True
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for at in range(0, len(body[:last]), BLOCK):
                    while hub.trouble.stall.is_set() and 0 < len(body) - STALLED < at:
                        time.sleep(0.01)
                    block = body[:last][at : at + BLOCK]
                    self.wfile.write(block)
                    if answer.name:
                        hub.sent[answer.name] += len(block)
                    time.sleep(hub.trouble.seconds_a_block)

    with served(Handler) as port:
        # Another host by name, as the hub's storage is: the client does not follow it unasked.
        storage = f"http://localhost:{port}/cdn"
        hub = Hub(f"http://127.0.0.1:{port}", trouble or Trouble())
        yield hub


def answer_to(
    path: str, repositories: Mapping[str, Repository], storage: str, token: str
) -> Answer:
    """What the hub says to a GET of `path`; large files lie below the address `storage`."""
    if listed := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
        repository = repositories.get(listed[1])
        if token and token not in KNOWN_TOKENS:
            return Answer(401, headers={"X-Error-Message": BAD_TOKEN})
        if repository is None or repository.token not in ("", token):
            return unknown("Repo")
        return listing(listed[1], listed[2] or "", repository)
    if stored := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
        if token:  # the storage is another's, and is not to see it
            return Answer(400)
        return Answer(200, repositories[stored[1]].files[stored[2]], name=stored[2])
    if expected := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        repository = repositories.get(expected[1])
        if repository is None or repository.token not in ("", token):
            return unknown("Repo")
        return content(expected[3], repository, f"{storage}/{expected[1]}/{expected[3]}")
    return Answer(404)


def listing(name: str, what: str, repository: Repository) -> Answer:
    names = {"main", COMMIT, *repository.tags}
    if what in ("", *(f"/revision/{known}" for known in names)):
        return as_json({"id": name, "modelId": name, "sha": COMMIT, "siblings": []})
    if what not in ("/tree/main", f"/tree/{COMMIT}"):
        return unknown("Revision")
    return as_json([entry(path, repository) for path in repository.files])


def entry(path: str, repository: Repository) -> dict[str, object]:
    body = repository.files[path]
    size = repository.stated.get(path, len(body))
    found: dict[str, object] = {"type": "file", "path": path, "size": size, "oid": git_id(body)}
    if is_large(path, repository):
        found["lfs"] = {"oid": digest(body), "size": size, "pointerSize": 130}
    return found


def content(path: str, repository: Repository, storage: str) -> Answer:
    body = repository.files.get(path)
    if body is None:
        return unknown("Entry")
    if repository.refusal:
        status, code = repository.refusal
        return Answer(status, headers={"X-Error-Code": code} if code else {})
    headers = {"X-Repo-Commit": COMMIT}
    if not is_large(path, repository):
        return Answer(200, body, {**headers, "ETag": f'"{git_id(body)}"'}, name=path)
    linked = {
        "X-Linked-Size": str(repository.stated.get(path, len(body))),
        "X-Linked-ETag": f'"{digest(body)}"',
        "Location": storage,
    }
    return Answer(302, headers={**headers, **linked})


def spoilt(answer: Answer, request: str, trouble: Trouble) -> Answer:
    """The part of the answer that was asked for, after what is wrong with the line."""
    if trouble.statuses and (status := trouble.statuses.pop(0)) != 200:
        return Answer(status, b'{"error": "out of order"}', {"Content-Type": "application/json"})
    body, length = answer.body, len(answer.body)
    if trouble.damages:
        trouble.damages -= 1
        body = body[:-1] + bytes([body[-1] ^ 1])
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", request)
    if found is None or trouble.whole_only:
        return Answer(200, body, name=answer.name)
    start, end = int(found[1]), min(int(found[2] or length), length - 1)
    if start >= length:
        return Answer(416, headers={"Content-Range": f"bytes */{length}"})
    headers = {"Content-Range": f"bytes {start}-{end}/{length}"}
    return Answer(206, body[start : end + 1], headers, answer.name)


def is_large(path: str, repository: Repository) -> bool:
    weights = path.endswith(".safetensors") and path not in repository.in_git
    return weights or path in repository.large


def unknown(what: str) -> Answer:
    return Answer(404, headers={"X-Error-Code": f"{what}NotFound"})


def as_json(value: object) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def git_id(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def use_cache(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Let models be looked for and kept in that folder."""
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@contextlib.contextmanager
def client(patch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that connects the client to an address."""
    from huggingface_hub import close_session, constants

    def to(url: str) -> None:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    patch.setenv("NO_PROXY", "127.0.0.1,localhost")
    harnesses = str(Path(constants.HF_HUB_CACHE).parent / "harnesses.json")
    patch.setattr(constants, "AGENT_HARNESSES_PATH", harnesses, raising=False)
    close_session()
    yield to
    close_session()
