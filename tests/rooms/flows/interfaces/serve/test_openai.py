"""A real server asked by OpenAI's own clients for everything that they offer, together and one by
one, and by requests that no client would send."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pytest
from openai import LengthFinishReasonError, OpenAI
from pydantic import BaseModel, Field

from tests.support.chat_clients import PROMPT, messages
from tests.support.pipeline import PENSTOCK
from tests.support.serving import a_picture, serving

pytestmark = pytest.mark.slow
NEVER = "\x02never said\x02"
"""A stop string that changes the key of an answer and nothing of it: so it is made anew."""
LIMIT = 256


class Shape(BaseModel):
    kind: Literal["circle", "square", "ring"]
    large: bool


class Scene(BaseModel):
    title: Annotated[str, Field(max_length=20)]
    shapes: Annotated[list[Shape], Field(max_length=2)]
    count: Annotated[int, Field(ge=0, le=99)]
    mood: Annotated[str, Field(max_length=20)] | None


class Endless(BaseModel):
    """Its text has no bound: the demo's model knows no JSON, and never ends it."""

    title: str


FORM = {"type": "object", "properties": {"ring": {"type": "boolean"}}, "required": ["ring"]}


def form(schema: Mapping[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    command = [*PENSTOCK, "serve", "--caption-model", "demo"]
    with serving(tmp_path_factory.mktemp("chat"), command=command) as server:
        yield server.port
        assert server.is_up()


@pytest.fixture(scope="module")
def base(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def client(base: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base, api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def picture() -> bytes:
    return a_picture((96, 64), "PNG")


@pytest.fixture(scope="module")
def plain(client: OpenAI, picture: bytes) -> Any:
    """What is said of the picture as the server has it."""
    return create(client, picture)


def create(client: OpenAI, medium: bytes, kind: str = "image/png", **request: Any) -> Any:
    return client.chat.completions.create(model="demo", messages=messages(medium, kind), **request)


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def streamed(client: OpenAI, medium: bytes, kind: str = "image/png", **request: Any) -> list[Any]:
    with create(client, medium, kind, stream=True, **request) as chunks:
        return list(chunks)


def joined(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_models_are_listed_and_found_by_name(client: OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["demo"]
    found = client.models.retrieve("demo")
    assert (found.id, found.object) == ("demo", "model")


def test_usage_counts_what_was_read_and_said(client: OpenAI, picture: bytes, plain: Any) -> None:
    used = plain.usage
    assert used.prompt_tokens > 20 and used.completion_tokens > 5
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert (plain.choices[0].finish_reason, plain.model) == ("stop", "demo")
    longer = messages(picture, prompt=PROMPT + " Say it in words." * 5)
    found = client.chat.completions.create(model="demo", messages=longer)
    assert found.usage and found.usage.prompt_tokens >= used.prompt_tokens + 15
    again = create(client, picture)
    assert (text_of(again), again.usage) == (text_of(plain), plain.usage), "it was kept"


@pytest.mark.parametrize("limit", [1, 7])
def test_a_limit_cuts_the_answer(client: OpenAI, picture: bytes, plain: Any, limit: int) -> None:
    found = create(client, picture, max_tokens=limit)
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (limit, "length")
    assert text_of(plain).startswith(text_of(found))
    assert text_of(create(client, picture, max_completion_tokens=limit)) == text_of(found)


def test_a_stream_ends_with_usage_if_asked_for(client: OpenAI, picture: bytes, plain: Any) -> None:
    chunks = streamed(client, picture, stream_options={"include_usage": True}, seed=1)
    *others, last = chunks
    assert last.usage == plain.usage and last.choices == []
    assert all(each.usage is None for each in others)
    assert joined(chunks) == text_of(plain)
    assert others[-1].choices[0].finish_reason == "stop"
    cut = streamed(client, picture, max_tokens=5)
    assert cut[-1].choices[0].finish_reason == "length"
    assert text_of(plain).startswith(joined(cut)) and joined(cut)
    without = streamed(client, picture)
    assert all(each.usage is None and each.choices for each in without)


@pytest.mark.parametrize(("start", "end"), [(3, 4), (5, 21)])
def test_a_stop_string_ends_the_answer_wherever_tokens_end(
    client: OpenAI, plain: Any, picture: bytes, start: int, end: int
) -> None:
    whole = text_of(plain)
    stop = whole[start:end]
    expected = whole[: whole.index(stop)]
    found = create(client, picture, stop=[stop, NEVER])
    assert (text_of(found), found.choices[0].finish_reason) == (expected, "stop")
    assert found.usage.completion_tokens <= plain.usage.completion_tokens
    assert joined(streamed(client, picture, stop=[NEVER, stop])) == expected
    assert joined(streamed(client, picture, stop=[stop, NEVER, f"{NEVER}{start}"])) == expected


def tool(name: str, parameters: Any = None) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize("choice", ["required", tool("see")])
@pytest.mark.parametrize("parameters", [FORM, {"type": "object", "properties": {}}, None])
def test_a_function_that_must_be_called_is_called(
    client: OpenAI, picture: bytes, choice: Any, parameters: Any
) -> None:
    requests: Any = {"tools": [tool("see", parameters)], "tool_choice": choice}
    found = create(client, picture, **requests).choices[0]
    end = "tool_calls" if choice == "required" else "stop"  # as OpenAI's own server
    assert (found.message.content, found.finish_reason) == (None, end)
    calls: Any = found.message.tool_calls
    (call,) = calls
    assert call.id and (call.type, call.function.name) == ("function", "see")
    arguments = json.loads(call.function.arguments)
    assert arguments == {} if not (parameters or {}).get("properties") else "ring" in arguments
    chunks = [c.choices[0] for c in streamed(client, picture, **requests, stop=NEVER)]
    deltas: Any = [c.delta.tool_calls or () for c in chunks]
    (first,), *others = deltas
    assert first.id and (first.index, first.function.name) == (0, "see")
    assert not any(each.id or each.function.name for later in others for each in later)
    pieces = "".join(each.function.arguments for later in others for each in later)
    assert pieces == call.function.arguments and chunks[-1].finish_reason == end
    assert not any(c.delta.content for c in chunks)


def test_the_name_of_a_request_is_in_its_answer(client: OpenAI, picture: bytes) -> None:
    raw, shown = client.chat.completions.with_raw_response, messages(picture)
    for stream in (False, True):
        name: Any = {"request_id": f"a.B_{stream}-9"}
        found: Any = raw.create(model="demo", messages=shown, extra_body=name, stream=stream)
        assert found.headers["x-request-id"] == name["request_id"]
    assert "x-request-id" not in raw.create(model="demo", messages=shown).headers


def test_json_that_reaches_the_limit_is_cut(client: OpenAI, picture: bytes) -> None:
    found = create(client, picture, response_format=form(FORM), max_tokens=3)
    (choice,) = found.choices
    assert (choice.finish_reason, found.usage.completion_tokens) == ("length", 3)
    assert '{"ring":true}'.startswith(choice.message.content) or choice.message.content == '{"'
    with pytest.raises(ValueError, match="char"):
        json.loads(choice.message.content)


def test_a_pydantic_model_is_filled_whole_streamed_or_drawn(client: OpenAI, picture: bytes) -> None:
    def parsed(form: type[BaseModel], **request: Any) -> Any:
        asked: Any = {"model": "demo", "messages": messages(picture), **request}
        found = client.chat.completions.parse(response_format=form, **asked)
        assert found.choices[0].finish_reason == "stop"
        assert found.usage and found.usage.completion_tokens <= LIMIT
        return found.choices[0].message.parsed

    assert isinstance(parsed(Scene), Scene)
    with pytest.raises(LengthFinishReasonError):
        parsed(Endless)
    warm = {"temperature": 2, "seed": 4}
    assert isinstance(parsed(Shape, **warm), Shape)
    assert parsed(Shape, **warm) == parsed(Shape, stop=NEVER, **warm)
    with client.chat.completions.stream(
        model="demo", messages=messages(picture), response_format=Shape
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Shape)
