"""What a request brings: what a chat asks for is honoured or refused by name, a body becomes a file
within bounds, and clients are told names and not where files lie."""

import asyncio
import base64
import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.records.keys import content_key
from flows.interfaces.serve import uploads
from flows.interfaces.serve.captioning import CaptionParams, StreamedText, in_order, joined_text
from flows.interfaces.serve.chat import (
    MIN_TEMPERATURE,
    MIN_TOP_P,
    MOST_PICTURES,
    ChatRequest,
    json_in,
    parse_chat_request,
)
from flows.interfaces.serve.refusals import HttpRefusal, shown_name, without_paths
from flows.interfaces.serve.temp_store import TempStore, temp_folder
from flows.interfaces.serve.uploads import Upload, kind_of, receive, stored
from stages.decode.generation import SamplingParams
from stages.models.profile import TURN
from stages.process.events import CaptionProgress

LIMIT = 256
PICTURE = b"\x89PNG\r\n\x1a\n"
URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": URL}},
        ],
    }
]
SCHEMA = {"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


TEXT = {"type": "string"}


def of_a(schema: Any) -> dict[str, Any]:
    """The schema of an object whose one field has this schema."""
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def choice(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def read(**request: Any) -> ChatRequest:
    body = json.dumps({"model": "demo", "messages": MESSAGES, **request}).encode()
    return parse_chat_request(body, {"demo"})


def refused(**request: Any) -> HttpRefusal:
    with pytest.raises(HttpRefusal) as caught:
        read(**request)
    return caught.value


def test_a_request_without_settings_is_the_servers() -> None:
    found = read()
    assert (found.prompt, found.medium, found.streamed) == ("What is it?", PICTURE, False)
    assert found.params == CaptionParams(counts_prompt=True)
    assert found.params.settings(LIMIT, LIMIT) == ""


@pytest.mark.parametrize(
    "params",
    [
        {"n": 1}, {"presence_penalty": 0}, {"frequency_penalty": 0.0}, {"logprobs": False},
        {"top_logprobs": None}, {"tools": []}, {"user": "me"}, {"metadata": {"a": "b"}},
        {"store": False}, {"logit_bias": {}}, {"tool_choice": "none"}, {"temperature": 0},
        {"top_p": 1}, {"seed": 7}, {"stop": None}, {"stop": []}, {"max_tokens": None},
        {"response_format": {"type": "text"}}, {"stream": None}, {"temperature": 1e-9},
        {"unheard_of": None}, {"parallel_tool_calls": True}, {"service_tier": "auto"},
        {"prompt_cache_retention": "24h"}, {"prompt_cache_options": {"retention": "24h"}},
        {"temperature": 0.0, "top_p": 0.5}, {"top_p": 0}, {"temperature": 1.5, "top_p": 0.0},
    ],
)  # fmt: skip
def test_values_that_change_nothing_are_taken(params: dict[str, Any]) -> None:
    assert read(**params).params == CaptionParams(counts_prompt=True)


VLLM = {
    "frequency_penalty": (None, 0.0), "logit_bias": (None, {}), "logprobs": (None, False),
    "top_logprobs": (0,), "n": (None, 1), "presence_penalty": (None, 0.0), "stop": (None, []),
    "stream": (None, False), "tools": (None, []), "tool_choice": ("none",),
    "reasoning_effort": (None, "none"), "thinking_token_budget": (None,),
    "include_reasoning": (True,), "parallel_tool_calls": (None, True), "use_beam_search": (False,),
    "top_k": (None, 0, -1), "min_p": (None, 0.0, 0), "repetition_penalty": (None, 1.0, 1),
    "watermarking": (None,), "length_penalty": (1.0, 1), "stop_token_ids": (None, []),
    "include_stop_str_in_output": (False,), "ignore_eos": (False,), "min_tokens": (0,),
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (None,), "truncation_side": (None,), "prompt_logprobs": (None,),
    "logprob_token_ids": (None,), "allowed_token_ids": (None,), "bad_words": ([],),
    "echo": (False,), "add_generation_prompt": (True,), "continue_final_message": (False,),
    "add_special_tokens": (False,), "documents": (None,), "chat_template": (None,),
    "chat_template_kwargs": (None, {}), "media_io_kwargs": (None, {}),
    "mm_processor_kwargs": (None, {}), "structured_outputs": (None,), "priority": (0,),
    "session_id": (None,), "return_tokens_as_token_ids": (None,), "return_token_ids": (None,),
    "routed_experts_prompt_start": (0,), "return_token_offsets": (None, False),
    "return_prompt_text": (None,), "return_mm_kwargs": (True,), "cache_salt": (None,),
    "kv_transfer_params": (None,), "ec_transfer_params": (None,), "vllm_xargs": (None,),
    "repetition_detection": (None,), "stream_interval": (None,),
    "response_format": (None, {"type": "text"}), "max_tokens": (None,), "seed": (None, 0),
    "max_completion_tokens": (None,), "stream_options": (None,), "temperature": (None,),
    "top_p": (None, 1.0), "user": (None, "me"), "model": ("demo", None),
}  # fmt: skip
"""Field of vLLM's ChatCompletionRequest → its default, and the value by which vLLM means that."""


@pytest.mark.parametrize("name", VLLM)
def test_a_default_of_vllm_asks_for_nothing(name: str) -> None:
    for value in VLLM[name]:
        assert read(**{name: value}).params == CaptionParams(counts_prompt=True), value
    assert read(**{name: values[-1] for name, values in VLLM.items()}).params == read().params


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 5}, {"top_k": -2}, {"min_p": 0.1}, {"repetition_penalty": 1.2}, {"echo": True},
        {"length_penalty": 2.0}, {"stop_token_ids": [5]}, {"ignore_eos": True}, {"min_tokens": 4},
        {"skip_special_tokens": False}, {"bad_words": ["a"]}, {"add_generation_prompt": False},
        {"chat_template_kwargs": {"enable_thinking": False}}, {"mm_processor_kwargs": {"fps": 1}},
        {"priority": 1}, {"include_reasoning": False}, {"documents": [{"text": "x"}]},
        {"structured_outputs": {"choice": ["a"]}}, {"cache_salt": "x"}, {"session_id": "s"},
        {"stream_interval": 2}, {"watermarking": False}, {"allowed_token_ids": [1]},
    ],
)  # fmt: skip
def test_another_value_of_such_a_field_is_refused_by_its_name(params: dict[str, Any]) -> None:
    why, (name,) = refused(**params), params
    assert (why.status, why.code, why.param) == (400, "unsupported_parameter", name)
    assert name in why.error


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["messages", "stop", "tools", "modalities", "bad_words", "content"]
)
def test_a_list_of_many_wrong_values_is_refused_at_the_first(name: str) -> None:
    many: Any = [5] * 300_000
    wrong = {"messages": [{"role": "user", "content": many}]} if name == "content" else {name: many}
    tracemalloc.start()
    refused(**wrong)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20e6, f"{most:,} bytes for a body of 900,000"


def test_any_object_is_a_schema_of_its_own_that_no_limit_refuses() -> None:
    found = read(response_format={"type": "json_object"}, max_tokens=1).params
    assert json.loads(found.generation.schema) == {"type": "object"}
    assert read(response_format=form({"type": "object"}), max_tokens=1).params == found
    found = read(response_format={"type": "json_object", "schema": SCHEMA}).params
    assert json.loads(found.generation.schema) == SCHEMA


@pytest.mark.parametrize("one", ["required", choice("f")])
@pytest.mark.parametrize(
    ("parameters", "schema"),
    [
        (SCHEMA, SCHEMA),
        ({"type": "object", "additionalProperties": True}, {"type": "object"}),
        *(
            (each, {"type": "object", "additionalProperties": False})
            for each in (None, {}, {"type": "object"}, {"type": "object", "properties": {}})
        ),
    ],
)
def test_a_function_that_must_be_called_gives_its_parameters_as_the_schema(
    one: Any, parameters: Any, schema: Any
) -> None:
    found = read(tools=[tool("f", parameters)], tool_choice=one)
    assert (found.function, json.loads(found.params.generation.schema)) == ("f", schema)
    assert read(tools=[tool("f")], tool_choice="none").params == read().params


def test_refusals_of_a_chat_are_bad_requests_with_a_code_and_a_parameter() -> None:
    text, call = read(), read(tools=[tool("f")], tool_choice="required")
    for status in (415, 422):
        why = text.refusal(HttpRefusal(status, "damaged", "Send another"))
        assert (why.status, why.code, why.param) == (400, "invalid_image", "messages")
    for status in (401, 404, 408, 413, 429, 503, 504):
        assert text.refusal(HttpRefusal(status, "x")).status == status
    why = HttpRefusal(400, "3 chunks", code="unsupported_parameter", param="response_format")
    assert [each.refusal(why).param for each in (text, call)] == ["response_format", "tools"]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"n": 2}, "n"), ({"n": True}, "n"), ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logprobs": True}, "logprobs"), ({"tools": [tool("f")]}, "tools"),
        ({"logprobs": True, "max_tokens": 2}, "logprobs"),
        ({"logprobs": True, "max_tokens": 1, "temperature": 1}, "logprobs"),
        ({"logprobs": True, "max_tokens": 1, "stream": True}, "logprobs"),
        ({"logprobs": True, "max_tokens": 1, "stop": "a"}, "logprobs"),
        ({"logprobs": True, "max_tokens": 1, "presence_penalty": 1}, "logprobs"),
        ({"logprobs": True, "max_tokens": 1, "response_format": {"type": "json_object"}},
         "logprobs"),
        ({"tools": [tool("f")], "tool_choice": "auto"}, "tools"),
        ({"tools": [tool("f"), tool("g")], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool("f")], "tool_choice": choice("g")}, "tool_choice"),
        ({"tools": [tool("f", {"type": "array"})], "tool_choice": choice("f")}, "tools"),
        ({"tools": [tool("f")], "tool_choice": "required",
          "response_format": {"type": "json_object"}}, "response_format"),
        ({"store": True}, "store"),
        ({"tool_choice": "required"}, "tool_choice"), ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"top_k": 5}, "top_k"), ({"audio": {}}, "audio"), ({"prediction": {}}, "prediction"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": form({"type": "array"})}, "response_format"),
        ({"response_format": form({"const": 0})}, "response_format"),
        ({"response_format": form({"type": "object", "additionalProperties": TEXT})},
         "response_format"),
        ({"response_format": form({"$ref": "http://example.org/a"})}, "response_format"),
        ({"response_format": form(of_a({"type": "thing"}))}, "response_format"),
        ({"response_format": form(of_a({"enum": ["x" * 70_000]}))}, "response_format"),
        ({"response_format": form(of_a(TEXT | {"minLength": 5, "maxLength": 2}))},
         "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"), ({"guided_json": 1}, "guided_json"),
        ({"reasoning_effort": "high"}, "reasoning_effort"), ({"x" * 5000: 1}, "x" * 5000),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_its_name(params: dict[str, Any], param: str) -> None:
    why = refused(**params)
    assert (why.status, why.code, why.param) == (400, "unsupported_parameter", param)
    message: Any = why.to_json("/v1/chat/completions")["error"]
    assert (message["type"], message["param"]) == ("invalid_request_error", param)
    assert message["message"]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"temperature": -1}, "temperature"), ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"), ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"), ({"seed": -1}, "seed"), ({"seed": 1.5}, "seed"),
        ({"presence_penalty": 2.5}, "presence_penalty"), ({"max_tokens": 0}, "max_tokens"),
        ({"presence_penalty": -3}, "presence_penalty"), ({"seed": 1 << 63}, "seed"),
        ({"presence_penalty": True}, "presence_penalty"),
        ({"max_tokens": -3}, "max_tokens"), ({"max_tokens": 2.0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"), ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"), ({"stop": "x" * 1001}, "stop"), ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"), ({"stream_options": {}}, "stream_options"),
        ({"response_format": "json"}, "response_format"), ({"messages": "hello"}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"tools": [{}]}, "tools"), ({"tool_choice": {"type": "function"}}, "tool_choice"),
        *(({"request_id": name}, "request_id") for name in ("", "a b", "a\n", "x" * 129, 5)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(params: dict[str, Any], param: str) -> None:
    why = refused(**params)
    assert (why.status, why.code, why.param) == (400, "invalid_value", param)


def test_texts_of_who_asks_are_the_prompt_and_unknown_roles_are_refused() -> None:
    texts = [{"role": role, "content": role} for role in ("developer", "user")]
    assert read(messages=[*texts, *MESSAGES]).prompt == "developer\nuser\nWhat is it?"
    for role in ("judge", "", None, ["user"]):
        assert refused(messages=[{"role": role, "content": "x"}, *MESSAGES]).param == "messages"


def test_generation_takes_every_value_that_a_request_may_have() -> None:
    for temperature in (MIN_TEMPERATURE, 2):
        for top_p in (MIN_TOP_P, 1.0):
            for seed in (0, 2**63 - 1):
                found = read(temperature=temperature, top_p=top_p, seed=seed).params.generation
                assert (found.temperature, found.seed) == (temperature, seed)


TALK = ({"role": "assistant", "content": "Red."}, {"role": "user", "content": "Why?"})


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([*MESSAGES, *TALK], ["What is it?", "Red.", "Why?"]),
        ([*MESSAGES, *TALK, *TALK], ["What is it?", "Red.", "Why?", "Red.", "Why?"]),
        ([{"role": "system", "content": "Be short."}, *MESSAGES], ["Be short.\nWhat is it?"]),
        ([*MESSAGES, TALK[0], *TALK], ["What is it?", "Red.\nRed.", "Why?"]),
        (
            [*MESSAGES, TALK[0], {"role": "user", "content": "a\x1eb"}],
            ["What is it?", "Red.", "a b"],
        ),
    ],
)
def test_answers_and_questions_take_turns(messages: list[Any], turns: list[str]) -> None:
    assert read(messages=messages).prompt.split(TURN) == turns


@pytest.mark.parametrize("messages", [[*MESSAGES, TALK[0]], [TALK[0], *MESSAGES]])
def test_a_conversation_that_does_not_end_with_a_question_is_refused(messages: list[Any]) -> None:
    why = refused(messages=messages)
    assert (why.status, why.code, why.param) == (400, "invalid_value", "messages")
    assert "of the user" in why.error


def test_images_are_as_many_as_the_limit() -> None:
    part = MESSAGES[0]["content"][1]
    for count in (1, 2, MOST_PICTURES):
        found = read(messages=[{"role": "user", "content": [part] * count}])
        assert 1 + len(found.others) == count
    assert "0 images" in refused(messages=[{"role": "user", "content": "What?"}]).error
    many = [{"role": "user", "content": [part] * (MOST_PICTURES + 1)}]
    assert refused(messages=many).param == "messages"


@pytest.mark.parametrize(
    ("role", "content"),
    [
        *((role, text) for role in ("tool", "function") for text in ("It is red.", None)),
        ("assistant", None),
        ("assistant", ""),
    ],
)
def test_messages_of_earlier_talk_are_refused_by_their_place(role: str, content: Any) -> None:
    texts = [*MESSAGES, {"role": role, "content": content}, {"role": "user", "content": "Why?"}]
    why = refused(messages=texts)
    assert (why.status, why.code) == (400, "unsupported_parameter")
    assert why.param == "messages[1].role" and repr(role) in why.error


@pytest.mark.parametrize(
    "head", ["DATA:image/jpeg;BASE64,", "data:image/png;charset=utf-8;base64,", "data:;base64,"]
)
@pytest.mark.parametrize("ends", ["\r\n", " \n\t", ""])
def test_base64_may_have_line_breaks_and_any_case_of_its_scheme(head: str, ends: str) -> None:
    medium = PICTURE + bytes(range(256))
    letters = base64.b64encode(medium).decode()
    lines = [letters[at : at + 76] for at in range(0, len(letters), 76)]
    part = {"type": "image_url", "image_url": {"url": head + ends.join(lines) + ends}}
    assert read(messages=[{"role": "user", "content": [part]}]).medium == medium


def test_other_addresses_and_damaged_base64_are_refused() -> None:
    for url, code in (
        *((f"data:image/png{text}", "invalid_image_url") for text in (",AAAA", ";base64")),
        *((f"data:image/png;base64,{text}", "invalid_base64_image") for text in ("A", "A*==")),
        *((f"{text};base64,AAAA", "invalid_image_url") for text in ("xdata:", "http://a.org/")),
    ):
        part = {"type": "image_url", "image_url": {"url": url}}
        why = refused(messages=[{"role": "user", "content": [part]}])
        assert (why.status, why.code, why.param) == (400, code, "messages"), url


def test_another_model_is_not_found() -> None:
    why = refused(model="gpt-4o")
    assert (why.status, why.code, why.param) == (404, "model_not_found", "model")


def test_sampling_and_limits_are_those_of_the_request() -> None:
    found = read(temperature=0.7, top_p=0.5, seed=3, max_tokens=9, max_completion_tokens=7).params
    assert found.generation == SamplingParams(temperature=0.7, top_p=0.5, seed=3)
    assert found.max_tokens == 7 and found.settings(7, LIMIT)
    assert read(top_p=0.5).params.generation == SamplingParams(top_p=0.5)
    greedy = read(presence_penalty=-1, temperature=0).params.generation
    assert greedy == SamplingParams(presence_penalty=-1.0)
    warm = read(presence_penalty=1.5, temperature=0.7).params.generation
    assert warm == SamplingParams(presence_penalty=1.5, temperature=0.7)
    assert read(stop="b").params.stop == ("b",)
    assert read(stop=["b", "a", "b"]).params.text == read(stop=["a", "b"]).params.text


def test_other_settings_are_another_answer() -> None:
    every = [
        read(**request).params.text
        for request in (
            {}, {"seed": 1, "temperature": 1}, {"seed": 2, "temperature": 1}, {"stop": "a"},
            {"max_tokens": 5}, {"response_format": form(SCHEMA)}, {"top_p": 0.5},
            {"presence_penalty": 0.5},
        )
    ]  # fmt: skip
    assert len(set(every)) == len(every)


def test_no_limit_is_too_small_for_a_schema() -> None:
    assert read(response_format=form(SCHEMA), max_tokens=3).params.generation.schema


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'"\\ud800"', b'{"a": ["\\udc00"]}', b'{"\\ud83d": 1}',
             b"\xed\xa0\x80", b"[" * 100_000, b'{"a": NaN}', b'{"a": ' + b"9" * 5000 + b"}"]
)  # fmt: skip
def test_a_body_that_is_no_text_is_refused(body: bytes) -> None:
    with pytest.raises(HttpRefusal) as caught:
        json_in(body)
    assert caught.value.status == 400
    assert json_in(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}, "a pair is one letter"


def test_a_stream_sends_nothing_that_a_stop_string_takes_back() -> None:
    text = StreamedText(("circle",))
    assert text.add(0, "a red ci", ended=False) == "a red "
    assert text.add(0, "ty", ended=False) == "city"
    assert text.add(0, " cir", ended=False) == " "
    assert text.add(0, "cle and", ended=True) == ""
    assert text.rest(["a red city circle and"]) == ""


def test_a_stream_of_several_chunks_keeps_their_order() -> None:
    text = StreamedText(())
    assert text.add(1, "second", ended=True) == ""
    assert text.add(0, "fir", ended=False) == "fir"
    assert text.add(0, "st", ended=True) == "st\nsecond"
    assert text.rest(["first", "second", "third"]) == "\nthird"


def test_a_limit_and_a_stop_string_are_of_all_chunks_together() -> None:
    requests: list[tuple[int, str]] = []

    async def caption(at: int, settings: str) -> CaptionProgress:
        requests.append((at, settings))
        return CaptionProgress(key=str(at), caption=f"caption {at}", tokens=4, ended="stop")

    def made(**message: Any) -> list[Any]:
        requests.clear()
        return asyncio.run(in_order(3, CaptionParams(**message), 10, caption))

    assert [words.ended for words in made(max_tokens=6)] == ["stop", "length"]
    assert '"max_new_tokens":2' in requests[1][1]
    found = made(max_tokens=4)
    assert [words.ended for words in found] == ["length"]
    assert len(made(max_tokens=30)) == 3 and {settings for _, settings in requests} == {""}
    assert len(made(stop=("\n",))) == 1
    assert joined_text(["a", "b"], ("\n",)) == "a"
    with pytest.raises(HttpRefusal) as caught:
        made(generation=SamplingParams(schema="{}"))
    assert caught.value.param == "response_format"


PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)


async def pieces(*parts: bytes, wait: float = 0.0) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(wait)
        yield part


def received(folder: Path, *parts: bytes, most: int = 1000) -> Upload:
    return asyncio.run(receive(pieces(*parts), most, TempStore(folder)))


def test_a_body_becomes_a_file_known_by_its_content(tmp_path: Path) -> None:
    found = received(tmp_path, PNG[:3], b"", PNG[3:20], PNG[20:])
    assert found.path.read_bytes() == PNG
    assert found.path.suffix == ".png"
    assert found.digest == content_key(hashlib.sha256(PNG).hexdigest(), "image")
    again = stored(PNG, 1000, TempStore(tmp_path))
    assert found == Upload(path=found.path, digest=again.digest, kind=again.kind)
    found.remove()
    found.remove()
    assert not found.path.exists()


@pytest.mark.parametrize(
    ("parts", "status"),
    [((PNG, bytes(900)), 413), ((), 422), ((b"hello world, this is a text",), 415)],
)
def test_refusals_leave_no_file(tmp_path: Path, parts: tuple[bytes, ...], status: int) -> None:
    with pytest.raises(HttpRefusal) as caught:
        received(tmp_path, *parts)
    assert caught.value.status == status
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_stops_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PIECE_SECONDS", 0.02)
    with pytest.raises(HttpRefusal) as caught:
        asyncio.run(receive(pieces(PNG, PNG, wait=5.0), 1000, TempStore(tmp_path)))
    assert caught.value.status == 408


def test_a_body_that_trickles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.05)
    trickle = [bytes([each]) for each in PNG]
    with pytest.raises(HttpRefusal) as caught:
        asyncio.run(receive(pieces(*trickle, wait=0.005), 1000, TempStore(tmp_path)))
    assert caught.value.status == 408


def test_kinds_are_told_by_how_files_begin() -> None:
    images = (b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0 ftypheic", b"\0\0\0 ftypavif")
    assert {kind_of(start)[0] for start in images} == {"image"}
    videos = (b"\0\0\0 ftypisom", b"\x1a\x45\xdf\xa3", b"GIF89a")
    assert {kind_of(start)[0] for start in videos} == {"video"}


def test_folders_of_killed_servers_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.interfaces.serve.temp_store.MEMORY", tmp_path / "memory")
    (left := tmp_path / "penstock-serve-1-x").mkdir()  # of a container, where 1 always exists
    with temp_folder(tmp_path) as ours, temp_folder(tmp_path) as scratch:
        assert not left.exists()
        assert ours.folder.exists(), "its process lives"
        assert scratch.path(".a") != scratch.path(".a")
    assert not scratch.folder.exists() and not ours.folder.exists()


def test_folders_are_known_by_their_own_names() -> None:
    for place in ("/home/ann/models/qwen", "../models/qwen/", "~/qwen", "qwen"):
        assert shown_name(place) == "qwen"
    assert (shown_name("org/name"), shown_name("")) == ("org/name", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the index /home/ann/photos is away (gone)", "the index photos is away (gone)"),
        ("/data/a/model.safetensors: damaged", "model.safetensors: damaged"),
        ("'/data/a'", "'a'"),
        ("/dev/shm/penstock-serve-7-ab/65.jpg is damaged (cut)", "the file is damaged (cut)"),
        *((text, text) for text in ("Ask /v1/models, see /openapi.json", "16/9 or 4/3, and/or")),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
    ],
)
def test_texts_hold_no_absolute_paths(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_no_refusal_holds_an_absolute_path() -> None:
    why = HttpRefusal(503, "the index /home/ann/photos is away", "Build /home/ann/photos again")
    assert "/home" not in str(why.to_json()) + str(why.to_json("/v1/chat/completions"))
