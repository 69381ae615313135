"""Answers of the application as HTTP has them, for requests that need no model: refusals, faults,
and what is known from headers alone."""

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
