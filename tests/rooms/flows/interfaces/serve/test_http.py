"""Answers of the application as HTTP has them, for requests that need no model; its page, what that
may load and name; and the description of the routes."""

import asyncio
import base64
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from artifacts.index.writing import writing
from flows.core.options.serving import ServeConfig
from flows.core.pages.document import Document
from flows.interfaces.serve.app import app_of
from flows.interfaces.serve.captioning import Captioned
from flows.interfaces.serve.embedding import EmbeddedMedium
from flows.interfaces.serve.guard import Guard
from flows.interfaces.serve.metrics import Metrics
from flows.interfaces.serve.page import page_of
from flows.interfaces.serve.searching import ServedIndex
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.temp_store import TempStore
from flows.interfaces.serve.uploads import Upload
from stages.frames.image import read_image
from stages.process.events import CaptionProgress
from tests.support.browser import Browser
from tests.support.chat_clients import messages
from tests.support.indexes import MAKER, drawn, rows
from tests.support.serving import a_picture

BASE = "http://127.0.0.1:8000"


class Drawn:
    """Gives every picture, which it reads as the decoders do, and every text a drawn vector."""

    async def embed(self, upload: Upload) -> EmbeddedMedium:
        index, _ = read_image(upload.path)
        return EmbeddedMedium(index=index, tasks=(), vectors=(drawn(1),), cached=False)

    async def vectors(self, texts: Any) -> Any:
        return SimpleNamespace(vectors=drawn(1), cut=())


class OneWord:
    """Says one word of each picture, whose file it reads as the decoders do."""

    model, limit = "demo", 256

    def precision(self, found: Captioned) -> dict[str, str]:
        return {"vision": "bf16", "language": "bf16"}

    async def caption(self, upload: Upload, *request: Any, **more: Any) -> Captioned:
        index, _ = read_image(upload.path)
        words = CaptionProgress(key="", caption="grey", tokens=1, ended="stop", prompt_tokens=1)
        return Captioned(index=index, outputs=(words,), cached=False, heard=(False,))


def service_in(folder: Path) -> Service:
    nothing = cast(Any, None)
    return Service(
        config=ServeConfig(caption_model="demo"),
        metrics=Metrics(),
        temp_store=TempStore(folder),
        scheduler=nothing,
        budget_bytes=0,
        captions=cast(Any, OneWord()),
    )


def client_of(service: Service) -> TestClient:
    return TestClient(Guard(app_of(service, {}), service, {}), base_url=BASE)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return client_of(service_in(tmp_path))


@pytest.mark.logs_errors
def test_a_fault_ends_no_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = service_in(tmp_path)
    service.captions = cast(Any, object())
    # The client raises whatever a server would close the connection for.
    answer = client_of(service).get("/v1/models")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "Traceback" not in answer.text and "AttributeError" in caplog.text


def test_the_time_line_tells_what_failed_from_what_was_refused() -> None:
    metrics = Metrics()
    for status in (200, 404, 429, 500, 503):
        metrics.answered("/v1/caption", status, 0.1)
    metrics.point(0, 0, 0)
    (point,) = metrics.points(0.0)
    assert (point["requests"], point["refused"], point["failed"]) == (5, 2, 1)


ROUTES = ("/v1/chat/completions", "/v1/caption")


def bare_request(path: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return the scope of a request."""
    message = {"host": "127.0.0.1:8000", **headers}.items()
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
    sent = [(name.encode(), value.encode()) for name, value in message]
    return {**scope, "query_string": b"", "headers": sent}


def answered(service: Service, scope: dict[str, Any], *messages: dict[str, Any]) -> dict[str, Any]:
    """Return the start of the answer to a request of which nothing comes but these messages."""
    sent: list[Any] = []
    left = list(messages)

    async def receive() -> Any:
        assert left, "the body was waited for"
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(app_of(service, {}), service, {})(scope, receive, send))
    start: dict[str, Any] = sent[0]
    return start


@pytest.mark.parametrize(
    ("requested", "words"),
    [
        ("GET /v1/search?q=a&bogus=1", "unknown parameter 'bogus'"),
        ("HEAD /v1/search?q=a&bogus=1", ""),
        ("GET /v1/search?q=a&q=b", "q is given more than once"),
        ("GET /v1/search?q=a&top=1&top=2", "top is given more than once"),
        ("POST /v1/search?q=a", "unknown parameter 'q'"),
        ("POST /v1/label?lables=a", "unknown parameter 'lables'"),
        ("POST /v1/embed?encodings=json", "unknown parameter 'encodings'"),
        ("POST /v1/caption?promt=a", "unknown parameter 'promt'"),
        ("POST /v1/caption?prompt=a&prompt=b", "prompt is given more than once"),
        ("GET /v1/stats?from=1", "unknown parameter 'from'"),
        ("GET /v1/media/0-0?width=3", "unknown parameter 'width'"),
    ],
)
def test_a_parameter_that_a_route_does_not_have_is_refused_by_name(
    client: TestClient, requested: str, words: str
) -> None:
    answer = client.request(*requested.split(" "), content=b"")
    assert answer.status_code == 422, (answer.status_code, answer.text)
    assert words in answer.text


def test_a_parameter_that_is_no_utf_8_is_refused(client: TestClient) -> None:
    for address in ("/v1/search?q=%ff%fe", "/v1/search?q=a&without=%ff", "/v1/search?%ff=a"):
        answer = client.get(address)
        assert (answer.status_code, "not UTF-8" in answer.text) == (400, True), answer.text


def test_parameters_of_others_are_let_pass(client: TestClient) -> None:
    for path in ("/v1/models?api-version=1", "/healthz?time=1", "/metrics?name=a", "/?a=1"):
        assert client.get(path).status_code == 200, path
    # It has no index; parameters that may be there several times are not refused.
    assert client.get("/v1/search?q=a&not=b&not=c").status_code == 404


def test_clients_of_http_1_0_need_not_name_the_server(tmp_path: Path) -> None:
    for host, status in (
        *((b"127.0.0.1:8000", 200), (b"[::1]:9", 200), (b"evil.example", 400), (None, 200)),
        (b"127.0.0.1.evil.example", 400),
    ):
        scope = bare_request("/healthz", {}) | {"method": "GET", "http_version": "1.0"}
        scope["headers"] = [] if host is None else [(b"host", host)]
        assert answered(service_in(tmp_path), scope)["status"] == status, host


@pytest.mark.parametrize("coding", ["gzip", "br, gzip", "identity", ""])
def test_a_body_with_a_coding_is_refused_before_it_is_read(tmp_path: Path, coding: str) -> None:
    is_plain = coding in ("", "identity")
    body = {"type": "http.request", "body": b"", "more_body": False}
    headers = {"content-encoding": coding, "content-length": "0" if is_plain else "99"}
    scope = bare_request("/v1/caption", headers)
    start = answered(service_in(tmp_path), scope, *([body] if is_plain else []))
    assert start["status"] == (422 if is_plain else 415)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Basic"])
def test_the_scheme_of_a_token_has_any_case(tmp_path: Path, scheme: str) -> None:
    service, token = service_in(tmp_path), "a secret of some length"
    client = TestClient(Guard(app_of(service, {"": token}), service, {"": token}), base_url=BASE)
    found = client.get("/v1/models", headers={"Authorization": f"{scheme} {token}"})
    assert (found.status_code == 401) == (scheme == "Basic")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("length", ["99999999999", "9" * 5000])
def test_a_body_too_large_is_refused_unread(tmp_path: Path, path: str, length: str) -> None:
    scope = bare_request(path, {"content-length": length})
    assert answered(service_in(tmp_path), scope)["status"] == 413


@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_is_no_fault_of_the_server(tmp_path: Path, path: str) -> None:
    service = service_in(tmp_path)
    piece = {"type": "http.request", "body": b"{" * 10, "more_body": True}
    scope = bare_request(path, {"content-length": "1000"})
    assert answered(service, scope, piece, {"type": "http.disconnect"})["status"] == 499
    message = service.metrics.text().decode()
    assert f'{{route="{path}",status="499"}} 1' in message


def test_unknown_routes_are_refused_so_that_openai_s_client_reads_why(client: TestClient) -> None:
    for method, path in (("GET", "/v1/completions"), ("POST", "/v1/files/a/content")):
        answer = client.request(method, path)
        message = answer.json()["error"]
        assert (answer.status_code, message["type"]) == (404, "invalid_request_error")
        assert message["code"] == "unknown_url" and "/openapi.json" in message["message"]
    elsewhere = {"error": "not found", "hint": "The routes are in /openapi.json"}
    assert client.get("/v2/completions").json() == elsewhere
    answer = client.get("/v1/media/0")
    assert (answer.status_code, answer.json()["error"]) == (404, "this server has no index")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/healthz", "/readyz", "/metrics", "/v1/stats", "/v1/info", "/v1/models"),
        *("/openapi.json", "/v1/search", "/v1/search?q=star", "/v1/models/gone"),
    ],
)
def test_head_is_answered_as_get_without_a_body(tmp_path: Path, path: str) -> None:
    service = service_in(tmp_path)
    service.draining = path == "/readyz"
    client = client_of(service)
    got, found = client.get(path), client.head(path)
    assert (found.status_code, found.content) == (got.status_code, b"")
    assert found.headers["content-type"] == got.headers["content-type"]
    assert int(found.headers["content-length"]) > 0


def test_a_request_for_which_the_end_does_not_wait_is_refused(tmp_path: Path) -> None:
    sent: list[Any] = []

    async def hanging(*_: Any) -> None:
        await asyncio.Event().wait()

    async def keep(message: Any) -> None:
        sent.append(message)

    async def go() -> None:
        scope = {"type": "http", "method": "GET", "path": "/v1/search", "headers": []}
        guard = Guard(hanging, service_in(tmp_path), {})
        answering = asyncio.create_task(guard(scope, cast(Any, None), keep))
        await asyncio.sleep(0)
        answering.cancel()  # as the server does when it has waited
        await answering

    asyncio.run(go())
    start, body = sent
    assert (start["status"], json.loads(body["body"])["error"]) == (
        503,
        "the server is shutting down",
    )


def test_a_refused_method_names_others(client: TestClient) -> None:
    for method, path, allowed in (
        *(("GET", "/v1/caption", "POST"), ("PUT", "/v1/search", "GET, HEAD, POST")),
        *(("DELETE", "/v1/media/0", "GET, HEAD"), ("POST", "/", "GET, HEAD")),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers.get("allow")) == (405, allowed)
        assert "allow" not in client.request(method, "/nowhere").headers
    assert client.head("/v1/caption").status_code == 405


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"origin": "https://evil.example"}, True),
        ({"origin": "http://127.0.0.1:9999"}, True),
        ({"origin": "null"}, True),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, True),
        ({"origin": BASE}, False),
        ({"origin": "https://proxied.example", "sec-fetch-site": "same-origin"}, False),
        ({}, False),
    ],
)
def test_posts_of_other_sites(client: TestClient, headers: dict[str, str], refused: bool) -> None:
    assert (client.post("/v1/session", headers=headers).status_code == 403) is refused
    answer = client.options("/v1/embed", headers={**headers, "access-control-request-method": "X"})
    assert answer.status_code >= 400 and "access-control-allow-origin" not in answer.headers


CUT = ["truncated: the missing part of the image is grey"]


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream but for the word that ends it."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_searches_warn_of_damage(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with writing(folder, MAKER, "a test") as writer:
        writer.add([(rows(9), drawn(9))])
    service = service_in(tmp_path)
    service.media_embedder = service.texts = cast(Any, Drawn())
    service.index = ServedIndex(folder, MAKER)
    client, whole = client_of(service), a_picture((320, 240))
    cut = whole[: len(whole) * 2 // 3]
    for words in ("", "?not=toy"):
        for body, damage in ((whole, []), (cut, CUT)):
            found = client.post(f"/v1/search{words}", content=body).json()
            assert "hits" in found and found.get("warnings", []) == damage
    found = client.get("/v1/search?q=star").json()
    assert found["hits"] and "warnings" not in found
    assert str(tmp_path) not in str(found)


@pytest.mark.parametrize("damaged", [True, False])
def test_answers_tell_of_damage_that_was_survived(client: TestClient, damaged: bool) -> None:
    whole = a_picture((320, 240))
    body = whole[: len(whole) * 2 // 3] if damaged else whole
    expected = CUT if damaged else None
    found = client.post("/v1/caption", content=body).json()
    assert found["captions"] and found.get("warnings") == expected
    last = events_of(client.post("/v1/caption?stream=1", content=body).text)[-1]
    assert last["done"] and last.get("warnings") == expected
    requests = {"model": "demo", "messages": messages(body, "image/jpeg")}
    found = client.post("/v1/chat/completions", json=requests).json()
    assert found["choices"][0]["message"]["content"] == "grey"
    assert found.get("warnings") == expected
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events_of(client.post("/v1/chat/completions", json={**requests, **options}).text)
    ended = [each for each in chunks if each["choices"] and each["choices"][0]["finish_reason"]]
    assert [each.get("warnings") for each in ended] == [expected]
    assert sum("warnings" in each for each in chunks) == damaged


@pytest.fixture(scope="module")
def page() -> Document:
    return page_of()


def digest(content: str | bytes) -> str:
    given = content.encode() if isinstance(content, str) else content
    return base64.b64encode(hashlib.sha256(given).digest()).decode()


def rules(page: Document) -> dict[str, list[str]]:
    parts = (rule.split() for rule in page.policy.split(";"))
    return {name: allowed for name, *allowed in parts}


def inside(page: Document, tag: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", page.html, re.DOTALL)


def test_only_what_the_page_holds_may_run_and_only_its_own_server_is_asked(page: Document) -> None:
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


def test_nothing_names_another_host_or_breaks_the_policy(page: Document) -> None:
    html = page.html
    assert set(re.findall(r"\w+://[\w./-]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\sstyle=|\son\w+=|innerHTML|insertAdjacent|alert\(|eval\(", html)
    assert re.findall(r'(?:src|href): "([^"]*)"', html) == []


@pytest.mark.slow
def test_the_description_is_valid_and_names_what_requests_may_hold(tmp_path: Path) -> None:
    service = service_in(tmp_path)
    service.captions, service.config = None, ServeConfig(model="demo")
    described = app_of(service, {}).openapi()
    validate(described)
    media = described["paths"]["/v1/embed"]["post"]["requestBody"]["content"]
    assert {"application/octet-stream", "image/jpeg"} <= media.keys()
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    fields = described["components"]["schemas"][name]["properties"]
    assert {"messages", "stop", "response_format", "tools", "request_id", "top_k"} <= set(fields)
    seed, _ = fields["seed"]["anyOf"]
    assert (seed["type"], seed["minimum"], seed["maximum"]) == ("integer", 0, 2**63 - 1)
    assert media["image/jpeg"]["schema"]["minLength"] == 1
    found = {each["name"]: each for each in described["paths"]["/v1/search"]["get"]["parameters"]}
    assert found["q"]["required"] and found["top"]["schema"]["maximum"] == 1000


def follows(described: dict[str, Any], path: str, method: str, answer: Any) -> None:
    """Check that an answer is one of those that the description has."""
    found = described["paths"][path][method]["responses"][str(answer.status_code)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in found, f"{method} {path} -> {answer.status_code} {kind}"
    if kind == "application/json":
        Draft202012Validator(found[kind]["schema"]).validate(answer.json())


def test_every_answer_is_one_that_the_description_has(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    chat, picture = "/v1/chat/completions", a_picture()
    requests = {"messages": messages(picture, "image/jpeg")}
    called = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}
    bodies = [requests | more for more in ({}, called, {"stream": True}, {"n": 2})]
    for body in (*bodies, {}):
        follows(described, chat, "post", client.post(chat, json=body))
    follows(described, chat, "post", client.post(chat, content=b"{"))
    for content in (picture, b"", b"a text that is no medium"):
        for query in ("", "?stream=1", "?stream=maybe"):
            answer = client.post(f"/v1/caption{query}", content=content)
            follows(described, "/v1/caption", "post", answer)
    for path in set(described["paths"]) - {"/readyz"}:  # which needs a device
        for method in described["paths"][path]:
            for values in ("", "?top=0&since=inf&encoding=x&stream=x&top=x"):
                real = path.format(hit="0-0", name="gone", job="gone")
                answer = client.request(method.upper(), real + values, content=picture)
                if method != "head":  # whose answers have no content
                    follows(described, path, method, answer)


PUT = """const tint = new Map(), cards = [0, 1].map(() => new Bars(() => {}));
const cat = (score, passed) => [{label: "cat", score, threshold: 0.2, passed, why: "", box: null}];
cards.forEach(card => document.body.append(card.box));
const marks = () => cards.map(card => card.list.querySelector(".least")?.getAttribute("x1"));
const seen = [];
cards[0].put(cat(0.1, false), tint); seen.push(marks());
cards[1].put(cat(0.4, true), tint); seen.push(marks());
cards[1].put(cat(0.9, true), tint); seen.push(marks());
cards[0].put(cat(0.05, false), tint); seen.push(marks());
return seen"""


@pytest.mark.slow
@pytest.mark.browser
def test_a_threshold_of_the_server_has_one_place_on_cards(browser: Browser, tmp_path: Path) -> None:
    (path := tmp_path / "page.html").write_text(page_of().html)
    browser.open(path.as_uri())
    alone, *both = browser.run(PUT)
    assert alone[0] is not None and alone[1] is None
    assert all(first == second for first, second in both)
    assert len({first for first, _ in both}) == 2 and both[-1][0] == "20%"
