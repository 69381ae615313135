"""Runs a server from its configuration to its end: listens, tells where, and drains."""

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from artifacts.errors import UsageError
from artifacts.regular import read_text
from flows.console.display import Display
from flows.job.launch import DirectLauncher, Launcher
from flows.serving.app import app_of
from flows.serving.config import ServeConfig
from flows.serving.guard import Guard
from flows.serving.listening import UnsignalledServer, address_of, listening
from flows.serving.opening import DRAIN_SECONDS, open_service
from flows.serving.patience import patient_protocol
from stages.process.stage_process import Listener

TOKEN_BYTES = 1 << 12
SHORTEST_TOKEN = 16
"""Letters of a token at the least: a shorter one is guessed."""
BACKLOG = 512
CONNECTIONS_A_REQUEST = 4
"""Connections that are open, for each request that may be answered at once."""
FILES = 1 << 16
"""Files that may be open, if the system allows so many: each connection is one."""
GARBAGE = 20_000
"""Objects after which it is looked for garbage; a request leaves little."""
SWITCH_SECONDS = 0.0005
"""Longest time for which a thread of the server keeps the others waiting: they read what halves
tell."""


def serve(
    config: ServeConfig,
    display: Display,
    make_launcher: Callable[[Listener], Launcher] = DirectLauncher,
) -> None:
    """Serve until it is asked to end. Raises PenstockError."""
    token = token_of(config)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    with listening(config.host, config.port) as listener:
        sys.setswitchinterval(SWITCH_SECONDS)
        with asyncio.Runner(loop_factory=_loops()) as runner:
            runner.run(_serve(config, display, token, listener, make_launcher))


def _loops() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes event loops: the faster ones, where they are installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made


def token_of(config: ServeConfig) -> str:
    """Return the token that requests must bring; empty: none. Raises UsageError."""
    if not config.token_file:
        return ""
    path = Path(config.token_file).expanduser()
    try:
        token = read_text(path, TOKEN_BYTES).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"--token-file {path} cannot be read: {reason}", hint="Give a file with a secret in it"
        ) from error
    if len(token) < SHORTEST_TOKEN or not token.isascii() or any(c.isspace() for c in token):
        raise UsageError(
            f"--token-file {path} holds no good secret",
            hint=f"Put one word of at least {SHORTEST_TOKEN} letters in it: openssl rand -hex 32",
        )
    return token


async def _serve(
    config: ServeConfig,
    display: Display,
    token: str,
    listener: socket.socket,
    make_launcher: Callable[[Listener], Launcher],
) -> None:
    loop = asyncio.get_running_loop()
    asked_to_end = asyncio.Event()
    async with open_service(config, display, make_launcher) as service:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked_to_end.set)
        app = Guard(app_of(service, token), service, token)
        server = UnsignalledServer(
            uvicorn.Config(
                app,
                http=patient_protocol(CONNECTIONS_A_REQUEST * config.max_queue),
                lifespan="off",
                ws="none",
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                date_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=round(DRAIN_SECONDS) - 2,
            )
        )
        # What is there by now stays: to look through it for garbage took a sixth of the time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        ending = asyncio.create_task(asked_to_end.wait())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        print(f"serving on {address_of(listener)}", flush=True)
        await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
        service.drain(DRAIN_SECONDS)
        display.say("ending: what was asked is answered first")
        server.should_exit = True
        await serving
        ending.cancel()
