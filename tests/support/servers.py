"""Requests as a browser or a stranger makes them, byte for byte, and real servers to make them to;
knows nothing of what an answer should be."""

import base64
import contextlib
import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ASK_SECONDS = 60
BUSY = 503
TRIES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Their names in lower case."""
    body: bytes

    @property
    def allowed(self) -> str | None:
        """The origin whose pages a browser shows this to."""
        return self.headers.get("access-control-allow-origin")


def answer_to(connection: http.client.HTTPConnection) -> Answer:
    """What comes back for the request that was sent."""
    found = connection.getresponse()
    headers = {name.lower(): value for name, value in found.getheaders()}
    return Answer(status=found.status, headers=headers, body=found.read())


def raw_request(
    port: int,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
    seconds: float = ASK_SECONDS,
) -> Answer:
    """Send a request with these headers and the length of its body, and no others. Return the
    answer, also if the server refuses the body before it has arrived."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    with contextlib.closing(connection):
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(body or b"")
        return answer_to(connection)


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """One that is up, and what it asks for."""

    port: int
    login: str
    pid: int

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        login: str | None = None,
    ) -> Answer:
        """One request, with no header but these, those that HTTP needs and a `login`, if any. A
        server that has just started answers 503 now and then, which Prefect's clients bear too."""
        given = dict(headers or {})
        if login is not None:
            given["Authorization"] = basic(login)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        for _ in range(TRIES):
            answer = self._ask(method, path, given, sent)
            if answer.status != BUSY:
                break
            time.sleep(1)
        return answer

    def _ask(self, method: str, path: str, given: Mapping[str, str], sent: bytes | None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body=sent, headers=dict(given))
            return answer_to(connection)


def basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"
