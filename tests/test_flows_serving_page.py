"""The page of the server: what it may load and names; and the description of the routes."""

import base64
import hashlib
import importlib.util
import re
import warnings
from importlib.machinery import ModuleSpec
from typing import Any, cast

import pytest
from openapi_spec_validator import validate

from flows.serving.app import app_of
from flows.serving.config import ServeConfig
from flows.serving.metrics import Metrics
from flows.serving.page.page import Page, page_of
from flows.serving.service import Service

PLOTLY = "plotly.min.js"


@pytest.fixture(scope="module")
def page() -> Page:
    return page_of()


def digest(content: str | bytes) -> str:
    given = content.encode() if isinstance(content, str) else content
    return base64.b64encode(hashlib.sha256(given).digest()).decode()


def rules(page: Page) -> dict[str, list[str]]:
    parts = (rule.split() for rule in page.policy.split(";"))
    return {name: allowed for name, *allowed in parts}


def inside(page: Page, tag: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", page.html.decode(), re.DOTALL)


def test_only_what_the_page_holds_may_run_and_only_its_own_server_is_asked(page: Page) -> None:
    (style,), (script,) = inside(page, "style"), inside(page, "script")
    allowed = rules(page)
    assert f"'sha256-{digest(style)}'" in allowed["style-src"]
    assert allowed["script-src"][0] == f"'sha256-{digest(script)}'"
    assert allowed["default-src"] == ["'none'"] == allowed["frame-ancestors"]
    assert allowed["base-uri"] == allowed["form-action"] == ["'none'"]
    assert allowed["connect-src"] == ["'self'"]
    assert allowed["img-src"] == ["'self'", "blob:", "data:"]
    assert allowed["media-src"] == ["'self'", "blob:"]
    assert "unsafe" not in page.policy and "http" not in page.policy


def test_nothing_names_another_host_or_breaks_the_policy(page: Page) -> None:
    html = page.html.decode()
    assert set(re.findall(r"\w+://[\w./-]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\sstyle=|\son\w+=|innerHTML|insertAdjacent|alert\(|eval\(", html)
    assert re.findall(r'(?:src|href): "([^"]*)"', html) == [f"/static/{PLOTLY}"]


def test_plotly_is_let_in_by_what_it_holds(page: Page) -> None:
    if importlib.util.find_spec("plotly") is None:
        pytest.skip("plotly is not installed: pip install 'penstock[serve]'")
    assert page.plotly is not None and len(page.plotly) > 10**6
    named = f"sha256-{digest(page.plotly)}"
    assert rules(page)["script-src"][1:] == [f"'{named}'"]
    assert f'data-plotly="{named}"' in page.html.decode()


def test_without_plotly_the_page_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> ModuleSpec | None:
        assert name == "plotly"
        return None

    monkeypatch.setattr(importlib.util, "find_spec", none)
    page = page_of()
    assert page.plotly is None and len(rules(page)["script-src"]) == 1
    assert 'data-plotly=""' in page.html.decode()
    assert "pip install 'penstock[serve]'" in page.html.decode()


def test_the_description_is_valid_and_names_what_requests_may_hold() -> None:
    nothing = cast(Any, None)
    service = Service(
        config=ServeConfig(model="demo"),
        metrics=Metrics(),
        temp_store=nothing,
        scheduler=nothing,
        budget_bytes=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        described = app_of(service, "").openapi()
    validate(described)
    media = described["paths"]["/v1/embed"]["post"]["requestBody"]["content"]
    assert {"application/octet-stream", "image/jpeg"} <= media.keys()
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert {"messages", "temperature", "seed", "stop", "response_format"} <= set(
        schema["properties"]
    )
