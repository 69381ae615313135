"""Heads of requests without end, and connections that send nothing, in every server."""

import contextlib
import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.bare_server import SERVERS, BareServer, bare_server
from tests.support.commands import completed

START = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKS = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0"
FLOODS = {
    "fields": (START, b"X-A: b\r\n"),
    "one field": (START + b"X: ", b"a"),
    "target": (b"GET /", b"a"),
    "trailers": (CHUNKS + b"\r\n", b"X-A: b\r\n"),
    "extensions of a chunk": (CHUNKS + b";", b"x=abcde;"),
    "a later head": (START + b"\r\n" + START, b"X-A: b\r\n"),
    "a head behind a body": (CHUNKS + b"\r\n\r\n" + START + b"X: ", b"a"),
}
"""Name → what is sent first, and what is then repeated without end."""
LIMIT = 64 << 10
SENT_BYTES = 40 << 20
CLIENTS = 10
PEAK_BYTES = 20 << 20
SILENT = 500
"""Connections: more than a server keeps."""


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[BareServer]:
    with bare_server(request.param) as found:
        assert statuses(answer_to(found, START + b"\r\n" + CHUNKS + b"\r\n\r\n")) == [200, 200]
        yield found


def answer_to(server: BareServer, first: bytes, unit: bytes = b"") -> bytes:
    """Send bytes, and 40 MiB of a unit after them; return what came until the server closed, or
    said nothing for half a second."""
    found = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(first)
            piece = unit * (LIMIT // max(1, len(unit)))
            for _ in range(SENT_BYTES // len(piece) if piece else 0):
                connection.sendall(piece)
        connection.settimeout(20 if unit else 0.5)
        with contextlib.suppress(TimeoutError):
            while data := connection.recv(1 << 16):
                found += data
            found += b"(closed)"
    return found


def statuses(answers: bytes) -> list[int]:
    return [int(each) for each in re.findall(rb"HTTP/1\.1 (\d+)", answers)]


@pytest.mark.slow
@pytest.mark.parametrize("pause", [20, 0.2])
def test_who_sends_no_whole_head_is_left(server: BareServer, pause: float) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=pause) as connection:
        connection.sendall(START)
        answer = b"none"
        while answer and time.monotonic() < began + 20:
            try:
                answer = connection.recv(100)
            except TimeoutError:
                connection.sendall(b"X")
        assert answer == b"" and 9 < time.monotonic() - began < 15


@pytest.mark.in_turn
@pytest.mark.parametrize("sent", [b"", START])
def test_silent_connections_keep_nobody_out(server: BareServer, sent: bytes) -> None:
    began = time.monotonic()
    with contextlib.ExitStack() as silent:
        connections = []
        for _ in range(SILENT):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            connections.append(silent.enter_context(connection))
            connection.sendall(sent)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(START + b"\r\n")
            assert statuses(client.recv(100)) == [200]
        with contextlib.suppress(ConnectionResetError):
            assert connections[0].recv(1) == b""
        assert time.monotonic() - began < 9  # later it would be closed for its age
        connections[-1].sendall((b"" if sent else START) + b"\r\n")
        assert statuses(connections[-1].recv(100)) == [200]


@pytest.mark.parametrize("name", FLOODS)
def test_a_head_without_end_is_refused_in_little_memory(server: BareServer, name: str) -> None:
    before = server.peak_bytes()
    with ThreadPoolExecutor(CLIENTS) as together:
        answers = list(together.map(lambda _: answer_to(server, *FLOODS[name]), range(CLIENTS)))
    grown = server.peak_bytes() - before
    assert grown < PEAK_BYTES, f"the peak grew by {grown >> 20} MiB"
    for answer in answers:
        earlier = [200] if "behind" in name or "later" in name else []
        assert statuses(answer) == [*earlier, 431], answer[:300]
        assert b"Check its head: at most 64 KiB" in answer and answer.endswith(b"(closed)")


@pytest.mark.slow
def test_a_head_may_have_64_kib(server: BareServer) -> None:
    fields = START + b"X: "
    largest = fields + b"a" * (LIMIT - len(fields) - 4) + b"\r\n\r\n"
    assert statuses(answer_to(server, 2 * largest)) == [200, 200]


@pytest.mark.slow
def test_requests_sent_at_once_are_answered_in_their_order(server: BareServer) -> None:
    sizes = [0, 1, 300_000, 4096, 4095, 1_000_000, *range(50), 70_000]
    sent = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (n, size, bytes(size))
        for n, size in enumerate(sizes)
    )
    with ThreadPoolExecutor(4) as together:
        answers = list(together.map(lambda _: answer_to(server, sent), range(4)))
    expected = list(enumerate(sizes))
    for answer in answers:
        found = [(int(n), int(size)) for n, size in re.findall(rb"/(\d+) (\d+);", answer)]
        assert found == expected


def test_what_follows_a_request_of_two_lengths_is_not_read(server: BareServer) -> None:
    twice = CHUNKS.replace(b"Transfer", b"Content-Length: 4\r\nTransfer") + b"\r\n\r\n"
    answers = answer_to(server, twice + START + b"\r\n")
    assert statuses(answers) == [200] and answers.endswith(b"(closed)")


def test_half_of_a_body_gets_no_answer(server: BareServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(CHUNKS)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1 << 16) == b""


def test_who_closes_both_sides_is_noticed_while_the_answer_is_made(server: BareServer) -> None:
    def left() -> int:
        head = b"GET /left HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        return int(answer_to(server, head).partition(b"/left ")[2].partition(b";")[0])

    before = left()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        time.sleep(0.3)
    deadline = time.monotonic() + 5
    while left() == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left() == before + 1


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_of_http_1_0_gets_no_chunks(server: BareServer, version: bytes) -> None:
    sent = b"GET /pieces HTTP/%b\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % version
    chunks = b"a\r\n/pieces 0;\r\n0\r\n\r\n"
    body = answer_to(server, sent).partition(b"\r\n\r\n")[2]
    assert body == (b"/pieces 0;" if version == b"1.0" else chunks) + b"(closed)"


POST = b"POST /now HTTP/1.1\r\nHost: 127.0.0.1\r\n"
NOT_READ = {
    "gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\nhello", 501),
    "chunked, gzip": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\nhello", 501),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\nhello", 501),
    "gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\nhello", 501),
    "a length that is none": (POST + b"Content-Length: abc\r\n\r\nhello", 400),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "no HTTP": (b"\xde\xad\xbe\xef\r\n\r\n", 400),
}
"""Name → what is sent, and the status that answers it."""


@pytest.mark.in_turn
@pytest.mark.parametrize("name", NOT_READ)
@pytest.mark.parametrize("earlier", [b"", START.replace(b"/ ", b"/slow ", 1) + b"\r\n"])
def test_what_is_no_http_is_refused_in_json_after_the_answers_before_it(
    server: BareServer, name: str, earlier: bytes
) -> None:
    sent, status = NOT_READ[name]
    found = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(earlier + sent)
        while data := connection.recv(1 << 16):
            found += data
    assert statuses(found) == ([200] if earlier else []) + [status], found
    head, _, body = found.rpartition(b"\r\n\r\n")
    assert b"content-type: application/json" in head and set(json.loads(body)) == {"error", "hint"}


@pytest.mark.slow
def test_a_refusal_of_no_http_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with bare_server("serve") as found:
        for sent, _ in NOT_READ.values():
            answer_to(found, sent)
    assert "Traceback" not in (printed := capfd.readouterr().err), printed[-2000:]


UPGRADE = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
)
"""What Java's HttpClient and `curl --http2` send with a first request."""
BODIES = {
    "length": (b"Content-Length: 9\r\n", b"123456789"),
    "chunks": (b"Transfer-Encoding: chunked\r\n", b"4\r\n1234\r\n5\r\n56789\r\n0\r\n\r\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("upgrade", [UPGRADE, b"Connection: upgrade\r\nUpgrade: websocket\r\n"])
@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("wait", [0.0, 0.2])
def test_a_body_is_read_whose_head_offers_another_protocol(
    server: BareServer, upgrade: bytes, kind: str, wait: float
) -> None:
    framing, body = BODIES[kind]
    if b"h2c" not in upgrade and not wait:
        pytest.skip("as above")
    head = b"POST /a HTTP/1.1\r\nHost: 127.0.0.1\r\n" + upgrade + framing + b"\r\n"
    found = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        for part in [head, body, START + b"\r\n"] if wait else [head + body + START + b"\r\n"]:
            connection.sendall(part)
            time.sleep(wait)
        connection.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while data := connection.recv(1 << 16):
                found += data
    assert re.findall(rb"(/a?) (\d+);", found) == [(b"/a", b"9"), (b"/", b"0")], found
    assert statuses(found) == [200, 200]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_may_offer_http2(server: BareServer) -> None:
    sent = ["curl", "-s", "--http2", "-m", "5", "-w", "%{http_code}", "--data-binary", "0123456789"]
    assert completed([*sent, f"http://127.0.0.1:{server.port}/c"]).stdout == "/c 10;200"
