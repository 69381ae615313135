"""A server that is stopped while it starts, whose disk is full, or that answers before it has read
what a client sends."""

import asyncio
import contextlib
import errno
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.errors import UsageError
from artifacts.index.shard import read_whole
from artifacts.index.snapshot import open_snapshot
from artifacts.index.upkeep import measure
from artifacts.index.writing import writing
from flows.core.console.display import Display
from flows.core.options.serving import ServeConfig
from flows.core.options.vectors import SearchQuery
from flows.interfaces.serve import uploads
from flows.interfaces.serve.guard import refuse
from flows.interfaces.serve.listening import UnsignalledServer
from flows.interfaces.serve.refusals import HttpRefusal
from flows.interfaces.serve.searching import ServedIndex
from flows.interfaces.serve.startup import open_service
from flows.interfaces.serve.temp_store import TempStore
from tests.support.disks import small_disk
from tests.support.faults import failing
from tests.support.indexes import MAKER, write
from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.serving import a_picture, serving

STARTING = """
import contextlib, asyncio, sys, time
from flows.interfaces.serve import server
from flows.core.options.serving import ServeConfig
from flows.core.console.display import Display

@contextlib.asynccontextmanager
async def opening(*_):
    print("opening", flush=True)
    await asyncio.to_thread(time.sleep, 60)
    yield

server.open_service = opening
server.serve(ServeConfig(model="any", port=0), Display())
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_closed", [False, True])
def test_a_signal_or_a_closed_terminal_while_models_are_opened_ends_the_server(
    is_closed: bool,
) -> None:
    """SIGHUP ends it only once the terminal is closed."""
    command = [sys.executable, "-c", STARTING]
    screen, terminal = pty.openpty()
    pipe = subprocess.PIPE
    starting = subprocess.Popen(
        command, cwd=ROOT, stdin=terminal, stdout=pipe, stderr=pipe, text=True
    )
    os.close(terminal)
    assert starting.stdout is not None and starting.stderr is not None
    with starting.stdout, starting.stderr:
        assert starting.stdout.readline() == "opening\n"
        starting.send_signal(signal.SIGHUP)
        assert "nothing to read again" in starting.stderr.readline()
        if is_closed:
            os.close(screen)
        starting.send_signal(signal.SIGHUP if is_closed else signal.SIGTERM)
        began = time.monotonic()
        assert starting.wait(60) == 0, "it was killed, or did not end in order"
    assert time.monotonic() - began < 5
    if not is_closed:
        os.close(screen)


def test_an_upload_that_does_not_fit_is_507(tmp_path: Path) -> None:
    scratch = TempStore(tmp_path)
    (tmp_path / "0.upload").symlink_to("/dev/full")
    with pytest.raises(HttpRefusal) as caught:
        uploads.stored(b"\xff\xd8\xff" + bytes(1 << 20), 1 << 30, scratch)
    assert caught.value.status == 507 and "no room" in caught.value.error


def test_a_server_is_ready_with_room_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = TempStore(tmp_path)
    assert scratch.has_room()
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    assert not scratch.has_room()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


@pytest.mark.slow
def test_captions_are_507_while_the_store_s_disk_is_full_and_made_after_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "60m") as disk:
        store = ("--store", str(disk / "store"), "--caption-model", "demo")
        with serving(tmp_path, *store, command=[*PENSTOCK, "serve"]) as server:
            assert server.ask("POST", "/v1/caption", a_picture()).status == 200
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 12))
            found = [server.ask("POST", "/v1/caption", a_picture(), seconds=30) for _ in range(2)]
            assert [answer.status for answer in found] == [507, 507], found[0].body[:300]
            assert server.ask("GET", "/readyz").status == 503
            (disk / "filler").unlink()
            assert server.ask("POST", "/v1/caption", a_picture()).status == 200
            assert server.ask("GET", "/readyz").status == 200


@pytest.mark.slow
def test_the_bits_of_an_index_are_in_memory_before_the_free_memory_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "index", 3000, 0)
    read, measured = list[str](), list[str]()

    def reading(path: Path, *shape: Any) -> Any:
        read.append(path.name.partition("-")[0])
        return read_whole(path, *shape)

    def measuring(*_: Any) -> Any:
        measured.extend(read)
        raise UsageError("that is all", hint="")

    monkeypatch.setattr("artifacts.index.shard.read_whole", reading)
    monkeypatch.setattr("flows.core.machine.budget.budget_for", measuring)
    # The index names no model that exists; this one is read before it is compared.
    config = ServeConfig(index=str(tmp_path / "index"), model="demo", store=str(tmp_path))

    async def opening() -> None:
        async with open_service(config, Display(quiet=True)):
            pass

    with pytest.raises(UsageError, match="that is all"):
        asyncio.run(opening())
    assert measured == ["bits"]


@pytest.mark.slow
@pytest.mark.parametrize("sort", ["embeddings", "identities", "bits"])
def test_an_index_that_is_copied_over_is_opened_again(sort: str, tmp_path: Path) -> None:
    """As `cp new/* served/` does: each file is cut, and then written."""
    served, new = tmp_path / "served", tmp_path / "new"
    for folder, seed in ((served, 0), (new, 1)):
        write(folder, 3000, seed)
        with writing(folder) as writer:
            measure(writer)
    vector = open_snapshot(new).vectors(np.array([7]))[0]
    child = os.fork()
    if child == 0:  # a mapped file would end this process
        try:
            index = ServedIndex(served, MAKER)
            settings = SearchQuery(what="a query")
            asyncio.run(index.search(vector, "pictures", (), settings))
            for path in served.glob(f"{sort}-*"):
                os.truncate(path, 0)
            try:
                asyncio.run(index.search(vector, "pictures", (), settings))
                refused = sort == "bits"  # they are in memory
            except HttpRefusal as why:
                refused = why.status == 503
            for path in new.iterdir():
                if path.is_file():
                    shutil.copyfile(path, served / path.name)
            (hit, *_) = asyncio.run(index.search(vector, "pictures", (), settings))
            score: Any = hit["score"]
            os._exit(0 if refused and score > 0.99 else 3)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


BODY = 24 << 20


@pytest.mark.parametrize("closing", [True, False])
def test_a_client_that_sends_all_before_it_reads_gets_its_refusal(closing: bool) -> None:
    """As `http.client` does, and nginx, which asks for the end of each connection."""
    answers: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await refuse(HttpRefusal(429, "the queue is full"), "/", send, closing=closing)

    def ask(port: int) -> None:
        for _ in range(12):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                head = f"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY}\r\n"
                head += "" if closing else "connection: close\r\n"
                try:
                    client.sendall(head.encode() + b"\r\n" + bytes(BODY))
                    answer = b""
                    while piece := client.recv(1 << 16):
                        answer += piece
                except OSError as error:
                    answer = str(error).encode()
            answers.append(answer[:12])

    async def go() -> None:
        server = UnsignalledServer(app, 8, interface="asgi3")
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        asking = threading.Thread(target=ask, args=(listener.getsockname()[1],))
        asking.start()
        await asyncio.to_thread(asking.join)
        server.should_exit = True
        await serving

    asyncio.run(go())
    assert answers == [b"HTTP/1.1 429"] * 12
