"""The application of a review: its routes and answers. It knows not what a caption is.

All routes lie below a word that nobody can guess, so neither another user of the machine nor a page
of another site finds them, and a browser needs no cookie.
"""

import asyncio
import mimetypes
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from artifacts.errors import PenstockError
from artifacts.shapes import parse
from flows.results.thumbnails import thumbnail
from flows.reviewing.captions import EditRefused, ReviewedCaptions
from flows.reviewing.page.page import review_page
from flows.reviewing.rewriting import Rewriting
from flows.serving.hosts import is_loopback
from flows.serving.shown_media import shown_file

MOST_BYTES = 1 << 26
"""Bytes of what a page sends: the words of some 100,000 captions."""
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
SHOWN = ("image/", "video/", "audio/")
NUMBER = re.compile("[0-9]{1,9}")
PICTURES_AT_ONCE = 2
FETCHED_AT_ONCE = 8
Handler = Callable[[Request], Awaitable[Response]]


def review_app(captions: ReviewedCaptions, rewriting: Rewriting, word: str) -> Starlette:
    """Return the application of a review below `word`."""
    routes = _Routes(captions, rewriting)
    return Starlette(
        routes=[
            Route("/favicon.ico", _safe(routes.no_icon)),
            Route(f"/{word}/", _safe(routes.page)),
            Route(f"/{word}/captions", _safe(routes.told)),
            Route(f"/{word}/edits", _safe(routes.edit), methods=["POST"]),
            Route(f"/{word}/files", _safe(routes.files), methods=["GET", "POST"]),
            Route(f"/{word}/media/{{number}}", _safe(routes.media)),
            Route(f"/{word}/small/{{number}}", _safe(routes.small)),
        ],
        middleware=[Middleware(_ThisMachineOnly)],
    )


class _ThisMachineOnly:
    """An application that is asked as this machine alone, and not by a name that another site's
    page had bound to its address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and not is_loopback(Headers(scope=scope).get("host", "")):
            told = {"error": "open the review at 127.0.0.1 or localhost"}
            app = JSONResponse(told, 421, headers=SAFE)
        await app(scope, receive, send)


def _safe(handler: Handler) -> Handler:
    """Return a handler whose answers no other page may use, and whose errors are one line."""

    async def handled(request: Request) -> Response:
        try:
            if request.method == "POST" and _is_foreign(request):
                return JSONResponse({"error": "this was asked by another page"}, 403)
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


def _is_foreign(request: Request) -> bool:
    """Return whether a page of another site asks; what is no browser says nothing of that."""
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    host = request.headers.get("host")
    return origin is not None and origin not in (f"http://{host}", f"https://{host}")


class _Routes:
    """What is answered to whom knows the word."""

    def __init__(self, captions: ReviewedCaptions, rewriting: Rewriting) -> None:
        self._captions = captions
        self._rewriting = rewriting
        self._page = review_page()
        self._one = asyncio.Lock()
        self._drawing = asyncio.Semaphore(PICTURES_AT_ONCE)
        self._fetching = asyncio.Semaphore(FETCHED_AT_ONCE)

    async def no_icon(self, _: Request) -> Response:
        """Return nothing, which browsers ask for."""
        return Response(status_code=204)

    async def page(self, _: Request) -> Response:
        """Return the page."""
        html, policy = self._page
        return Response(
            html, media_type="text/html; charset=utf-8", headers={"content-security-policy": policy}
        )

    async def told(self, _: Request) -> Response:
        """Return all captions, as the last run wrote them, with their edits."""
        async with self._one:
            await asyncio.to_thread(self._captions.load)
            return JSONResponse({**self._captions.told(), "files": self._rewriting.told()})

    async def edit(self, request: Request) -> Response:
        """Take in what a person did."""
        if request.headers.get("content-type") != "application/json":
            raise EditRefused("an edit is JSON")
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                raise EditRefused("too many captions at once")
        try:
            asked = await asyncio.to_thread(lambda: parse(body.decode()))
        except ValueError as error:
            raise EditRefused(f"an edit is JSON: {error}") from error
        async with self._one:
            return JSONResponse(await asyncio.to_thread(self._captions.do, asked))

    async def files(self, request: Request) -> Response:
        """Say how the writing of the outputs stands; begin it where that is asked."""
        if request.method == "POST":
            self._rewriting.start()
        return JSONResponse(self._rewriting.told())

    async def media(self, request: Request) -> Response:
        """Return the file of a medium, or a part of it."""
        path = await self._near(request)
        if path is None:
            return JSONResponse({"error": "the file is not where it was"}, 404)
        kind = mimetypes.guess_type(path.name)[0] or ""
        # A folder from somebody else may name any file: what could run as a page never does.
        plain = kind.startswith(SHOWN) and kind != "image/svg+xml"
        headers = {"content-security-policy": "sandbox; default-src 'none'"}
        return FileResponse(
            path,
            media_type=kind if plain else "application/octet-stream",
            content_disposition_type="inline",
            headers=headers,
        )

    async def small(self, request: Request) -> Response:
        """Return a small picture of a medium: of a video, its frame at `at` seconds."""
        path, at = await self._near(request), request.query_params.get("at", "")
        try:
            time = float(at) if at else None
        except ValueError:
            time = 0.0
        drawn = None
        if path is not None:
            async with self._drawing:
                drawn = await asyncio.to_thread(thumbnail, path, time)
        if drawn is None:
            return JSONResponse({"error": "there is no picture of this file"}, 404)
        kept = {"cache-control": "private, max-age=600"}
        return Response(drawn, media_type="image/jpeg", headers=kept)

    async def _near(self, request: Request) -> Path | None:
        """Return the path of a medium, fetched if it lies far away; None where it is not there."""
        told, places = request.path_params["number"], self._captions.places
        number = int(told) if NUMBER.fullmatch(told) else len(places)
        if number >= len(places) or not places[number]:
            return None
        async with self._fetching:
            return await shown_file(places[number])
