"""`penstock serve` under prompts that no pipe holds, clients that never read, and deaths of its
half: others are answered within a second meanwhile."""

import base64
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.long_context import LETTER, long_context_model
from tests.support.pipeline import PENSTOCK
from tests.support.servers import Answer
from tests.support.serving import Serving, a_picture, serving

pytestmark = pytest.mark.slow

ASKERS, SILENT = 18, 20
LETTERS = 20_000
STUCK_SECONDS = 3.0
GRACE_SECONDS = 30.0
CHAT = "/v1/chat/completions"


def question(number: int, **options: object) -> bytes:
    """A chat request with a prompt of 20,000 letters, each request another."""
    url = "data:image/jpeg;base64," + base64.b64encode(a_picture()).decode()
    prompt = f"{number:04d}".ljust(LETTERS, LETTER)
    content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"messages": messages, "max_tokens": 24, **options}).encode()


@contextmanager
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
    bodies = [question(first + n) for n in range(ASKERS)]
    headers = {"Content-Type": "application/json"}
    with ThreadPoolExecutor(ASKERS) as askers:
        asked = [askers.submit(server.ask, "POST", CHAT, body, headers, 90) for body in bodies]
        return [each.result() for each in asked]


def kill_decode(server: Serving) -> None:
    for pid in server.pids("decode"):
        os.kill(pid, signal.SIGKILL)


def silent(server: Serving, number: int) -> socket.socket:
    """A client that asks for a stream and never reads it."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.connect(("127.0.0.1", server.port))
    body = question(number, stream=True)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    found.sendall(head.encode() + body)
    return found


def test_long_prompts_at_once_are_all_answered_and_nobody_else_waits(tmp_path: Path) -> None:
    model = long_context_model(tmp_path / "model")
    command = [*PENSTOCK, "serve", "--caption-model", str(model)]
    with serving(tmp_path, command=command) as server, ExitStack() as stack:
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
            for pid in server.pids("decode"):
                os.kill(pid, signal.SIGSTOP)
            asking = beside.submit(ask_all, server, 2 * ASKERS)
            time.sleep(STUCK_SECONDS)
            kill_decode(server)
            answers = asking.result()
        assert [answer.status for answer in answers] == [200] * ASKERS
        with probed(server) as unread:
            for number in range(SILENT):
                stack.callback(silent(server, 100 + number).close)
            time.sleep(2.0)
        assert max(tried + stuck + unread) < 1.0
        kill_decode(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(3 * GRACE_SECONDS) == 0
        assert time.monotonic() - began < GRACE_SECONDS + 2
