"""A real server asked by OpenAI's own clients for everything that they offer, together and one by
one, and by requests that no client would send."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from tests.support.chat_clients import PORT, PROMPT, messages, next_client
from tests.support.media import write_video
from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.serving import a_picture, serving

pytestmark = pytest.mark.slow
NEVER = "\x02never said\x02"
"""A stop string that changes the key of an answer and nothing of it: so it is made anew."""
LIMIT = 256


class Shape(BaseModel):
    kind: Literal["circle", "square", "ring"]
    large: bool


class Scene(BaseModel):
    title: str
    shapes: list[Shape]
    count: int
    mood: str | None


FORM = {"type": "object", "properties": {"ring": {"type": "boolean"}}, "required": ["ring"]}
OTHER_FORM = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def form(schema: Mapping[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if PORT in os.environ:
        yield int(os.environ[PORT])
        return
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


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A clip of three chunks."""
    path = tmp_path_factory.mktemp("clip") / "long.mp4"
    write_video(path, ticks=range(130), time_base=Fraction(1, 2))
    return path.read_bytes()


def create(client: OpenAI, medium: bytes, kind: str = "image/png", **asked: Any) -> Any:
    return client.chat.completions.create(model="demo", messages=messages(medium, kind), **asked)


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def streamed(client: OpenAI, medium: bytes, kind: str = "image/png", **asked: Any) -> list[Any]:
    with create(client, medium, kind, stream=True, **asked) as chunks:
        return list(chunks)


def joined(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_models_are_listed_and_found_by_name(client: OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["demo"]
    found = client.models.retrieve("demo")
    assert (found.id, found.object) == ("demo", "model")


@pytest.mark.parametrize("name", ["gpt-4o", "demo/other", "../demo", "DEMO"])
def test_a_model_that_is_not_served_is_not_found(client: OpenAI, picture: bytes, name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve(name)
    if ".." not in name:
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=messages(picture))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_usage_counts_what_was_read_and_said(plain: Any) -> None:
    used = plain.usage
    assert used.prompt_tokens > 20 and used.completion_tokens > 5
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert (plain.choices[0].finish_reason, plain.model) == ("stop", "demo")


def test_a_longer_prompt_has_more_tokens(client: OpenAI, picture: bytes, plain: Any) -> None:
    longer = messages(picture, prompt=PROMPT + " Say it in words." * 5)
    found = client.chat.completions.create(model="demo", messages=longer)
    assert found.usage and found.usage.prompt_tokens >= plain.usage.prompt_tokens + 15


def test_an_answer_that_was_kept_is_told_with_the_same_usage(
    client: OpenAI, picture: bytes, plain: Any
) -> None:
    again = create(client, picture)
    assert (text_of(again), again.usage) == (text_of(plain), plain.usage)


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_a_limit_cuts_the_answer(client: OpenAI, picture: bytes, plain: Any, limit: int) -> None:
    found = create(client, picture, max_tokens=limit)
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (limit, "length")
    assert text_of(plain).startswith(text_of(found))
    assert text_of(create(client, picture, max_completion_tokens=limit)) == text_of(found)


def test_a_limit_beyond_the_servers_is_the_servers(
    client: OpenAI, picture: bytes, plain: Any
) -> None:
    for most in (LIMIT, LIMIT + 1, 10**9, 10**30):
        assert text_of(create(client, picture, max_tokens=most)) == text_of(plain)


def test_no_chance_is_what_the_server_does_anyway(
    client: OpenAI, picture: bytes, plain: Any
) -> None:
    for asked in ({"temperature": 0}, {"top_p": 1}, {"temperature": 0, "seed": 9, "top_p": 0.3}):
        assert text_of(create(client, picture, **asked)) == text_of(plain)
        assert text_of(create(client, picture, stop=NEVER, **asked)) == text_of(plain)


def test_a_seed_is_its_answer(client: OpenAI, picture: bytes) -> None:
    def said(seed: int, **asked: Any) -> str:
        return text_of(create(client, picture, temperature=2, seed=seed, **asked))

    every = [said(seed) for seed in (0, 1, 2, 3, 2**63 - 1)]
    assert len(set(every)) > 1
    assert [said(seed, stop=NEVER) for seed in (0, 1, 2, 3, 2**63 - 1)] == every
    assert text_of(create(client, picture, temperature=2)) == every[0]


def test_settings_asked_for_at_once_are_each_followed_as_alone(client: OpenAI) -> None:
    picture = a_picture((96, 64), "PNG")
    create(client, picture)
    asked: list[dict[str, Any]] = [
        {}, {"max_tokens": 4}, {"temperature": 1.5, "seed": 1}, {"temperature": 1.5, "seed": 2},
        {"temperature": 0.7, "top_p": 0.4, "seed": 3}, {"response_format": form(FORM)},
        {"response_format": form(OTHER_FORM)}, {"max_tokens": 6, "temperature": 2},
    ]  # fmt: skip
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(
            pool.map(lambda each: create(client, picture, stop=["\x01", NEVER], **each), asked)
        )
    for each, found in zip(asked, together, strict=True):
        alone = create(client, picture, stop=NEVER, **each)
        assert text_of(alone) == text_of(found), each
        assert alone.usage == found.usage
        assert alone.choices[0].finish_reason == found.choices[0].finish_reason
    assert list(json.loads(text_of(together[5]))) == ["ring"]
    assert list(json.loads(text_of(together[6]))) == ["n"]


def test_an_asynchronous_client_is_answered_side_by_side(base: str, picture: bytes) -> None:
    async def every() -> list[Any]:
        async with AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            asked: list[dict[str, Any]] = [{"max_tokens": n} for n in (1, 2, 3)]
            asked += [{"stop": ["e"]}, {"temperature": 1}]
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="demo",
                        messages=messages(picture),
                        **each,
                    )
                    for each in asked
                )
            )

    found = asyncio.run(every())
    assert [each.usage.completion_tokens for each in found[:3]] == [1, 2, 3]
    assert "e" not in text_of(found[3])


def test_an_asynchronous_stream_is_the_whole(base: str, picture: bytes, plain: Any) -> None:
    async def whole() -> str:
        async with AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            chunks = await client.chat.completions.create(
                model="demo", messages=messages(picture), stream=True, stop=NEVER
            )
            return joined([chunk async for chunk in chunks])

    assert asyncio.run(whole()) == text_of(plain)


def test_a_stream_ends_with_its_usage_where_that_is_asked_for(
    client: OpenAI, picture: bytes, plain: Any
) -> None:
    chunks = streamed(client, picture, stream_options={"include_usage": True}, seed=1)
    *others, last = chunks
    assert last.usage == plain.usage and last.choices == []
    assert all(each.usage is None for each in others)
    assert joined(chunks) == text_of(plain)
    assert others[-1].choices[0].finish_reason == "stop"
    without = streamed(client, picture)
    assert all(each.usage is None and each.choices for each in without)


def test_a_stream_that_is_cut_says_so(client: OpenAI, picture: bytes, plain: Any) -> None:
    chunks = streamed(client, picture, max_tokens=5)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert text_of(plain).startswith(joined(chunks)) and joined(chunks)


@pytest.mark.parametrize(("start", "end"), [(3, 4), (2, 9), (5, 21), (6, 8)])
def test_a_stop_string_ends_the_answer_wherever_tokens_end(
    client: OpenAI, plain: Any, picture: bytes, start: int, end: int
) -> None:
    whole = text_of(plain)
    stop = whole[start:end]
    wanted = whole[: whole.index(stop)].strip()
    found = create(client, picture, stop=[stop, NEVER])
    assert (text_of(found), found.choices[0].finish_reason) == (wanted, "stop")
    assert found.usage.completion_tokens <= plain.usage.completion_tokens
    assert joined(streamed(client, picture, stop=[NEVER, stop])).strip() == wanted
    fresh = streamed(client, picture, stop=[stop, NEVER, f"{NEVER}{start}"])
    assert joined(fresh).strip() == wanted and stop not in joined(fresh)


def test_the_first_of_four_stop_strings_ends_the_answer(
    client: OpenAI, plain: Any, picture: bytes
) -> None:
    whole = text_of(plain)
    stops = [whole[-3:], whole[20:24], whole[9:12], NEVER]
    assert text_of(create(client, picture, stop=stops)) == min(
        (whole.split(stop)[0].strip() for stop in stops), key=len
    )


def test_a_model_of_pydantic_is_filled(client: OpenAI, picture: bytes) -> None:
    found = client.chat.completions.parse(
        model="demo", messages=messages(picture), response_format=Scene
    )
    parsed = found.choices[0].message.parsed
    assert isinstance(parsed, Scene) and found.choices[0].finish_reason == "stop"
    assert found.usage and found.usage.completion_tokens <= LIMIT


def test_a_model_of_pydantic_is_filled_by_chance_and_the_same_again(
    client: OpenAI, picture: bytes
) -> None:
    def parsed(**asked: Any) -> Any:
        found = client.chat.completions.parse(
            model="demo", messages=messages(picture), response_format=Shape,
            temperature=2, seed=4, **asked,
        )  # fmt: skip
        return found.choices[0].message.parsed

    assert isinstance(parsed(), Shape) and parsed() == parsed(stop=NEVER)


def test_a_stream_of_a_model_of_pydantic_is_filled(client: OpenAI, picture: bytes) -> None:
    with client.chat.completions.stream(
        model="demo", messages=messages(picture), response_format=Shape
    ) as stream:
        found = stream.get_final_completion()
    assert isinstance(found.choices[0].message.parsed, Shape)


def test_a_schema_that_needs_more_than_the_limit_is_refused(client: OpenAI, picture: bytes) -> None:
    with pytest.raises(BadRequestError) as caught:
        create(client, picture, response_format=form(FORM), max_tokens=2)
    assert caught.value.param == "max_tokens" and "tokens" in caught.value.message


UNSUPPORTED: Mapping[str, Any] = {
    "n": 2,
    "logprobs": True,
    "top_logprobs": 3,
    "frequency_penalty": -1,
    "logit_bias": {"50": 5},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "store": True,
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "web_search_options": {},
    "response_format": {"type": "json_object"},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_its_name(
    client: OpenAI, picture: bytes, name: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        create(client, picture, **{name: UNSUPPORTED[name]})
    error = caught.value
    assert (error.code, error.param) == ("unsupported_parameter", name)
    assert error.type == "invalid_request_error" and error.message


@pytest.mark.parametrize("name", ["top_k", "min_p", "best_of", "echo", "guided_json", "x" * 5000])
def test_what_other_servers_have_is_refused_by_its_name(
    client: OpenAI, picture: bytes, name: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        create(client, picture, extra_body={name: 1})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", name)
    assert len(caught.value.message) < 1000 + len(name)


INVALID: list[tuple[str, Any]] = [
    ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", "many"), ("max_tokens", 1.5),
    ("max_completion_tokens", 0), ("temperature", -0.1), ("temperature", 2.1),
    ("temperature", "hot"), ("temperature", [1]), ("top_p", 1.1), ("top_p", -1),
    ("presence_penalty", 2.1), ("presence_penalty", -3),
    ("seed", -1), ("seed", 2**63), ("seed", "x"), ("stop", ["a", "b", "c", "d", "e"]),
    ("stop", ["x"] * 10_000), ("stop", ""), ("stop", [[]]), ("stop", "y" * 100_000),
    ("stream_options", {"include_usage": True}), ("response_format", {"type": "json_schema"}),
    ("response_format", {}), ("stream", "yes"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), INVALID, ids=lambda each: str(each)[:20])
def test_a_value_out_of_range_is_refused(
    client: OpenAI, picture: bytes, name: str, value: Any
) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(
            model="demo", messages=messages(picture), extra_body={name: value}
        )
    assert (caught.value.code, caught.value.param) == ("invalid_value", name)


SCHEMAS: Mapping[str, Any] = {
    "array": {"type": "array", "items": {"type": "string"}},
    "nothing": {},
    "elsewhere": {"$ref": "http://example.org/schema.json"},
    "of itself": {"$ref": "#"},
    "pattern without end": {
        "type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}
    },
    "no such type": {"type": "object", "properties": {"a": {"type": "thing"}}},
    "doubling": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n0"}},
        "$defs": {
            f"n{n}": {
                "type": "object",
                "properties": {k: {"$ref": f"#/$defs/n{n + 1}"} for k in "ab"},
            }
            for n in range(40)
        } | {"n40": {"type": "string"}},
    },
    "many": {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(3000)}},
    "large": {"type": "object", "properties": {"a": {"enum": ["x" * 70_000]}}},
    "unsatisfiable": {
        "type": "object",
        "properties": {"a": {"type": "string", "minLength": 5, "maxLength": 2}},
        "required": ["a"],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_cannot_be_followed_is_refused_at_once(
    client: OpenAI, picture: bytes, name: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        create(client, picture, response_format=form(SCHEMAS[name]), timeout=30)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "response_format")
    assert "--" not in caught.value.message


def test_values_that_change_nothing_are_taken(client: OpenAI, picture: bytes, plain: Any) -> None:
    found = create(
        client, picture, n=1, presence_penalty=0, frequency_penalty=0, logprobs=False, tools=[],
        user="somebody", metadata={"a": "b"}, store=False, response_format={"type": "text"},
        logit_bias={}, parallel_tool_calls=True, service_tier="auto", stream=False,
    )  # fmt: skip
    assert text_of(found) == text_of(plain)


RAW: Mapping[str, bytes] = {
    "half a pair in the prompt": b'{"role":"user","content":"\\ud800"}',
    "half a pair in a name": b'{"role":"user","content":"a","\\udfff":1}',
    "bytes of half a pair": b'{"role":"user","content":"\xed\xa0\x80"}',
    "no UTF-8": b'{"role":"user","content":"\xff"}',
    "no number": b'{"role":"user","content":NaN}',
    "deep": b"[" * 200_000,
}


@pytest.mark.parametrize("name", RAW)
def test_a_body_that_is_no_text_is_refused_and_ends_nothing(
    base: str, client: OpenAI, picture: bytes, plain: Any, name: str
) -> None:
    shown = json.dumps(messages(picture)[0]).encode()
    body = b'{"model":"demo","messages":[' + RAW[name] + b"," + shown + b"]}"
    answer = httpx.post(f"{base}/chat/completions", content=body, timeout=30)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert text_of(create(client, picture, stop=[NEVER, f"{NEVER} {name}"])) == text_of(plain)


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}],
        [{"type": "file", "file": {"file_id": "x"}}],
        [{"type": "text"}],
        [{"type": "text", "text": {"url": 1}}],
        ["text"],
        5,
        {"text": "x"},
    ],
    ids=lambda each: json.dumps(each)[:30],
)
def test_parts_that_nobody_reads_are_refused(client: OpenAI, picture: bytes, parts: Any) -> None:
    asked = [*messages(picture), {"role": "user", "content": parts}]
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=asked)
    assert caught.value.param == "messages"


def test_a_limit_is_of_all_chunks_of_a_clip(client: OpenAI, clip: bytes) -> None:
    whole = create(client, clip, "video/mp4")
    lines = text_of(whole).split("\n")
    assert len(lines) == 3 and whole.usage.prompt_tokens > 60
    for most in (5, whole.usage.completion_tokens - 2):
        found = create(client, clip, "video/mp4", max_tokens=most)
        assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (most, "length")
        assert text_of(whole).startswith(text_of(found))


def test_a_stream_of_several_chunks_is_in_their_order(client: OpenAI, clip: bytes) -> None:
    whole = text_of(create(client, clip, "video/mp4"))
    asked = {"stop": NEVER}
    assert joined(streamed(client, clip, "video/mp4", **asked)) == whole
    warm = {"temperature": 1.5, "seed": 3}
    fresh = joined(streamed(client, clip, "video/mp4", **warm))
    assert fresh == text_of(create(client, clip, "video/mp4", **warm))


def test_a_stop_string_is_of_all_chunks_of_a_clip(client: OpenAI, clip: bytes) -> None:
    whole = text_of(create(client, clip, "video/mp4"))
    first = create(client, clip, "video/mp4", stop="\n")
    assert text_of(first) == whole.split("\n")[0]
    across = whole[whole.index("\n") - 3 : whole.index("\n") + 4]
    found = create(client, clip, "video/mp4", stop=across)
    assert text_of(found) == whole.split(across)[0]
    assert joined(streamed(client, clip, "video/mp4", stop=[across, NEVER])) == text_of(found)


def test_a_schema_of_several_answers_is_refused(client: OpenAI, clip: bytes) -> None:
    with pytest.raises(BadRequestError) as caught:
        create(client, clip, "video/mp4", response_format=form(FORM))
    assert caught.value.param == "response_format"


def test_a_stream_that_cannot_be_made_ends_with_the_reason(client: OpenAI, clip: bytes) -> None:
    with pytest.raises(openai.APIError) as caught:
        streamed(client, clip, "video/mp4", response_format=form(FORM))
    assert "3 chunks" in caught.value.message and caught.value.param == "response_format"


def test_captions_of_the_own_route_are_those_of_a_chat(
    base: str, picture: bytes, plain: Any
) -> None:
    answer = httpx.post(f"{base}/caption", params={"prompt": PROMPT}, content=picture, timeout=60)
    (caption,) = answer.json()["captions"]
    assert caption["caption"] == text_of(plain)
    assert set(caption) == {"start", "end", "caption", "tokens", "ended"}


def test_the_next_version_of_the_client_sees_all_the_same(port: int) -> None:
    assert openai.__version__.startswith("2.")
    folder, why = next_client()
    if why:
        pytest.skip(f"the next version of the client cannot be installed: {why}")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "slow",
         "-k", "not next_version", __file__],
        cwd=ROOT,
        env={**os.environ, PORT: str(port), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    said = subprocess.run(
        [sys.executable, "-c", "import openai; print(openai.__version__)"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith("3.")


def test_the_picture_counts_and_not_how_it_is_spelled(
    client: OpenAI, picture: bytes, plain: Any
) -> None:
    data = base64.b64encode(picture).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:;base64,{data}", "detail": "high"}},
        {"type": "text", "text": PROMPT},
    ]
    asked: Any = [{"role": "user", "content": parts}]
    assert text_of(client.chat.completions.create(model="demo", messages=asked)) == text_of(plain)
