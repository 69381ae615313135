"""Answers of the application as HTTP has them, for requests that need no model: refusals, faults,
and what is known from headers alone."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from flows.serving.app import app_of
from flows.serving.config import ServeConfig
from flows.serving.guard import Guard
from flows.serving.metrics import Metrics
from flows.serving.scratch import Scratch
from flows.serving.service import Service

TOKEN = "a-secret-of-this-test"
BASE = "http://127.0.0.1:8000"


class OnlyLimit:
    """A captioner that is never asked for a caption."""

    model, limit = "demo", 256


def service_in(folder: Path) -> Service:
    nothing = cast(Any, None)
    return Service(
        config=ServeConfig(caption_model="demo"),
        metrics=Metrics(),
        scratch=Scratch(folder),
        residence=nothing,
        budget_bytes=0,
        captions=cast(Any, OnlyLimit()),
    )


def client_of(service: Service, token: str = "") -> TestClient:
    return TestClient(Guard(app_of(service, token), service, token), base_url=BASE)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return client_of(service_in(tmp_path))


@pytest.mark.logs_errors
def test_a_fault_is_answered_whole_and_does_not_end_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = service_in(tmp_path)
    service.captions = cast(Any, object())
    # The client raises whatever a server would close the connection for.
    answer = client_of(service).get("/v1/models")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "Traceback" not in answer.text and "AttributeError" in caplog.text


ROUTES = ("/v1/chat/completions", "/v1/caption")


def bare_request(path: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return the scope of a request."""
    told = {"host": "127.0.0.1:8000", **headers}
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in told.items()],
    }


def answered(service: Service, scope: dict[str, Any], *messages: dict[str, Any]) -> dict[str, Any]:
    """Return the start of the answer to a request of which nothing comes but these messages."""
    sent: list[Any] = []
    left = list(messages)

    async def receive() -> Any:
        assert left, "the body was waited for"
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(app_of(service, ""), service, "")(scope, receive, send))
    start: dict[str, Any] = sent[0]
    return start


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("length", ["99999999999", "9" * 5000])
def test_a_body_too_large_by_its_header_is_refused_before_it_comes(
    tmp_path: Path, path: str, length: str
) -> None:
    scope = bare_request(path, {"content-length": length})
    assert answered(service_in(tmp_path), scope)["status"] == 413


@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_within_its_body_is_no_fault_of_the_server(
    tmp_path: Path, path: str
) -> None:
    service = service_in(tmp_path)
    piece = {"type": "http.request", "body": b"{" * 10, "more_body": True}
    scope = bare_request(path, {"content-length": "1000"})
    assert answered(service, scope, piece, {"type": "http.disconnect"})["status"] == 499
    told = service.metrics.text().decode()
    assert f'{{route="{path}",status="499"}} 1' in told
