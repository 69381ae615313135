"""Middleware before every route: access control, load limits, and request timing.

A request is refused before its body is read, because reading bodies is most of the cost of an
overload.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from http import HTTPStatus
from typing import TypeVar

from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Send

from flows.core.options.serving import LOOPBACK
from flows.interfaces.serve.access_log import AccessLog
from flows.interfaces.serve.refusals import HttpRefusal, json_bytes, unavailable
from flows.interfaces.serve.same_site import OWN_HOSTS, is_of_other_site
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.tokens import Tokens, sender_of

T = TypeVar("T")
Headers = Sequence[tuple[bytes, bytes]]
OPEN = ("/", "/healthz", "/readyz", "/favicon.ico")
"""Paths that need no token."""
SCHEMA = "/openapi.json"
LIMITED = "/v1/"
ALSO_LIMITED = ("/v1/search",)
"""Paths that use a half with any method."""
SENDER = "sender"
"""Field of a request's scope: the name of its token."""
LOG = logging.getLogger("uvicorn.error")
CONTENT = (b"content-type", b"content-length")
SHUTTING_DOWN = ("the server is shutting down", "Ask again in a while")
READ_PAST = 1 << 20
"""Largest body in bytes that is read although its request is refused."""
SAFE = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; sandbox",
    b"cache-control": b"no-store",
}
"""Default headers of every response."""


class Guard:
    """ASGI middleware around an application."""

    def __init__(
        self, app: ASGIApp, service: Service, tokens: Tokens, log: AccessLog | None = None
    ) -> None:
        """Admit requests with one of the tokens, which may change, and log them."""
        self._app = app
        hosts = OWN_HOSTS if service.config.host in LOOPBACK else ["*"]
        self._for_own_hosts = TrustedHostMiddleware(app, hosts, www_redirect=False)
        self._service = service
        self._tokens = tokens
        self._log = log or AccessLog()
        self._gap = 1.0
        """Moving average of the seconds between two answers."""
        self._last = time.monotonic()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        began, status, path, size = time.monotonic(), 500, scope["path"], 0
        started = complete = False
        plain: Message | None = None
        """The start of a refusal by a library, which is sent as JSON when its text is known."""

        async def send_safely(message: Message) -> None:
            nonlocal status, started, complete, plain, size
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower(): value for name, value in message["headers"]}
                safe = [(name, value) for name, value in SAFE.items() if name not in given]
                message["headers"] = [*message["headers"], *safe]
                if status >= 400 and given.get(b"content-type", b"").startswith(b"text/plain"):
                    plain = message
                    return
            elif plain is not None:
                why = HttpRefusal(status, message["body"].decode() or HTTPStatus(status).phrase)
                more = [header for header in plain["headers"] if header[0] not in CONTENT]
                await refuse(why, path, send, closing=False, more=more)
                complete = True
                return
            started = True
            size += len(message.get("body", b""))
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        limited = (path in ALSO_LIMITED or scope["method"] == "POST") and path.startswith(LIMITED)
        try:
            self._admit(scope, limited=limited)
        except HttpRefusal as why:
            await refuse(why, path, send_safely, closing=not _is_small(scope))
            self._note(scope, status, size, time.monotonic() - began)
            return
        self._service.busy += limited
        try:
            await self._app_for(scope)(scope, receive, send_safely)
        except asyncio.CancelledError:  # the server must end, and does not wait any longer
            if not started:
                await refuse(unavailable(*SHUTTING_DOWN), path, send_safely, closing=True)
        except Exception:
            # The server closes a connection after an exception; a complete answer needs none.
            if not complete:
                raise
            LOG.exception("Request failed: internal server error")
        finally:
            self._service.busy -= limited
            now = time.monotonic()
            if limited:
                # A batch answers its requests at once, so average the gaps and not the rates.
                self._gap += 0.05 * (min(1.0, now - self._last) - self._gap)
                self._last = self._service.last_request = now
            self._note(scope, status, size, time.monotonic() - began)

    def _note(self, scope: Message, status: int, size: int, seconds: float) -> None:
        """Count and log an answer."""
        self._service.metrics.answered(route_of(scope), status, seconds)
        sender, path = scope.get(SENDER, ""), scope.get("raw_path") or scope["path"].encode()
        self._log.note(sender, scope["method"], path, status, size, seconds)

    def _app_for(self, scope: Message) -> ASGIApp:
        """Return the application that answers a request. A client of HTTP/1.0 need not send Host.
        Every browser sends it."""
        is_named = any(name == b"host" for name, _ in scope["headers"])
        return self._for_own_hosts if is_named else self._app

    def _admit(self, scope: Message, *, limited: bool) -> None:
        """Raise HttpRefusal for a request that must not be read."""
        headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in scope["headers"]}
        service, path = self._service, scope["path"]
        if path != "/" and is_of_other_site(headers):
            raise HttpRefusal(403, "request from another site", "Open the page of this server")
        sender = sender_of(self._tokens, headers)
        scope[SENDER] = sender or ""
        if self._tokens and path not in OPEN and sender is None:
            raise HttpRefusal(
                401,
                "missing or wrong token",
                "Send the header Authorization: Bearer TOKEN",
                code="invalid_api_key",
            )
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise HttpRefusal(
                415,
                f"the body has a coding that is not read ({coding[:80]})",
                "Send it without Content-Encoding",
            )
        if limited and (change := service.model.error) is not None:
            service.metrics.refused.labels("draining").inc()
            raise unavailable(f"reloading the model: {change.message}", "Ask again in a while")
        if limited and service.draining:
            service.metrics.refused.labels("draining").inc()
            raise unavailable(*SHUTTING_DOWN)
        if limited and service.busy >= service.config.max_queue:
            service.metrics.refused.labels("full").inc()
            wait = max(1.0, service.busy * self._gap)
            raise HttpRefusal(429, "too many waiting requests", "Ask again later", min(wait, 60.0))


def route_of(scope: Message) -> str:
    """Return the route pattern of a request, for counting."""
    route = scope.get("route")
    path = getattr(route, "path", "")
    known = scope["path"] in (*OPEN, SCHEMA)
    return path or (str(scope["path"]) if known else "refused")


async def refuse(
    why: HttpRefusal, path: str, send: Send, *, closing: bool, more: Headers = ()
) -> None:
    """Send a refusal in the form of the requested path, with `more` headers. With `closing`, close
    the connection."""
    body = json_bytes(why.to_json(path))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *more,
        *([(b"connection", b"close")] if closing else []),
        *extra_headers(why),
    ]
    await send({"type": "http.response.start", "status": why.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_small(scope: Message) -> bool:
    """Return whether reading the rest of a body costs less than a new connection. A client that
    is cut off while sending may also miss the refusal."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    return b"transfer-encoding" not in headers and length.isdigit() and int(length) <= READ_PAST


def extra_headers(why: HttpRefusal) -> list[tuple[bytes, bytes]]:
    """Return the additional headers of a refusal."""
    if why.status == 401:
        return [(b"www-authenticate", b"Bearer")]
    return [] if why.retry is None else [(b"retry-after", str(max(1, round(why.retry))).encode())]


async def in_time(receive: Receive, work: Awaitable[T], seconds: float) -> T:
    """Return the result of `work`. Cancel it if the client disconnects or time runs out. Raises
    HttpRefusal."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        done, _ = await asyncio.wait(
            {doing, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
    except asyncio.CancelledError:
        doing.cancel()
        raise
    finally:
        leaving.cancel()
    if doing in done:
        return doing.result()
    doing.cancel()
    if leaving in done:
        raise HttpRefusal(499, "the client has disconnected")
    raise HttpRefusal(504, f"no answer within {seconds:.0f} s", "Ask again, or for less at once")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
