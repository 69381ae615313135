"""Runs a review of a run's folder: starts the server, prints its address, and reports the changes
at the end."""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import mimetypes
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from artifacts.errors import PenstockError
from artifacts.json_shapes import parse
from artifacts.plurals import counted
from flows.console.lines import print_lines
from flows.results.recorded_command import is_own_command, user_secret
from flows.results.report.page import digest, part, server_policy, style_and_script
from flows.results.rounds import rounds_in, summary_json
from flows.results.thumbnails import thumbnail
from flows.reviewing.captions import EditRefused, ReviewedCaptions
from flows.reviewing.commands import PageCommand, confirmed, learning_of, rewriting_of
from flows.reviewing.teaching import PooledFeatures, teach_ranking
from flows.serving.hosts import is_loopback, is_of_other_site
from flows.serving.listening import UnsignalledServer, address_of, listening
from flows.serving.shown_media import shown_file

MAX_BODY_BYTES = 1 << 26
"""Largest request body in bytes: about 100,000 captions."""
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
SHOWN = ("image/", "video/", "audio/")
NUMBER = re.compile("[0-9]{1,9}")
THUMBNAILS_AT_ONCE = 2
FETCHED_AT_ONCE = 8
Handler = Callable[[Request], Awaitable[Response]]
PAGE = "flows.reviewing.page"
SCRIPTS = (
    *("saving.js", "choosing.js", "rows.js", "cards.js", "replacing.js"),
    *("learning.js", "keys.js", "page.js"),
)
"""Parts of the page's one program, in their order."""


@dataclass(kw_only=True, slots=True)
class Review:
    """What one review serves."""

    captions: ReviewedCaptions
    rewriting: PageCommand
    learning: PageCommand
    order: str
    """Order of the captions when the page is opened."""
    features: PooledFeatures = field(default_factory=PooledFeatures)

    def to_json(self) -> dict[str, Any]:
        """Return everything that the page shows of the last run. Raises EnvironmentFault."""
        before = self.captions.record["command"]
        self.captions.load()
        command = self.captions.record["command"]
        # A round of learning adds its adapter to the command.
        if command and command != before and is_own_command(command):
            self.rewriting = rewriting_of(command)
        return {
            **self.captions.to_json(),
            "order": self.order,
            "rounds": [*summary_json(rounds_in(self.captions.out))],
            "files": self.rewriting.to_json(),
            "learn": self.learning.to_json(),
        }

    def teach(self) -> dict[str, Any]:
        """Return the keys of the captions in the order `teach`. Raises EnvironmentFault."""
        return teach_ranking(self.captions, self.features)._asdict()


def review_app(review: Review, word: str) -> Starlette:
    """Return the application of a review below the path `word`."""
    routes = _Routes(review)
    return Starlette(
        routes=[
            Route("/favicon.ico", _safe(routes.no_icon)),
            Route(f"/{word}/", _safe(routes.page)),
            Route(f"/{word}/captions", _safe(routes.captions)),
            Route(f"/{word}/edits", _safe(routes.edit), methods=["POST"]),
            Route(f"/{word}/files", _safe(routes.files), methods=["GET", "POST"]),
            Route(f"/{word}/learn", _safe(routes.learn), methods=["GET", "POST"]),
            Route(f"/{word}/teach", _safe(routes.teach)),
            Route(f"/{word}/media/{{number}}", _safe(routes.media)),
            Route(f"/{word}/small/{{number}}", _safe(routes.small)),
        ],
        middleware=[Middleware(_ThisMachineOnly)],
    )


class _ThisMachineOnly:
    """An ASGI middleware that accepts only Host headers of this machine, against DNS rebinding."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and not is_loopback(Headers(scope=scope).get("host", "")):
            body = {"error": "open the review at 127.0.0.1 or localhost"}
            app = JSONResponse(body, 421, headers=SAFE)
        await app(scope, receive, send)


def _safe(handler: Handler) -> Handler:
    """Return a handler with protective headers and one-line errors."""

    async def handled(request: Request) -> Response:
        try:
            if request.method == "POST" and is_of_other_site(request.headers):
                return JSONResponse({"error": "request from another site"}, 403)
            answer = await handler(request)
        except EditRefused as error:
            answer = JSONResponse({"error": str(error)}, 422)
        except PenstockError as error:
            answer = JSONResponse({"error": str(error)}, 507)
        except ClientDisconnect:
            answer = Response(status_code=499)
        for name, value in SAFE.items():
            answer.headers.setdefault(name, value)
        return answer

    return handled


class _Routes:
    """The routes for clients with the access token."""

    def __init__(self, review: Review) -> None:
        self._review = review
        self._captions = review.captions
        style, script = style_and_script(PAGE, SCRIPTS)
        html = Template(part("page.html", PAGE)).substitute(style=style, script=script)
        self._page = html, server_policy([digest(script)], [digest(style)])
        self._one = asyncio.Lock()
        self._drawing = asyncio.Semaphore(THUMBNAILS_AT_ONCE)
        self._fetching = asyncio.Semaphore(FETCHED_AT_ONCE)

    async def no_icon(self, _: Request) -> Response:
        """Return an empty response for the icon that browsers request."""
        return Response(status_code=204)

    async def page(self, _: Request) -> Response:
        """Return the page."""
        html, policy = self._page
        return HTMLResponse(html, headers={"content-security-policy": policy})

    async def captions(self, _: Request) -> Response:
        """Return all captions of the last run with their edits."""
        async with self._one:
            return JSONResponse(await asyncio.to_thread(self._review.to_json))

    async def teach(self, _: Request) -> Response:
        """Return the captions in the order in which they teach most."""
        async with self._one:
            return JSONResponse(await asyncio.to_thread(self._review.teach))

    async def edit(self, request: Request) -> Response:
        """Apply an edit."""
        if request.headers.get("content-type") != "application/json":
            raise EditRefused("the edit is not JSON")
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise EditRefused("too many captions at once")
        try:
            edit_request = await asyncio.to_thread(lambda: parse(body.decode()))
        except ValueError as error:
            raise EditRefused(f"the edit is not JSON: {error}") from error
        async with self._one:
            return JSONResponse(await asyncio.to_thread(self._captions.apply, edit_request))

    async def files(self, request: Request) -> Response:
        """Return the state of the output rewrite. A POST request starts it."""
        return _state_of(self._review.rewriting, self._review.learning, request)

    async def learn(self, request: Request) -> Response:
        """Return the state of learning. A POST request starts it."""
        return _state_of(self._review.learning, self._review.rewriting, request)

    async def media(self, request: Request) -> Response:
        """Return a media file, or a range of it."""
        path = await self._local_path(request)
        if path is None:
            return JSONResponse({"error": "the file was moved or deleted"}, 404)
        kind = mimetypes.guess_type(path.name)[0] or ""
        # A foreign folder may name any file: never serve one that a browser would run as a page.
        plain = kind.startswith(SHOWN) and kind != "image/svg+xml"
        headers = {"content-security-policy": "sandbox; default-src 'none'"}
        return FileResponse(
            path,
            media_type=kind if plain else "application/octet-stream",
            content_disposition_type="inline",
            headers=headers,
        )

    async def small(self, request: Request) -> Response:
        """Return a thumbnail of a medium: of a video, its frame at `at` seconds."""
        path, at = await self._local_path(request), request.query_params.get("at", "")
        try:
            time = float(at) if at else None
        except ValueError:
            time = 0.0
        drawn = None
        if path is not None:
            async with self._drawing:
                drawn = await asyncio.to_thread(thumbnail, path, time)
        if drawn is None:
            return JSONResponse({"error": "no thumbnail of this file"}, 404)
        kept = {"cache-control": "private, max-age=600"}
        return Response(drawn, media_type="image/jpeg", headers=kept)

    async def _local_path(self, request: Request) -> Path | None:
        """Return the local path of a medium, fetched if it is remote; None if it is gone."""
        text, places = request.path_params["number"], self._captions.places
        number = int(text) if NUMBER.fullmatch(text) else len(places)
        if number >= len(places) or not places[number]:
            return None
        async with self._fetching:
            return await shown_file(places[number])


def _state_of(command: PageCommand, other: PageCommand, request: Request) -> Response:
    """Return the state of a command. A POST request starts it, unless the other one is running."""
    if request.method == "POST" and not other.to_json()["runs"]:
        command.start()
    return JSONResponse(command.to_json())


HOST = "127.0.0.1"
WORD = 32
"""Characters of a review's secret path."""
GRACE_SECONDS = 5


def review(out: Path, port: int, order: str) -> None:
    """Serve the captions of a run until a signal arrives. Raises UsageError, EnvironmentFault."""
    with (
        contextlib.closing(ReviewedCaptions(out)) as captions,
        listening(HOST, port) as listener,
    ):
        recorded = captions.record["command"]
        by_rule = "as_published" in (captions.record["plan"] or {})
        served = Review(
            captions=captions,
            rewriting=rewriting_of(confirmed(recorded, out), by_rule=by_rule),
            learning=learning_of(recorded, out, captions.released),
            order=order,
        )
        asyncio.run(_serve(served, word_of(out), listener))
        counts, rewriting = captions.counts(), served.rewriting
    changes = [f"{counts[name]:,} {name}" for name in ("corrected", "accepted", "rejected")]
    of_all = counted(len(captions.rows), "caption")
    print_lines(f"{', '.join(changes)} of {of_all} in {captions.journal.path}")
    if counts and rewriting.words and not rewriting.to_json()["said"]:
        print_lines(f"to write these edits into the outputs, run: {rewriting.line}")


def word_of(out: Path) -> str:
    """Return the secret path of a folder's review. It is stable, so that an open page continues
    after a restart of the server. Raises EnvironmentFault."""
    name = os.fsencode(out.absolute())
    return hmac.new(user_secret(), name, hashlib.sha256).hexdigest()[:WORD]


async def _serve(served: Review, word: str, listener: socket.socket) -> None:
    server = UnsignalledServer(
        uvicorn.Config(
            review_app(served, word),
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
    address = f"{address_of(listener)}/{word}/"
    print_lines(f"review at {address}", "Ctrl-C stops it; every edit is saved")
    await serving
    await served.rewriting.end()
    await served.learning.end(interrupt=True)  # the next one continues
