"""Lets in only the page of this studio: refuses other sites and requests that lack its token. A
proxy that passes the page on is a host that the user names."""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from artifacts.disk.json_shapes import Json, parse
from artifacts.errors import PenstockError, UsageError
from flows.commands.review.folder_captions import EditRefused
from flows.core.options.serving import LOOPBACK
from flows.interfaces.serve.refusals import JSON, json_answer
from flows.interfaces.serve.same_site import is_of_other_site
from flows.interfaces.studio.roots import NoSuchFolder
from flows.interfaces.studio.run_captions import Outdated

TOKEN = "x-penstock-token"
"""Header of every request that changes something."""
PROXY = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*(:[0-9]{1,5})?")
MOST_PORTS = 1 << 16
MAX_BODY_BYTES = 1 << 26
"""Largest request body in bytes: about 100,000 captions."""
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
Handler = Callable[[Request], Awaitable[Response]]


def proxy_origin(address: str) -> str:
    """Return the origin of a proxy as browsers write it. Raises UsageError."""
    scheme, _, host = address.lower().removesuffix("/").partition("://")
    port = int(host.partition(":")[2] or 0) if PROXY.fullmatch(host) else MOST_PORTS
    if scheme not in ("https", "http") or port >= MOST_PORTS:
        raise UsageError(
            f"--behind {address}: not the address of a proxy",
            hint="Give https:// (or http://) and a host, as https://8010-abc.example.org",
        )
    return f"{scheme}://{host}"


async def not_here(_: Request, error: Exception) -> Response:
    """Answer a request for what the page has not, with the headers of all other answers."""
    status = getattr(error, "status_code", 404)
    return json_answer({"error": "there is nothing at this address"}, status, headers=SAFE)


def guarded(handler: Handler, token: str, proxy: str = "") -> Handler:
    """Return a handler with protective headers and one-line errors. A POST needs the token in a
    header, and an Origin that is the Host or the proxy."""

    async def handled(request: Request) -> Response:
        try:
            if request.method == "POST" and (why := _refusal(request, token, proxy)):
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


def _refusal(request: Request, token: str, proxy: str) -> str:
    """Return why a request that changes something is refused; empty if it is not."""
    headers = request.headers
    origin, host = headers.get("origin", ""), headers.get("host", "")
    if proxy and origin == proxy:  # which may pass on its own Host or one of this machine
        is_other = headers.get("sec-fetch-site", "same-origin") != "same-origin"
    else:
        is_own = origin == f"http://{host}" and urlsplit(origin).hostname in LOOPBACK
        is_other = is_of_other_site(headers) or not is_own
    if is_other:
        return "request from another site"
    if not hmac.compare_digest(headers.get(TOKEN, "").encode(), token.encode()):
        return "the token is missing or wrong"
    return ""


async def json_of(request: Request) -> dict[str, Json]:
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
