"""`penstock serve` asked by who means harm: it lives, its memory stays within bounds, each is
answered as the page says, and a good picture is answered after it."""

import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from tests.support.media import picture, write_video
from tests.support.mutations import write_mutations
from tests.support.serve_attacks import (
    ASKING,
    EMBED,
    HOSTILE,
    HOSTS,
    NOT_HTTP,
    OPEN,
    PATHS,
    SECRETS,
    SLOW_HOSTILE,
    TOKEN,
    WRONG_TOKENS,
    jpeg,
)
from tests.support.servers import Answer
from tests.support.serving import Serving, a_picture, serving, status_of

MEMORY_BYTES = 700 << 20
"""All processes of a server may have so much more of their own than when it was ready."""
REFUSALS = {401, 403, 404, 408, 413, 415, 421, 422, 429, 503, 504}
CLOSED = {0, 400, 404, 405, 408, 411, 413, 414, 415, 421, 422, 431, 501, 505}
"""Statuses of what is no HTTP; 0: the connection was closed."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    with serving(folder, "--max-queue", "32", token=TOKEN) as found:
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
        told = json.loads(answer.body)
        if isinstance(told["error"], dict):  # as OpenAI's clients read it
            assert told["error"]["message"] and set(told) == {"error"}
        else:
            assert told["error"] and set(told) == {"error", "hint"}
    assert answer.status in {200, 405, *REFUSALS}, (answer.status, answer.body[:300])
    assert b"Traceback" not in answer.body and b"/tmp" not in answer.body
    assert answer.allowed is None


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_means_harm_is_answered_as_said(unharmed: Serving, name: str) -> None:
    make, statuses = HOSTILE[name]
    answer = unharmed.embed(make())
    said_well(answer)
    assert answer.status in statuses, answer.body


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_HOSTILE)
def test_a_large_file_that_means_harm_is_answered_as_said(unharmed: Serving, name: str) -> None:
    make, statuses = SLOW_HOSTILE[name]
    answer = unharmed.embed(make())
    said_well(answer)
    assert answer.status in statuses, answer.body


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_broken_files_are_answered_or_refused(
    unharmed: Serving, tmp_path: Path, count: int
) -> None:
    sources = []
    for suffix in ("jpg", "png", "webp", "bmp", "tif", "gif"):
        sources.append(tmp_path / f"whole.{suffix}")
        Image.fromarray(picture(3, 96, 128)).save(sources[-1])
    sources.append(write_video(tmp_path / "whole.mp4", ticks=range(60)))
    sources.append(write_video(tmp_path / "whole.mkv", ticks=range(60)))
    (tmp_path / "broken").mkdir()
    files = [path.read_bytes() for path in write_mutations(sources, tmp_path / "broken", count)]
    with ThreadPoolExecutor(4) as together:
        answers = list(together.map(unharmed.embed, files))
    for answer in answers:
        said_well(answer)
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) <= {200, 413, 415, 422}, statuses
    assert statuses[200] > count / 10 and statuses[415] + statuses[422] > count / 10, statuses


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_no_http_is_refused_or_closed(unharmed: Serving, name: str) -> None:
    told = unharmed.raw(*NOT_HTTP[name], end=True)
    if name in ("garbage behind a request", "body longer than told"):
        first, _, rest = told.partition(b"\r\n\r\n")
        assert status_of(first) in {200, *CLOSED}
        assert status_of(rest[rest.find(b"HTTP/1.1 ") :]) in CLOSED
    else:
        assert status_of(told) in CLOSED, told[:300]
    assert b"Traceback" not in told


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(unharmed: Serving) -> None:
    most = json.loads(unharmed.ask("GET", "/v1/info").body)["limits"]["body_bytes"]
    told = unharmed.raw(EMBED + b"Content-Length: %d\r\n\r\n" % (most + 1), first=True)
    assert status_of(told) == 413


def test_a_body_in_chunks_without_end_is_refused(unharmed: Serving) -> None:
    most = json.loads(unharmed.ask("GET", "/v1/info").body)["limits"]["body_bytes"]
    piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    head = EMBED + b"Transfer-Encoding: chunked\r\n\r\n"
    told = unharmed.raw(head, *[piece] * ((most >> 20) + 2), first=True)
    # Who is refused while still sending may not get to read why.
    assert status_of(told) in {0, 413, 415}


def test_a_body_shorter_than_told_is_no_picture_and_blocks_nothing(unharmed: Serving) -> None:
    told = unharmed.raw(EMBED + b"Content-Length: 50000\r\n\r\n" + jpeg()[:500], end=True)
    assert status_of(told) in CLOSED


def test_connections_that_say_nothing_keep_nobody_out(unharmed: Serving) -> None:
    with contextlib.ExitStack() as open_ones:
        for number in range(200):
            each = socket.create_connection(("127.0.0.1", unharmed.port), timeout=10)
            open_ones.enter_context(each)
            each.sendall(EMBED[: number % len(EMBED)])
        assert unharmed.embed(a_picture()).status == 200


@pytest.mark.slow
def test_headers_that_come_too_slowly_are_cut_off(unharmed: Serving) -> None:
    with socket.create_connection(("127.0.0.1", unharmed.port), timeout=90) as slow:
        slow.sendall(EMBED)
        until = time.monotonic() + 90
        slow.settimeout(1)
        while time.monotonic() < until:
            try:
                slow.sendall(b"X-A: 1\r\n")
                if slow.recv(1000) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("headers were waited for, for 90 s")


@pytest.mark.slow
def test_bodies_that_come_too_slowly_are_cut_off_and_keep_nobody_out(unharmed: Serving) -> None:
    """As many as may wait, each a byte a second; good pictures get through meanwhile or are told
    when to come again, and get through after it."""
    head = EMBED + b"Content-Length: 50000\r\n\r\n" + jpeg()[:100]
    with contextlib.ExitStack() as open_ones:
        slow = [socket.create_connection(("127.0.0.1", unharmed.port)) for _ in range(32)]
        for each in slow:
            open_ones.enter_context(each)
            each.sendall(head)
        until, statuses = time.monotonic() + 90, {unharmed.embed(a_picture()).status}
        left = list(slow)
        while left and time.monotonic() < until:
            left = [each for each in left if not _ended(each)]
            statuses.add(unharmed.embed(a_picture()).status)
            time.sleep(1)
    assert not left
    assert statuses <= {200, 429}


def _ended(connection: socket.socket) -> bool:
    """Send one byte more; return whether the other side has answered or closed."""
    connection.settimeout(0.01)
    try:
        connection.sendall(b"a")
        told = connection.recv(4000)
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    assert status_of(told) in {0, 408, 429}, told
    return True


@pytest.mark.parametrize("host", HOSTS)
def test_another_host_is_refused(server: Serving, host: str) -> None:
    name = host.replace("{port}", str(server.port))
    for path in ("/", "/v1/info", "/metrics", "/v1/embed"):
        told = server.raw(
            f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
        )
        assert status_of(told) in {400, 421}, (path, told[:200])


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}"])
def test_our_own_host_is_answered(server: Serving, host: str) -> None:
    answer = server.ask(
        "GET", "/v1/info", headers={"Host": host.replace("{port}", str(server.port))}
    )
    assert answer.status == 200


def test_pages_of_other_sites_are_refused(server: Serving) -> None:
    for site, status in (("cross-site", 403), ("none", 200), ("same-origin", 200)):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}
        answer = server.embed(a_picture(), headers)
        assert answer.status == status, site
        said_well(answer)
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for headers in (preflight, {"Origin": "null"}):
        answer = server.ask("OPTIONS", "/v1/embed", headers=headers)
        assert answer.allowed is None and answer.status >= 400


@pytest.mark.parametrize("path", PATHS)
def test_a_path_leads_nowhere_else(unharmed: Serving, path: str) -> None:
    head = f"Host: 127.0.0.1:{unharmed.port}\r\nConnection: close\r\n\r\n"
    login = f"Authorization: Bearer {TOKEN}\r\n"
    told = unharmed.raw(f"GET {path} HTTP/1.1\r\n{login}{head}".encode())
    assert status_of(told) in {400, 404, 405, 414, 422}, told[:300]
    assert not any(secret in told for secret in SECRETS)


@pytest.mark.parametrize("name", WRONG_TOKENS)
def test_without_the_token_nothing_is_told(server: Serving, name: str) -> None:
    values = {"token": TOKEN, "cut": TOKEN[:-1], "upper": TOKEN.upper()}
    headers = {key: value.format(**values) for key, value in WRONG_TOKENS[name].items()}
    for method, path in ASKING:
        body = jpeg() if method == "POST" else None
        answer = server.ask(method, path, body, headers)
        assert answer.status == 401, (path, answer.body)
        said_well(answer)
        assert TOKEN.encode() not in answer.body


def test_with_the_token_all_is_told_and_without_it_what_is_for_everybody(server: Serving) -> None:
    right = {"Authorization": f"Bearer {TOKEN}"}
    for path in OPEN:
        assert server.ask("GET", path).status == 200
    assert server.embed(a_picture(), right).status == 200
    begun = server.ask("POST", "/v1/session", headers=right)
    assert begun.status in (200, 204)
    cookie = begun.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie.replace("Strict", "strict")
    assert TOKEN not in cookie
    own = {"Cookie": cookie.partition(";")[0]}
    assert server.ask("GET", "/v1/info", headers=own).status == 200
    assert server.embed(a_picture(), own).status == 200
