"""Runs a server from its configuration to its end: listens, prints its address, and drains
requests.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from artifacts.disk.paths import text_named
from artifacts.errors import ModelChanged, UsageError
from artifacts.packages import loop_factory
from flows.core.console.display import Display
from flows.core.job.pass_mode import second_change
from flows.core.machine.launch import DirectLauncher, Launcher
from flows.core.options.serving import ADDRESS, BatchOptions, NetworkOptions, ServeConfig
from flows.interfaces.serve.app import app_of
from flows.interfaces.serve.guard import Guard
from flows.interfaces.serve.half_worker import ModelWatch
from flows.interfaces.serve.listening import UnsignalledServer, address_of, listening
from flows.interfaces.serve.startup import DRAIN_SECONDS, Service, open_service
from stages.process.stage_process import Listener

TOKEN_BYTES = 1 << 12
SHORTEST_TOKEN = 16
"""Smallest number of characters of a token. Shorter ones can be guessed."""
BACKLOG = 512
CONNECTIONS_PER_REQUEST = 4
"""Open connections per request that may be handled at once."""
FILES = 1 << 16
"""Limit of open files, if the system allows it. Each connection is one."""
GARBAGE = 20_000
"""Allocated objects that trigger a garbage collection. A request leaves few."""
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEAVE_SECONDS = 2.0
"""Seconds in which a server that was stopped before its models were open may end by itself."""
ResultT = TypeVar("ResultT")
SWITCH_SECONDS = 0.0005
"""Longest time that a server thread blocks the others, which read the events of halves."""


def serve(
    config: ServeConfig,
    display: Display,
    make_launcher: Callable[[Listener], Launcher] = DirectLauncher,
) -> None:
    """Serve until a signal arrives. Raises PenstockError."""
    token = token_of(config)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES if hard_limit == resource.RLIM_INFINITY else min(FILES, hard_limit)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard_limit))
    with listening(config.host, config.port) as listener:
        sys.setswitchinterval(SWITCH_SECONDS)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(config, display, token, listener, make_launcher))


def token_of(config: NetworkOptions) -> str:
    """Return the token that requests must send; empty: none. Raises UsageError."""
    if not config.token_file:
        return ""
    path = config.token_file
    hint = "Give a file with a secret in it"
    token = text_named(path, "token-file", TOKEN_BYTES, hint).strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or any(c.isspace() for c in token):
        raise UsageError(
            f"--token-file {path}: the secret is too short, or not one ASCII word",
            hint=f"Put a secret of at least {SHORTEST_TOKEN} letters in it: openssl rand -hex 32",
        )
    return token


async def _serve(
    config: ServeConfig,
    display: Display,
    token: str,
    listener: socket.socket,
    make_launcher: Callable[[Listener], Launcher],
) -> None:
    """Serve until a signal arrives. Reopen the service when its model files have changed.
    Raises ModelChanged if they change again before any half was loaded."""
    answering = Answering(config, listener)
    answering.heed_signals()
    changes = 0
    try:
        while True:
            model = ModelWatch()
            try:
                async with contextlib.AsyncExitStack() as opened:
                    opening = opened.enter_async_context(
                        open_service(config, display, make_launcher)
                    )
                    if (service := await answering.unless_stopped(opening)) is None:
                        return
                    model = service.model
                    await answering.serve_app(Guard(app_of(service, token), service, token))
                    if await answering.wait_for_stop(model.changed):
                        service.drain()
                        display.print_line("shutting down: finishing the requests in progress")
                        await answering.end()
                        return
                    change = model.error
                    await _answered(service)
            except ModelChanged as error:
                change = error
            assert change is not None
            changes = 1 if model.was_loaded else changes + 1
            if changes > 1:
                raise second_change(change)
            display.print_line(f"{change.message}: the model is read again")
    finally:
        await answering.end()


async def _answered(service: Service) -> None:
    """Wait until the requests in progress are answered or refused."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while service.busy:
                await asyncio.sleep(0.05)


class Answering:
    """The HTTP server of a process, for any service."""

    def __init__(self, config: BatchOptions, listener: socket.socket) -> None:
        self._listener = listener
        self._app: ASGIApp | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._is_open = False
        self._server = UnsignalledServer(
            self._answer,
            CONNECTIONS_PER_REQUEST * config.max_queue,
            interface="asgi3",
            date_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=round(DRAIN_SECONDS) - 2,
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._app is not None
        await self._app(scope, receive, send)

    def heed_signals(self) -> None:
        """Stop at a signal from now on, and leave soon if the service is not open yet: its opening
        may block this thread and others."""
        loop = asyncio.get_running_loop()

        def stop(*_: object) -> None:
            loop.call_soon_threadsafe(self._stopping.set)
            if not self._is_open:
                leave = threading.Timer(LEAVE_SECONDS, os._exit, [0])
                leave.daemon = True
                leave.start()

        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, stop)

    async def unless_stopped(self, work: Coroutine[None, None, ResultT]) -> ResultT | None:
        """Return the result of `work`, which opens the service; None if a stop signal comes before.
        It is then cancelled."""
        self._is_open = False
        doing, stop = asyncio.create_task(work), asyncio.create_task(self._stopping.wait())
        await asyncio.wait({doing, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if doing.done():
            self._is_open = True
            return doing.result()
        doing.cancel()
        await asyncio.wait({doing})
        return None

    async def serve_app(self, app: ASGIApp) -> None:
        """Handle requests with this application from now on. Until then, the previous one refuses
        them."""
        self._app = app
        if self._serving is not None:
            return
        # Freeze the objects that exist now: scanning them took a sixth of the time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.01)
        print(f"{ADDRESS}{address_of(self._listener)}", flush=True)

    async def wait_for_stop(self, changed: asyncio.Event) -> bool:
        """Wait for a stop signal or for `changed`. Return whether a stop signal came."""
        assert self._serving is not None
        ending, change = (asyncio.create_task(e.wait()) for e in (self._stopping, changed))
        await asyncio.wait({self._serving, ending, change}, return_when=asyncio.FIRST_COMPLETED)
        stops = ending.done() or self._serving.done()
        for task in (ending, change):
            task.cancel()
        return stops

    async def end(self) -> None:
        """Finish the requests in progress, then stop."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
