"""Runs the studio: prints its address, and answers its page until a signal arrives."""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from artifacts.store import open_store
from artifacts.store_folders import local_folder
from flows.console.lines import print_lines
from flows.options.model import default_store
from flows.results.recorded_command import user_secret
from flows.serving.listening import UnsignalledServer, address_of, listening
from flows.studio.captions_routes import CaptionsRoutes
from flows.studio.guard import ThisMachineOnly, guarded
from flows.studio.roots import Roots
from flows.studio.run_captions import RunCaptions
from flows.studio.runs import RunQueue
from flows.studio.start_routes import StartRoutes
from flows.studio.steps import ConfigOf
from flows.studio.thumbs import Thumbnails

HOST = "127.0.0.1"
WORD = 32
"""Characters of the studio's token."""
GRACE_SECONDS = 2


@dataclass(kw_only=True, slots=True)
class Studio:
    """What one studio works on."""

    folder: Path
    """Folder of media; commands run in it."""
    out: Path
    """Output folder of runs, with the queue."""
    roots: Roots
    store: str
    """Store that was given at start; empty: the default."""
    queue: RunQueue
    thumbnails: Thumbnails
    config_of: ConfigOf
    token: str
    captions: dict[str, RunCaptions] = field(default_factory=dict)
    """Id of a run's folder → its captions."""

    @property
    def fixed(self) -> list[str]:
        """Return the words of every command that the page does not choose."""
        return [f"--store={self.store}"] if self.store else []

    def close(self) -> None:
        """Close the queue and the journals. Runs go on."""
        self.queue.close()
        self.thumbnails.flush()
        for captions in self.captions.values():
            captions.close()


def studio(
    folder: Path, out: Path, roots: list[str], store: str, port: int, config_of: ConfigOf
) -> None:
    """Serve the studio until a signal arrives. Raises UsageError, EnvironmentFault."""
    folder, out = folder.absolute(), out.absolute()
    url = store or default_store()
    local = local_folder(url)
    places: list[str | Path] = [folder, out, *([local] if local is not None else []), *roots]
    with listening(HOST, port) as listener:
        opened = Studio(
            folder=folder,
            out=out,
            roots=Roots(places),
            store=store and str(Path(store).absolute() if "://" not in store else store),
            queue=RunQueue(out, folder),
            thumbnails=Thumbnails(open_store(url)),
            config_of=config_of,
            token=token_of(out),
        )
        with contextlib.closing(opened):
            opened.queue.start()
            asyncio.run(serve(studio_app(opened), listener, f"/{opened.token}/"))


def token_of(out: Path) -> str:
    """Return the token of a folder's studio. It is stable, so that an open page continues after a
    restart of the server. Raises EnvironmentFault."""
    name = b"studio " + os.fsencode(os.path.realpath(out))
    return hmac.new(user_secret(), name, hashlib.sha256).hexdigest()[:WORD]


def studio_app(opened: Studio) -> Starlette:
    """Return the application below the path of its token."""
    start, captions = StartRoutes(opened), CaptionsRoutes(opened)
    run = "/run/{run}"
    get: dict[str, Callable[..., Any]] = {
        "/": start.page,
        f"{run}/": start.page,
        "/start": start.choices,
        "/files": start.files,
        "/runs": start.runs,
        "/log/{id}": start.log,
        f"{run}/captions": captions.captions,
        f"{run}/history": captions.history,
        f"{run}/again": captions.answers,
        f"{run}/sets": captions.sets,
        f"{run}/media/{{number}}": captions.media,
        f"{run}/small/{{number}}": captions.small,
    }
    post: dict[str, Callable[..., Any]] = {
        "/words": start.words,
        "/plan": start.plan,
        "/upload": start.upload,
        "/presets": start.keep_preset,
        "/runs": start.begin,
        "/runs/{id}": start.change,
        f"{run}/edits": captions.edit,
        f"{run}/again": captions.ask,
        f"{run}/write": captions.write,
    }
    routes = [
        Route(f"/{opened.token}{path}", guarded(handler, opened.token), methods=[method])
        for method, handlers in (("GET", get), ("POST", post))
        for path, handler in handlers.items()
    ]
    icon = Route("/favicon.ico", guarded(start.no_icon, opened.token))
    return Starlette(routes=[icon, *routes], middleware=[Middleware(ThisMachineOnly)])


async def serve(app: Starlette, listener: socket.socket, path: str) -> None:
    """Serve an application until a signal arrives, and print its address."""
    server = UnsignalledServer(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )

    def end() -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print_lines(f"studio at {address_of(listener)}{path}", "Ctrl-C ends it; runs go on")
    await serving
