"""Sends requests to one server. Follows no redirects, uses no proxy, and reads bounded answers."""

import asyncio
import email.utils
import ssl
import time
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


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer. `wait` is the seconds that it requests; `echo` the name of the request
    that is answered, empty if it is not stated."""

    status: int
    body: bytes
    wait: float | None
    echo: str


class NoReply(Exception):
    """No answer, or not a whole one. `reached` says whether the server was reached."""

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.reached = reached


class Client:
    """The connections to one server."""

    def __init__(self, endpoint: Endpoint, keys: EndpointKeys) -> None:
        self.endpoint = endpoint
        self._keys, self.key = keys, keys.key(endpoint)
        self._headers = {
            "host": endpoint.netloc,
            "accept": "application/json",
            "accept-encoding": "identity",
            **({"authorization": f"Bearer {self.key}"} if self.key else {}),
        }
        secure = endpoint.scheme == "https"
        # A context without certificates trusts nobody.
        none = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls = httpx2.create_ssl_context() if secure else none
        self._idle: list[httpx2.AsyncHTTPTransport] = []

    async def close(self) -> None:
        """Close all connections."""
        for transport in self._idle:
            await transport.aclose()

    async def get(self, url: str) -> Reply:
        """Return a page of the same server. Raises NoReply."""
        return await self._send("GET", url, b"", "", CONNECT_SECONDS)

    async def post(self, body: bytes, name: str = "") -> Reply:
        """Send a request for a chat completion, with `name` in a header. Raises NoReply."""
        url = f"{self.endpoint.url}/chat/completions"
        return await self._send("POST", url, body, name, HEAD_SECONDS)

    async def _send(self, method: str, url: str, body: bytes, name: str, seconds: float) -> Reply:
        request = httpx2.Request(method, url, headers=self._headers, content=body or None)
        request.headers.update({"content-type": "application/json", ECHO: name} if body else {})
        times = {"connect": CONNECT_SECONDS, "write": seconds, "read": seconds}
        request.extensions["timeout"] = times
        # A transport alone has no redirects, proxies, cookies or .netrc files. One with many
        # connections looks at all of them for each request, which took a third of the time.
        idle = self._idle
        transport = idle.pop() if idle else httpx2.AsyncHTTPTransport(verify=self._tls)
        try:
            async with asyncio.timeout(seconds + CONNECT_SECONDS):
                response = await transport.handle_async_request(request)
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    content = await _body(response)
            finally:
                with suppress(httpx2.HTTPError, OSError):
                    await response.aclose()
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise NoReply(f"no connection ({self._reason(error)})", reached=False) from None
        except TimeoutError:
            raise NoReply("no whole answer in time") from None
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            raise NoReply(f"the connection broke ({self._reason(error)})") from None
        finally:
            idle.append(transport)
        headers = response.headers
        wait, echo = _wait(headers.get("retry-after", "")), headers.get(ECHO, "")[:100]
        return Reply(response.status_code, content, wait, echo)

    def _reason(self, error: Exception) -> str:
        """Return why a connection broke. The text may quote what the server sent."""
        return self._keys.cleaned(str(error))[:100] or type(error).__name__


async def _body(response: httpx2.Response) -> bytes:
    """Return a bounded body. Raises NoReply."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise NoReply("the answer is compressed, which was not requested")
    found = bytearray()
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    async for piece in response.stream:
        found += piece
        if len(found) > MAX_BODY:
            raise NoReply(f"the answer is larger than {MAX_BODY >> 20} MiB")
    return bytes(found)


def _wait(text: str) -> float | None:
    """Return the seconds of a header Retry-After."""
    with suppress(ValueError):
        return min(MAX_WAIT, max(0.0, float(text)))
    with suppress(TypeError, ValueError, OverflowError):
        until = email.utils.parsedate_to_datetime(text).timestamp()
        return min(MAX_WAIT, max(0.0, until - time.time()))
    return None
