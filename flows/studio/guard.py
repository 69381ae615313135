"""Lets in only the page of this studio: refuses other hosts, other sites and requests that lack its
token."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from artifacts.errors import PenstockError, UsageError
from artifacts.json_shapes import parse
from flows.reviewing.captions import EditRefused
from flows.serving.config import is_loopback, is_of_other_site
from flows.serving.refusals import JSON, json_answer
from flows.studio.roots import NoSuchFolder
from flows.studio.run_captions import Outdated

TOKEN = "x-penstock-token"
"""Header of every request that changes something."""
MAX_BODY_BYTES = 1 << 26
"""Largest request body in bytes: about 100,000 captions."""
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
Handler = Callable[[Request], Awaitable[Response]]


class ThisMachineOnly:
    """An ASGI middleware that accepts only Host headers of this machine, against DNS rebinding."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and not is_loopback(Headers(scope=scope).get("host", "")):
            app = json_answer({"error": "open it at 127.0.0.1 or localhost"}, 421, headers=SAFE)
        await app(scope, receive, send)


def guarded(handler: Handler, token: str) -> Handler:
    """Return a handler with protective headers and one-line errors. A POST needs the token in a
    header, and an Origin that is the Host."""

    async def handled(request: Request) -> Response:
        try:
            if request.method == "POST" and (why := _refusal(request, token)):
                return json_answer({"error": why}, 403, headers=SAFE)
            answer = await handler(request)
        except Outdated as error:
            answer = json_answer({"error": str(error), "now": error.now}, 409)
        except EditRefused as error:
            answer = json_answer({"error": str(error)}, 422)
        except PenstockError as error:
            body = {"error": error.message, "hint": error.hint}
            status = 422 if isinstance(error, UsageError) else 507
            answer = json_answer(body, 404 if isinstance(error, NoSuchFolder) else status)
        except ClientDisconnect:
            answer = Response(status_code=499)
        for name, value in SAFE.items():
            answer.headers.setdefault(name, value)
        return answer

    return handled


def _refusal(request: Request, token: str) -> str:
    """Return why a request that changes something is refused; empty if it is not."""
    headers = request.headers
    origin, host = headers.get("origin", ""), headers.get("host", "")
    if is_of_other_site(headers) or origin != f"http://{host}":
        return "request from another site"
    if not hmac.compare_digest(headers.get(TOKEN, "").encode(), token.encode()):
        return "the token is missing or wrong"
    return ""


async def json_of(request: Request) -> dict[str, Any]:
    """Return the object that a request sends as JSON. Raises EditRefused."""
    if request.headers.get("content-type") != JSON:
        raise EditRefused("the request is not JSON")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise EditRefused("too much at once")
    try:
        value = await asyncio.to_thread(lambda: parse(body.decode()))
    except ValueError as error:
        raise EditRefused(f"the request is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EditRefused("the request is not an object")
    return value
