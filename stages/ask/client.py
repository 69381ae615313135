"""Sends requests to one server. Follows no redirects, uses no proxy, and reads bounded answers."""

import asyncio
import email.utils
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import httpx2

from artifacts.endpoints import Endpoint, EndpointKeys

CONNECT_SECONDS = 10.0
HEAD_SECONDS = 600.0
"""Longest wait for the begin of an answer: a server may have many requests in its queue."""
BODY_SECONDS = 30.0
"""Longest time from the begin of an answer to its end."""
MAX_BODY = 4 << 20
"""Largest answer in bytes."""
MAX_WAIT = 300.0
"""Longest wait in seconds that a server may request."""
ECHO = "x-request-id"
"""Header with the name of a request. Some servers repeat it in their answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A server's answer."""

    status: int
    body: bytes
    wait: float | None
    """Seconds that the server wants to wait; None: it does not say."""
    echo: str
    """Name of the request that is answered; empty: not stated."""


class NoReply(Exception):
    """No answer, or not a whole one. `reached` says whether the server was reached."""

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.reached = reached


class _Pieces(httpx2.AsyncByteStream):
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class Client:
    """The connections to one server."""

    def __init__(self, endpoint: Endpoint, keys: EndpointKeys) -> None:
        self.endpoint = endpoint
        self._headers = {
            "host": endpoint.origin.partition("://")[2],
            "accept": "application/json",
            "accept-encoding": "identity",
        }
        self.has_key = bool(key := keys.key(endpoint))
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._tls = (
            httpx2.create_ssl_context()
            if endpoint.scheme == "https"
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without certificates it trusts nobody
        )
        self._idle: list[httpx2.AsyncHTTPTransport] = []

    def _transport(self) -> httpx2.AsyncHTTPTransport:
        """Return a connection for one request. A transport alone has no redirects, proxies,
        cookies or .netrc files. One with many connections looks at all of them for each
        request, which took a third of the time."""
        return self._idle.pop() if self._idle else httpx2.AsyncHTTPTransport(verify=self._tls)

    async def close(self) -> None:
        """Close all connections."""
        for transport in self._idle:
            await transport.aclose()

    async def get(self, url: str) -> Reply:
        """Ask for an address of the same server. Raises NoReply."""
        return await self._send("GET", url, (), {}, CONNECT_SECONDS)

    async def post(self, pieces: Sequence[bytes], name: str = "") -> Reply:
        """Send a request for a chat completion, with `name` in a header. Raises NoReply."""
        headers = {"content-type": "application/json", ECHO: name}
        return await self._send(
            "POST", f"{self.endpoint.url}/chat/completions", pieces, headers, HEAD_SECONDS
        )

    async def _send(
        self,
        method: str,
        url: str,
        pieces: Sequence[bytes],
        headers: Mapping[str, str],
        seconds: float,
    ) -> Reply:
        length = {"content-length": str(sum(map(len, pieces)))} if pieces else {}
        request = httpx2.Request(
            method,
            url,
            headers={**self._headers, **headers, **length},
            stream=_Pieces(pieces),
            extensions={"timeout": {"connect": CONNECT_SECONDS, "write": seconds, "read": seconds}},
        )
        transport = self._transport()
        try:
            async with asyncio.timeout(seconds + CONNECT_SECONDS):
                response = await transport.handle_async_request(request)
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body = await _body(response)
            finally:
                with suppress(httpx2.HTTPError, OSError):
                    await response.aclose()
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise NoReply(f"no connection ({_reason(error)})", reached=False) from error
        except TimeoutError as error:
            raise NoReply("no whole answer in time") from error
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            raise NoReply(f"the connection broke ({_reason(error)})") from error
        finally:
            self._idle.append(transport)
        return Reply(
            status=response.status_code,
            body=body,
            wait=_wait(response.headers.get("retry-after", "")),
            echo=response.headers.get(ECHO, "")[:100],
        )


async def _body(response: httpx2.Response) -> bytes:
    """Return a bounded body. Raises NoReply."""
    found = bytearray()
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    async for piece in response.stream:
        found += piece
        if len(found) > MAX_BODY:
            raise NoReply(f"the answer is larger than {MAX_BODY >> 20} MiB")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise NoReply("the answer is compressed, which was not requested")
    return bytes(found)


def _reason(error: Exception) -> str:
    return type(error).__name__ if not str(error) else " ".join(str(error).split())[:100]


def _wait(text: str) -> float | None:
    """Return the seconds of a header Retry-After."""
    try:
        return min(MAX_WAIT, max(0.0, float(text)))
    except ValueError:
        pass
    with suppress(TypeError, ValueError, OverflowError):
        until = email.utils.parsedate_to_datetime(text).timestamp()
        return min(MAX_WAIT, max(0.0, until - time.time()))
    return None
