"""`penstock serve` asked by who means harm, and while its processes are killed."""

import contextlib
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.attacks import seeded
from tests.support.builders.card_time import encode, pixels_of
from tests.support.servers import Answer
from tests.support.serving import Serving, a_picture, serving, status_of, vector_of

NO_PICTURE = {415, 422}
TOO_LARGE = {413}
ANY = {200, 413, 415, 422}
"""Statuses of what may be read in part, or not."""


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that says it is so large, with little in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(min(3 * width * height, 1 << 22)))
    parts = (_chunk(b"IHDR", header), *chunks, _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check


def png_of_words() -> bytes:
    """A small PNG with a text that is 256 MB when it is unpacked."""
    packer = zlib.compressobj(9)
    words = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    return png(8, 8, _chunk(b"zTXt", b"Comment\0\0" + words))


def jpeg(width: int = 64, height: int = 48, **options: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "JPEG", **options)
    return file.getvalue()


def jpeg_that_says(width: int, height: int) -> bytes:
    """A small JPEG whose header promises more."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


SVG = b"""<?xml version='1.0'?><!DOCTYPE s [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>
<svg xmlns='http://www.w3.org/2000/svg'>&e;</svg>"""
HOSTILE: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "empty": (lambda: b"", NO_PICTURE),
    "text": (lambda: b"hello " * 50, NO_PICTURE),
    "SVG that includes": (lambda: SVG, NO_PICTURE),
    "playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", NO_PICTURE),
    "half a JPEG": (lambda: jpeg(640, 480)[:1500], ANY),
    "MP4 in clothes alone": (lambda: b"\0\0\0\x18ftypisom" + bytes(4000), NO_PICTURE),
    "PNG 60000 x 60000": (lambda: png(60000, 60000), TOO_LARGE),
    "PNG 2^31 x 2^31": (lambda: png(0x7FFFFFFF, 0x7FFFFFFF), {413, 422}),
    "PNG 0 x 0": (lambda: png(0, 0), NO_PICTURE),
    "PNG with 256 MB of words": (png_of_words, ANY),
    "JPEG that says 65500 x 65500": (lambda: jpeg_that_says(65500, 65500), TOO_LARGE),
}
"""Name → what is sent, and the statuses that answer it."""

TOKEN = "a-token-of-the-test-0123456789"
LOGIN = f"Authorization: Bearer {TOKEN}\r\n"
EMBED = f"POST /v1/embed HTTP/1.1\r\nHost: 127.0.0.1\r\n{LOGIN}".encode()
PATHS = [
    *("/static/../../pyproject.toml", "/static//etc/passwd", "/static/%00/etc/passwd"),
    *("/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/v1/media/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
    *(f"/v1/media/{number}" for number in ("-1", "9" * 32, "9" * 5000, "%D9%A1")),
    *("/v1/thumbnail/-1", "//v1/info/..", "/etc/passwd", "/docs", "/" + "a/" * 3000),
]
"""Answered 404, or as what makes no sense; never with a file."""
SECRETS = (b"root:", b"[build-system]", b"[core]")
"""Of the files that they look for."""
WRONG_TOKENS = {
    "another": {"Authorization": "Bearer another-secret"},
    "none": {"Authorization": ""},
    "empty token": {"Authorization": "Bearer "},
    "cut": {"Authorization": "Bearer {cut}"},
    "basic": {"Authorization": "Basic {token}"},
    "not ASCII": {"Authorization": "Bearer \xe4\xf6\xfc"},
    "as a cookie": {"Cookie": "penstock_session={token}"},
    "empty cookie": {"Cookie": "penstock_session="},
    "other header": {"Authorization": "", "X-API-Key": "{token}"},
}
POSTED = ("embed", "label", "caption", "session", "chat/completions", "search")
GOT = ("models", "search?q=a", "media/0", "thumbnail/0", "info", "stats")
ASKING = [
    *(("POST", f"/v1/{name}") for name in POSTED),
    *(("GET", f"/v1/{name}") for name in GOT),
    ("GET", "/metrics"),
]
"""What asks for a token where there is one."""
MEMORY_BYTES = 700 << 20
"""All processes of a server may have so much more of their own than when it was ready."""
REFUSALS = {401, 403, 404, 408, 413, 415, 421, 422, 429, 503, 504}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("serving"), "--max-queue", "32", token=TOKEN) as found:
        assert found.embed(a_picture()).status == 200
        yield found


@pytest.fixture
def unharmed(server: Serving) -> Iterator[Serving]:
    """The server; after the test it answers a good picture, and has not grown."""
    before = server.memory()
    yield server
    assert server.is_up()
    assert server.embed(a_picture()).status == 200
    assert server.memory() - before < MEMORY_BYTES


def said_well(answer: Answer) -> None:
    """A refusal says in JSON what is wrong, and nothing of the machine."""
    if answer.status in REFUSALS:
        values = json.loads(answer.body)
        if isinstance(values["error"], dict):  # as OpenAI's clients read it
            assert values["error"]["message"] and set(values) == {"error"}
        else:
            assert values["error"] and set(values) == {"error", "hint"}
    assert answer.status in {200, 405, *REFUSALS}, (answer.status, answer.body[:300])
    assert b"Traceback" not in answer.body and b"/tmp" not in answer.body
    assert not re.search(rb"\b\d+\.[a-z]", answer.body), answer.body[:300]  # names of uploads
    assert answer.allowed is None


@pytest.mark.in_turn
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_means_harm_is_answered_as_said(unharmed: Serving, name: str) -> None:
    make, statuses = HOSTILE[name]
    answer = unharmed.embed(make())
    said_well(answer)
    assert answer.status in statuses, answer.body


def test_connections_that_say_nothing_keep_nobody_out(unharmed: Serving) -> None:
    with contextlib.ExitStack() as open_ones:
        for number in range(200):
            each = socket.create_connection(("127.0.0.1", unharmed.port), timeout=10)
            open_ones.enter_context(each)
            each.sendall(EMBED[: number % len(EMBED)])
        assert unharmed.embed(a_picture()).status == 200


@pytest.mark.parametrize("path", PATHS)
def test_a_path_leads_nowhere_else(unharmed: Serving, path: str) -> None:
    head = f"Host: 127.0.0.1:{unharmed.port}\r\nConnection: close\r\n\r\n"
    message = unharmed.raw(f"GET {path} HTTP/1.1\r\n{LOGIN}{head}".encode())
    assert status_of(message) in {400, 404, 405, 414, 422}, message[:300]
    assert not any(secret in message for secret in SECRETS)


@pytest.mark.parametrize("name", WRONG_TOKENS)
def test_without_the_token_nothing_is_told(server: Serving, name: str) -> None:
    values = {"token": TOKEN, "cut": TOKEN[:-1]}
    headers = {key: value.format(**values) for key, value in WRONG_TOKENS[name].items()}
    for method, path in ASKING:
        answer = server.ask(method, path, jpeg() if method == "POST" else None, headers)
        assert answer.status == 401, (path, answer.body)
        said_well(answer)
        if path in ("/v1/chat/completions", "/v1/models"):  # as OpenAI's clients read it
            assert json.loads(answer.body)["error"]["code"] == "invalid_api_key"
        assert TOKEN.encode() not in answer.body


def test_with_the_token_all_is_told_and_without_it_what_is_for_everybody(server: Serving) -> None:
    right = {"Authorization": f"Bearer {TOKEN}"}
    for path in ("/", "/healthz", "/readyz"):
        assert server.ask("GET", path).status == 200
    assert server.embed(a_picture(), right).status == 200
    for host in ("localhost", "LOCALHOST"):
        own_host = {"Host": f"{host}:{server.port}"}
        assert server.ask("GET", "/v1/info", headers=own_host).status == 200
    begun = server.ask("POST", "/v1/session", headers=right)
    assert begun.status in (200, 204)
    cookie = begun.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie.replace("Strict", "strict")
    assert TOKEN not in cookie
    own = {"Cookie": cookie.partition(";")[0]}
    assert server.ask("GET", "/v1/info", headers=own).status == 200
    assert server.embed(a_picture(), own).status == 200


ASKERS = 6
SETTLE_SECONDS = 0.5
"""A request that was sent so long ago was accepted."""


@dataclass(kw_only=True)
class Asked:
    """Requests that several threads make, one after the other, and what became of them."""

    server: Serving
    answers: list[tuple[bytes, Answer]] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    """Times when those were sent that were never answered."""
    done: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def going_on(self, askers: int = ASKERS) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask) for _ in range(askers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.done.set()
            for thread in threads:
                thread.join()

    def _ask(self) -> None:
        while not self.done.is_set():
            body, sent = a_picture(), time.monotonic()
            try:
                answer = self.server.embed(body)
            except (OSError, http.client.HTTPException):
                self.lost.append(sent)
                continue
            self.answers.append((body, answer))
            if answer.status in (429, 503):
                assert int(answer.headers["retry-after"]) > 0
                time.sleep(0.1)

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for _, answer in self.answers)


def kill(server: Serving, stage: str, draw: random.Random) -> None:
    """Kill a process of a stage at some moment, and wait until there is another one."""
    until = time.monotonic() + 60
    while not (pids := server.pids(stage)):
        assert time.monotonic() < until, f"no process runs {stage}"
        time.sleep(0.01)
    time.sleep(draw.random() * 0.2)
    victim = draw.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    while os.path.exists(f"/proc/{victim}") and victim in server.pids(stage):
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kills"), [("embed", 2), ("cut_live", 8)])
def test_all_are_answered_once_while_killed(server: Serving, stage: str, kills: int) -> None:
    request, draw = Asked(server=server), seeded("kill", stage, kills)
    with request.going_on():
        for _ in range(kills):
            before = len(request.answers)
            kill(server, stage, draw)
            while len(request.answers) < before + ASKERS:
                assert server.is_up()
                time.sleep(0.02)
    assert request.lost == []
    assert set(request.statuses()) <= {200, 422, 429, 503}, request.statuses()
    assert request.statuses()[200] > kills
    # Two deaths in a row with the same one alone are rare among so many.
    assert request.statuses()[422] <= kills / 2
    for body, answer in request.answers:
        if answer.status == 200:  # with the vector of its own picture
            assert float(np.abs(vector_of(answer) - encode([pixels_of(body)])[0]).mean()) < 0.05
    assert "penstock_restarts_total" in server.ask("GET", "/metrics").body.decode()


@pytest.mark.slow
def test_who_was_accepted_is_answered_before_it_ends(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-queue", "64") as server:
        request = Asked(server=server)
        with request.going_on(16):
            while len(request.answers) < 32:
                time.sleep(0.02)
            message = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(60)
        assert [sent for sent in request.lost if sent < message - SETTLE_SECONDS] == []
        assert set(request.statuses()) <= {200, 429, 503}, request.statuses()
        assert code == 0


@pytest.mark.slow
def test_it_ends_its_processes_with_itself(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.embed(a_picture()).status == 200
        pids = server.pids()
        assert len(pids) > 2
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        until = time.monotonic() + 20
        while any(os.path.exists(f"/proc/{pid}") for pid in pids[1:]):
            assert time.monotonic() < until
            time.sleep(0.05)
