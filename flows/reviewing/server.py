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
import shlex
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
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
from flows.console.lines import is_terminal, print_lines, printable
from flows.results.recorded_command import COMMAND, is_own_command, repeated, user_secret
from flows.results.report.page import digest, part, server_policy, style_and_script
from flows.results.run_record import RUN_RECORD
from flows.results.thumbnails import thumbnail
from flows.reviewing.captions import EditRefused, ReviewedCaptions
from flows.serving.hosts import is_loopback, is_of_other_site
from flows.serving.listening import UnsignalledServer, address_of, listening
from flows.serving.shown_media import shown_file

LONGEST_SHOWN = 2000
"""Largest number of characters of a command that is shown for confirmation."""
KEPT = 400
"""Characters of the command's last output line that are shown."""


def confirmed(command: Mapping[str, Any] | None, out: Path) -> Mapping[str, Any] | None:
    """Return the command of a run's record if it may run: this user ran it on this machine, or
    confirms it at the terminal. Raises UsageError, EnvironmentFault."""
    if not command or command["words"][:1] != [COMMAND] or is_own_command(command):
        return command if command and command["words"][:1] == [COMMAND] else None
    line = OutputRewrite(command).line
    shown = printable(line)
    can_ask = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if not can_ask or len(line) > LONGEST_SHOWN:  # `shown` would lack the middle of a longer one
        print_lines(
            f"note: Write files is off: {out / RUN_RECORD} was not written by a command of this "
            f"user on this machine. To write files, run it yourself: `{shown[:LONGEST_SHOWN]}`",
            to=sys.stderr,
        )
        return None
    print_lines(f"{out / RUN_RECORD} was not written by a command of this user on this machine.")
    print_lines("Write files in the browser would run this:", f"  {shown}")
    try:
        return command if input("May it? [y/N] ").strip().lower() in ("y", "yes") else None
    except EOFError:
        return None


class OutputRewrite:
    """The command of a folder's last run, and the result of running it again."""

    def __init__(self, command: Mapping[str, Any] | None, *, by_rule: bool = True) -> None:
        """Take the command from `run.json`, or None if it has none. A command recorded before
        `--as-published` had a default rule continues as stock."""
        self.words = repeated(command["words"], by_rule=by_rule) if command else []
        self._folder = command["folder"] if command else ""
        self._task: asyncio.Task[None] | None = None
        self._last_line, self._failed = "", False

    def to_json(self) -> dict[str, Any]:
        """Return whether it can run, is running and has failed, and its last output line."""
        return {
            "can": bool(self.words),
            "runs": self._task is not None and not self._task.done(),
            "failed": self._failed,
            "said": self._last_line,
        }

    @property
    def line(self) -> str:
        """Return the command as typed in a shell."""
        there = "" if self._folder == os.getcwd() else f"cd {shlex.quote(self._folder)} && "
        return f"{there}penstock {shlex.join(self.words)}"

    def start(self) -> None:
        """Start the command unless it is running."""
        if self.words and not self.to_json()["runs"]:
            self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Wait until the command ends."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "flows.cli.main", *self.words),
                cwd=self._folder,
                env={**os.environ, "NO_COLOR": "1"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate()
        except OSError as error:
            self._last_line, self._failed = f"{self._folder}: {error.strerror or error}", True
            return
        lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
        self._last_line = lines[-1][:KEPT] if lines else ""
        # Files that failed before fail again; all others are written.
        self._failed = process.returncode not in (0, 1)


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
SCRIPTS = ("saving.js", "choosing.js", "rows.js", "cards.js", "replacing.js", "keys.js", "page.js")
"""Parts of the page's one program, in their order."""


def review_app(captions: ReviewedCaptions, rewriting: OutputRewrite, word: str) -> Starlette:
    """Return the application of a review below the path `word`."""
    routes = _Routes(captions, rewriting)
    return Starlette(
        routes=[
            Route("/favicon.ico", _safe(routes.no_icon)),
            Route(f"/{word}/", _safe(routes.page)),
            Route(f"/{word}/captions", _safe(routes.captions)),
            Route(f"/{word}/edits", _safe(routes.edit), methods=["POST"]),
            Route(f"/{word}/files", _safe(routes.files), methods=["GET", "POST"]),
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

    def __init__(self, captions: ReviewedCaptions, rewriting: OutputRewrite) -> None:
        self._captions = captions
        self._rewriting = rewriting
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
            await asyncio.to_thread(self._captions.load)
            return JSONResponse({**self._captions.to_json(), "files": self._rewriting.to_json()})

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
        if request.method == "POST":
            self._rewriting.start()
        return JSONResponse(self._rewriting.to_json())

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


HOST = "127.0.0.1"
WORD = 32
"""Characters of a review's secret path."""
GRACE_SECONDS = 5


def review(out: Path, port: int) -> None:
    """Serve the captions of a run until a signal arrives. Raises UsageError, EnvironmentFault."""
    with (
        contextlib.closing(ReviewedCaptions(out)) as captions,
        listening(HOST, port) as listener,
    ):
        command = confirmed(captions.record["command"], out)
        by_rule = "as_published" in (captions.record["plan"] or {})
        rewriting = OutputRewrite(command, by_rule=by_rule)
        asyncio.run(_serve(captions, rewriting, word_of(out), listener))
        counts = captions.counts()
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


async def _serve(
    captions: ReviewedCaptions, rewriting: OutputRewrite, word: str, listener: socket.socket
) -> None:
    server = UnsignalledServer(
        uvicorn.Config(
            review_app(captions, rewriting, word),
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
    await rewriting.end()
