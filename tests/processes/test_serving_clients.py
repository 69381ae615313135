"""Clients of `penstock serve` that leave while they wait, or do not read; prompts that no pipe
holds, and deaths of a half. Whatever they do, the next one is answered, and nothing is left."""

import base64
import contextlib
import json
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from penstock_demo import CLIPS
from tests.support.long_context import LETTER, long_context_model
from tests.support.pipeline import PENSTOCK
from tests.support.servers import Answer
from tests.support.serving import Serving, a_picture, serving

pytestmark = pytest.mark.slow

QUEUE = 24
"""Requests that the server answers at once."""
CHAT = "/v1/chat/completions"
SETTLED_SECONDS = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    options = ["--model", "demo", "--labels", "a,b", "--caption-model", "demo"]
    command = [*PENSTOCK, "serve", *options, "--max-batch", "1", "--max-queue", str(QUEUE)]
    with serving(tmp_path_factory.mktemp("readers"), command=command) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each attack on the server of all, somebody is answered, and nothing waits any more."""
    yield
    if "server" not in request.fixturenames:
        return
    server: Serving = request.getfixturevalue("server")
    answer = server.ask("POST", "/v1/caption", a_picture())
    assert answer.status == 200, answer.body
    until = time.monotonic() + SETTLED_SECONDS
    while waiting(server):
        assert time.monotonic() < until, server.ask("GET", "/metrics").body
        time.sleep(0.05)


def waiting(server: Serving) -> float:
    """How many works wait for a half."""
    message = server.ask("GET", "/metrics").body.decode()
    return sum(map(float, re.findall(r'^penstock_queue_depth\{half="\w+"\} (\S+)', message, re.M)))


def posted(path: str, body: bytes, *more: str) -> bytes:
    """A whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


def question(prompt: str, **options: Any) -> bytes:
    """The body of a chat request."""
    url = "data:image/jpeg;base64," + base64.b64encode(a_picture()).decode()
    content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"messages": [{"role": "user", "content": content}], **options}).encode()


def chat(prompt: str, **options: Any) -> bytes:
    return posted(CHAT, question(prompt, **options), "Content-Type: application/json")


@contextlib.contextmanager
def connected(server: Serving) -> Iterator[socket.socket]:
    """A connection with room for little that was not read."""
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.settimeout(30.0)
        found.connect(("127.0.0.1", server.port))
        yield found


def kill_decode(server: Serving, number: int = signal.SIGKILL) -> None:
    for pid in server.pids("decode"):
        os.kill(pid, number)


def reset(connection: socket.socket) -> None:
    """Have the connection end without a farewell."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


MOMENTS = (0.0, 0.02, 0.2)
LEAVING: dict[str, Callable[[], bytes]] = {
    "a caption": lambda: posted("/v1/caption", a_picture()),
    "a stream": lambda: posted("/v1/caption?stream=1", a_picture()),
    "a chat": lambda: chat("What is there?"),
    "a stream of a chat": lambda: chat("What is there?", stream=True),
    "labels": lambda: posted("/v1/label", a_picture()),
    "a clip": lambda: posted("/v1/caption", (Path(CLIPS) / "clip-01.mp4").read_bytes()),
}


@pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("name", LEAVING)
def test_who_leaves_at_any_moment_leaves_nothing(
    server: Serving, name: str, abruptly: bool
) -> None:
    for seconds in MOMENTS:
        with connected(server) as connection:
            connection.sendall(LEAVING[name]())
            if abruptly:
                reset(connection)
            time.sleep(seconds)


def test_after_all_that_there_is_room_for_as_many_as_before(server: Serving) -> None:
    with ThreadPoolExecutor(QUEUE - 4) as askers:
        request = ("POST", "/v1/caption", a_picture(), None, 120)
        requests = [askers.submit(server.ask, *request) for _ in range(QUEUE - 4)]
        assert {each.result().status for each in requests} == {200}
    uploads = Path("/dev/shm").glob(f"penstock-serve-{server.process.pid}-*/*")
    assert not [path for path in uploads if path.suffix in (".upload", ".jpg", ".mp4")]


ASKERS, SILENT = 18, 20
LETTERS = 20_000
STUCK_SECONDS = 3.0
GRACE_SECONDS = 30.0


def long_prompt(number: int) -> str:
    return f"{number:04d}".ljust(LETTERS, LETTER)


@contextlib.contextmanager
def probed(server: Serving) -> Iterator[list[float]]:
    """Ask all the while whether it lives; gives the seconds that each answer took."""
    seconds: list[float] = []
    over = threading.Event()

    def probe() -> None:
        while not over.wait(0.02):
            began = time.monotonic()
            assert server.ask("GET", "/healthz", seconds=60).status == 200
            seconds.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as beside:
        probing = beside.submit(probe)
        try:
            yield seconds
        finally:
            over.set()
            probing.result()


def ask_all(server: Serving, first: int) -> list[Answer]:
    bodies = [question(long_prompt(first + n), max_tokens=24) for n in range(ASKERS)]
    headers = {"Content-Type": "application/json"}
    with ThreadPoolExecutor(ASKERS) as askers:
        requests = [askers.submit(server.ask, "POST", CHAT, body, headers, 90) for body in bodies]
        return [each.result() for each in requests]


def test_long_prompts_at_once_are_all_answered_and_nobody_else_waits(tmp_path: Path) -> None:
    model = long_context_model(tmp_path / "model")
    command = [*PENSTOCK, "serve", "--caption-model", str(model)]
    with serving(tmp_path, command=command) as server, contextlib.ExitStack() as stack:
        kill_decode(server)
        with probed(server) as starting:
            answers = ask_all(server, 0)
        assert max(starting) < 1.0
        assert [answer.status for answer in answers] == [200] * ASKERS
        with probed(server) as tried:
            answers = ask_all(server, ASKERS)
        assert [answer.status for answer in answers] == [200] * ASKERS
        for answer in answers:
            usage = json.loads(answer.body)["usage"]
            assert usage["prompt_tokens"] > 200 and usage["completion_tokens"]
        with probed(server) as stuck, ThreadPoolExecutor(1) as beside:
            kill_decode(server, signal.SIGSTOP)
            asking = beside.submit(ask_all, server, 2 * ASKERS)
            time.sleep(STUCK_SECONDS)
            kill_decode(server)
            answers = asking.result()
        assert [answer.status for answer in answers] == [200] * ASKERS
        with probed(server) as unread:
            for number in range(SILENT):
                request = chat(long_prompt(100 + number), stream=True, max_tokens=24)
                stack.enter_context(connected(server)).sendall(request)
            time.sleep(2.0)
        assert max(tried + stuck + unread) < 1.0
        kill_decode(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(3 * GRACE_SECONDS) == 0
        assert time.monotonic() - began < GRACE_SECONDS + 2
