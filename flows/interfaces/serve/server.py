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
from typing import NamedTuple, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from artifacts.errors import ModelChanged, PenstockError
from artifacts.packages import loop_factory
from flows.core.console.display import Display
from flows.core.job.replan import second_change
from flows.core.machine.launch import DirectLauncher, Launcher
from flows.core.options.serving import ADDRESS, ServeConfig
from flows.interfaces.serve.access_log import AccessLog
from flows.interfaces.serve.app import app_of
from flows.interfaces.serve.guard import Guard
from flows.interfaces.serve.half_worker import ModelWatch
from flows.interfaces.serve.listening import UnsignalledServer, address_of, listening
from flows.interfaces.serve.startup import DRAIN_SECONDS, Service, open_service
from flows.interfaces.serve.tokens import Tokens, read_tokens
from stages.process.stage_process import Listener

BACKLOG = 512
CONNECTIONS_PER_REQUEST = 4
"""Open connections per request that may be handled at once."""
FILES = 1 << 16
"""Limit of open files, if the system allows it. Each connection is one."""
GARBAGE = 20_000
"""Allocated objects that trigger a garbage collection. A request leaves few."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
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
    tokens = read_tokens(config.token_file)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES if hard_limit == resource.RLIM_INFINITY else min(FILES, hard_limit)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard_limit))
    with (
        contextlib.closing(AccessLog(config.access_log)) as log,
        listening(config.host, config.port) as listener,
    ):
        sys.setswitchinterval(SWITCH_SECONDS)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(config, display, Admission(tokens, log), listener, make_launcher))


class Admission(NamedTuple):
    """Who may send requests, and the log of them."""

    tokens: Tokens
    log: AccessLog


async def _serve(
    config: ServeConfig,
    display: Display,
    admission: Admission,
    listener: socket.socket,
    make_launcher: Callable[[Listener], Launcher],
) -> None:
    """Serve until a signal arrives. Reopen the service when its model files have changed.
    Raises ModelChanged if they change again before any half was loaded."""
    answering = Answering(config, listener)
    answering.heed_signals(config.token_file, admission.tokens, display)
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
                    app = app_of(service, admission.tokens)
                    await answering.serve_app(Guard(app, service, *admission))
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


def _read_again(token_file: str, tokens: Tokens, display: Display) -> None:
    """Replace the tokens by those of their file, unless they cannot be read, or there is none."""
    if not token_file:
        return display.print_line("SIGHUP: without --token-file there is nothing to read again")
    try:
        read = read_tokens(token_file)
    except PenstockError as error:
        return display.print_line(f"the tokens stay as they were: {error}")
    tokens.clear()
    tokens.update(read)
    display.print_line(f"{token_file} was read again")


class Answering:
    """The HTTP server of a process, for any service."""

    def __init__(self, config: ServeConfig, listener: socket.socket) -> None:
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

    def heed_signals(self, token_file: str, tokens: Tokens, display: Display) -> None:
        """Stop at a signal from now on, and leave soon if the service is not open yet: its opening
        may block this thread and others. SIGHUP reads the file of tokens again, unless it comes
        because the terminal was closed."""
        loop, on_terminal = asyncio.get_running_loop(), os.isatty(0)

        def stop(*_: object) -> None:
            loop.call_soon_threadsafe(self._stopping.set)
            if not self._is_open:
                leave = threading.Timer(LEAVE_SECONDS, os._exit, [0])
                leave.daemon = True
                leave.start()

        def read_again(*_: object) -> None:
            if on_terminal and not os.isatty(0):
                return stop()
            loop.call_soon_threadsafe(_read_again, token_file, tokens, display)

        signal.signal(signal.SIGHUP, read_again)
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
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
