"""The description of the routes is one that programs take, and names every operation once."""

import warnings
from collections import Counter
from typing import Any, cast

import pytest
from openapi_spec_validator import validate

from flows.serving.app import app_of
from flows.serving.config import ServeConfig
from flows.serving.metrics import Metrics
from flows.serving.service import Service


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    nothing = cast(Any, None)
    service = Service(
        config=ServeConfig(model="demo"),
        metrics=Metrics(),
        scratch=nothing,
        residence=nothing,
        budget_bytes=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return app_of(service, "").openapi()


def operations(described: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for path in described["paths"].values() for each in path.values()]


def test_the_description_is_valid(described: dict[str, Any]) -> None:
    validate(described)


def test_every_operation_has_a_name_of_its_own(described: dict[str, Any]) -> None:
    names = Counter(each["operationId"] for each in operations(described))
    assert len(names) > 10 and set(names.values()) == {1}


def test_bodies_are_of_types_that_makers_of_clients_know(described: dict[str, Any]) -> None:
    types = {
        kind
        for each in operations(described)
        for kind in each.get("requestBody", {}).get("content", {})
    }
    assert {"application/octet-stream", "application/json", "image/jpeg"} <= types
    assert not any("*" in kind for kind in types)


def test_a_chat_request_is_described_by_what_is_honoured(described: dict[str, Any]) -> None:
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert {"messages", "temperature", "seed", "stop", "response_format"} <= set(
        schema["properties"]
    )
