"""Runs the studio: prints its address, and answers its page until a signal arrives."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.store import local_folder
from artifacts.texts.edits import DECISIONS
from artifacts.wording import counted
from flows.commands.review.seen_captions import Trained
from flows.core.console.lines import print_lines
from flows.core.media.media_file import writable
from flows.interfaces.serve.listening import UnsignalledServer, address_of, listening
from flows.interfaces.serve.same_site import OWN_HOSTS
from flows.interfaces.studio.answers_routes import AnswersRoutes, answers_folder
from flows.interfaces.studio.captions_routes import CaptionsRoutes
from flows.interfaces.studio.guard import guarded, not_here, proxy_origin
from flows.interfaces.studio.roots import is_shown
from flows.interfaces.studio.runs import run_id
from flows.interfaces.studio.session import ConfigOf, Studio
from flows.interfaces.studio.start_routes import StartRoutes
from flows.interfaces.studio.values import line_of
from flows.outputs.folder.trust import belief_in, is_trusted
from flows.outputs.record.run_read import load_record

HOST = "127.0.0.1"
GRACE_SECONDS = 2
CONNECTIONS = 256
"""Open connections of pages, beyond which idle ones are closed."""


@dataclass(frozen=True, slots=True)
class PageAddress:
    """Where browsers reach the page."""

    port: int
    """0: any free port."""
    behind: str = ""
    """Address of the proxy that passes the page on; empty: there is none."""

    @property
    def proxy(self) -> str:
        """Return the origin of the proxy. Raises UsageError."""
        return self.behind and proxy_origin(self.behind)


def studio(
    folder: Path,
    out: Path,
    roots: list[str],
    store: str,
    address: PageAddress,
    config_of: ConfigOf,
    *,
    trust: bool = False,
) -> None:
    """Serve the studio until a signal arrives. Raises UsageError, EnvironmentFault."""
    proxy = address.proxy
    store = store if not store or "://" in store else str(Path(store).absolute())
    with listening(HOST, address.port) as listener:
        folder, out = folder.absolute(), out.absolute()
        for named in (str(folder), str(out), *map(os.path.realpath, roots)):
            if not is_shown(named):
                raise UsageError(
                    f"{writable(str(named))}: the page cannot show a name that is not UTF-8",
                    hint="Rename the folder",
                )
        opened = Studio(
            folder=folder,
            out=out,
            store=store,
            config_of=config_of,
            more_roots=roots,
            trust=trust or is_trusted(out, store),
            proxy=proxy,
        )
        with contextlib.closing(opened):
            if refusal := opened.queue.refusal:
                raise EnvironmentFault(refusal, hint="Give an --out that you may write to")
            _serve(opened, listener, "studio", "")


def review(
    out: Path,
    address: PageAddress,
    order: str,
    config_of: ConfigOf,
    trained: Trained,
    *,
    trust: bool = False,
) -> None:
    """Serve the captions of one run until a signal arrives. Raises UsageError,
    EnvironmentFault."""
    proxy = address.proxy
    load_record(out)  # says so if there was no run
    out = out.absolute()
    with listening(HOST, address.port) as listener:
        trust = trust or is_trusted(out)
        belief = belief_in(out, trust=trust)
        store = belief.store
        opened = Studio(
            folder=out,
            out=out,
            store=store if store and local_folder(store) is not None else "",
            config_of=config_of,
            order=order,
            trained=trained,
            trust=trust,
            keeps_thumbnails=belief.is_own,
            proxy=proxy,
        )
        with contextlib.closing(opened):
            if answers_folder(out) == out:
                _serve(opened, listener, "review", "answers/")
                return
            captions = opened.of(run_id(out))
            reviewed = captions.reviewed
            refusal = reviewed.journal.refusal or opened.queue.refusal
            if refusal:
                print_lines(f"note: {refusal}", to=sys.stderr)
            _serve(opened, listener, "review", f"run/{run_id(out)}/")
            counts = reviewed.counts()
    changes = [f"{counts[name]:,} {name}" for name in DECISIONS]
    edited = any(map(counts.get, DECISIONS))
    of_all = counted(counts["captions"], "caption")
    print_lines(f"{', '.join(changes)} of {of_all} in {reviewed.journal.path}")
    with contextlib.suppress(UsageError):
        written = any(run.kind in ("write", "learn") for run in opened.queue.runs)
        if edited and not written and not refusal:
            words = opened.command(out).words
            print_lines(f"to write these edits into the outputs, run: {line_of(words)}")


def studio_app(opened: Studio) -> Starlette:
    """Return the application below the path of its token."""
    start, captions, answers = StartRoutes(opened), CaptionsRoutes(opened), AnswersRoutes(opened)
    run = "/run/{run}"
    get: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/": start.page,
        f"{run}/": start.page,
        "/answers/": answers.page,
        "/answers/rows": answers.rows,
        "/answers/probes/{probe:int}": answers.of_probe,
        "/answers/small/{row:int}": answers.small,
        "/start": start.choices,
        "/files": start.files,
        "/below": start.below,
        "/small": start.small,
        "/model": start.model,
        "/runs": start.runs,
        "/log/{id}": start.log,
        "/sifted/{id}": start.sifted,
        f"{run}/captions": captions.captions,
        f"{run}/history": captions.history,
        f"{run}/again": captions.answers,
        f"{run}/sets": captions.sets,
        f"{run}/seen": captions.seen,
        f"{run}/media/{{number}}": captions.media,
        f"{run}/small/{{number}}": captions.small,
    }
    post: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/answers/decisions": answers.decide,
        "/words": start.words,
        "/plan": start.plan,
        "/upload": start.upload,
        "/presets": start.keep_preset,
        "/runs": start.begin,
        "/sift": start.sift,
        "/sifted/{id}": start.choose,
        "/runs/{id}": start.change,
        f"{run}/edits": captions.edit,
        f"{run}/again": captions.ask,
        f"{run}/write": captions.write,
        f"{run}/learn": captions.learn,
        f"{run}/follow": captions.follow,
    }
    routes = [
        Route(
            f"/{opened.token}{path}", guarded(handler, opened.token, opened.proxy), methods=[method]
        )
        for method, handlers in (("GET", get), ("POST", post))
        for path, handler in handlers.items()
    ]
    own_hosts = [*OWN_HOSTS, *filter(None, [urlsplit(opened.proxy).hostname])]
    only_own = Middleware(TrustedHostMiddleware, allowed_hosts=own_hosts, www_redirect=False)
    unknown = {404: not_here, 405: not_here}
    return Starlette(routes=routes, middleware=[only_own], exception_handlers=unknown)


def _serve(opened: Studio, listener: socket.socket, name: str, path: str) -> None:
    opened.queue.start()
    # Reading 50,000 captions takes seconds: they are there when the page asks.
    threading.Thread(target=opened.read_ahead, daemon=True).start()
    places = [place for place in (address_of(listener), opened.proxy) if place]
    lines = [f"{name} at {place}/{opened.token}/{path}" for place in places]
    if opened.proxy.startswith("http://"):
        lines.append(f"note: the secret in {opened.proxy}/… travels openly; https:// hides it")
    asyncio.run(serve(studio_app(opened), listener, *lines))


async def serve(app: Starlette, listener: socket.socket, *lines: str) -> None:
    """Serve an application until a signal arrives, and print lines with its addresses."""
    server = UnsignalledServer(app, CONNECTIONS, timeout_graceful_shutdown=GRACE_SECONDS)

    def end() -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print_lines(*lines, "Ctrl-C stops it; every edit is saved, and runs go on")
    await serving
