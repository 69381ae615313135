"""Implements OpenAI's chat completions API, so that existing clients work.

A request contains a prompt, or a conversation that ends with a question, about images or a clip,
which are sent inline. The server fetches no URLs.

Some parameters of a request take effect. Some are accepted only with the value that changes
nothing, which is their own default in OpenAI's API or in vLLM's. All others are refused.
"""

import asyncio
import base64
import binascii
import itertools
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.tiles import AUTO
from flows.interfaces.serve.caption_routes import EVENTS, CaptionRoutes, event
from flows.interfaces.serve.captioning import Captioned, CaptionParams, StreamedText, joined_text
from flows.interfaces.serve.embedding import warnings_of
from flows.interfaces.serve.guard import in_time
from flows.interfaces.serve.refusals import (
    OPENAI,
    HttpRefusal,
    invalid,
    invalid_message,
    json_answer,
    shown_name,
    unsupported,
)
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.uploads import START_BYTES, Upload, body_of, kind_of, stored
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import ANY_OBJECT, EMPTY_OBJECT, canonical
from stages.decode.schema_bounds import plain
from stages.models.profile import TURN

MAX_STOPS, STOP_LETTERS = 4, 1000
SCHEMA_LETTERS = 64 << 10
LARGEST_SEED = (1 << 63) - 1
MIN_TEMPERATURE = 1e-3
"""Temperatures below this decode greedily, as 0 does; the logits would overflow."""
MIN_TOP_P = 1e-6
"""Values of `top_p` below this decode greedily, as 0 does."""
MAX_TOP = 20
"""Largest `top_logprobs`."""
RESPONSE_FORMAT = "response_format"
FORMATS = '{"type": "text"} or {"type": "json_schema", "json_schema": {"schema": {…}}}'
FUNCTION = '{"type": "function", "function": {"name": "…"}}'


class _Part(BaseModel):
    """A part of a request. Descriptions complete "Give …", the hint of a refused value."""

    model_config = ConfigDict(strict=True, frozen=True)


class _Closed(_Part):
    """A part whose unknown fields are refused, unless they are null."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"type": "null"}})

    @classmethod
    def check_known(cls, given: Json, path: str = "") -> None:
        """Raise HttpRefusal for the first unknown field. pydantic would describe all of them,
        which may be millions."""
        for name, value in given.items() if isinstance(given, dict) else ():
            if value is not None and name not in cls.model_fields:
                error = f"the parameter {(path and path + '.') + name[:80]!r} is not supported"
                raise unsupported(path or name, error)


Stop = Annotated[str, Field(min_length=1, max_length=STOP_LETTERS)]


class StreamOptions(_Closed):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: Literal[False] | None = None


class GivenSchema(_Part):
    """A schema with its name."""

    given: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Part):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: GivenSchema | None = None
    given: dict[str, Any] | None = Field(None, alias="schema")
    """The schema of a json_object, as llama.cpp and others have it."""


class Function(_Part):
    """A function; in `tool_choice` it has only its name."""

    name: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")
    parameters: dict[str, Any] | None = None


class Tool(_Part):
    """A function as a tool."""

    type: Literal["function"]
    function: Function


class Message(_Part):
    """A message; its parts are read by `chat.py`."""

    role: str
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None


class ChatParams(_Closed):
    """The parameters that take effect."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(
        description="a list of messages with role and content, in OpenAI's form"
    )
    model: str | None = Field(None, description="the name from GET /v1/models")
    max_tokens: int | None = Field(None, ge=1, description="a whole number from 1")
    max_completion_tokens: int | None = Field(None, ge=1, description="a whole number from 1")
    temperature: float | None = Field(None, ge=0, le=2, description="a number from 0 to 2")
    top_p: float | None = Field(None, ge=0, le=1, description="a number from 0 to 1")
    sound: Literal["auto", "on", "off"] | None = Field(None, description="auto, on or off")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="a number from -2 to 2")
    logprobs: bool | None = Field(None, description="true or false")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP, description=f"a whole number from 0 to {MAX_TOP}"
    )
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="a whole number from 0 to 2^63 - 1"
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = Field(
        None,
        description=f"1 to {STOP_LETTERS} characters, or a list of up to {MAX_STOPS} such texts",
    )
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(None, description='{"include_usage": true}')
    response_format: ResponseFormat | None = Field(None, description=FORMATS)
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = Field(
        None, description=f'[{FUNCTION[:-2]}, "parameters": {{…}}}}}}]'
    )
    tool_choice: Literal["none", "auto", "required"] | Tool | None = Field(
        None, description=FUNCTION
    )
    request_id: str | None = Field(
        None,
        pattern="^[A-Za-z0-9._-]{1,128}$",
        description="1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'",
    )


_Zero, _One = Annotated[float, Field(ge=0, le=0)], Annotated[float, Field(ge=1, le=1)]
_NoList = Annotated[list[Any], Field(max_length=0)]
_NoObject = Annotated[dict[str, Any], Field(max_length=0)]
NEUTRAL: tuple[tuple[Any, str], ...] = (
    (_Zero, "frequency_penalty min_p min_tokens priority routed_experts_prompt_start"),
    (_One, "n repetition_penalty length_penalty"),
    (Literal[-1, 0], "top_k"),
    (Literal[False], "store use_beam_search include_stop_str_in_output ignore_eos echo"),
    (Literal[False], "continue_final_message add_special_tokens return_token_offsets"),
    (Literal[True], "include_reasoning skip_special_tokens spaces_between_special_tokens"),
    (Literal[True], "add_generation_prompt return_mm_kwargs"),
    (_NoList, "functions stop_token_ids bad_words"),
    (_NoObject, "logit_bias chat_template_kwargs media_io_kwargs mm_processor_kwargs"),
    (bool, "parallel_tool_calls"),
    (Literal["none", "auto"], "function_call"),
    (Annotated[list[Literal["text"]], Field(min_length=1, fail_fast=True)], "modalities"),
    (Literal["auto", "default"], "service_tier"),
    (Literal["none"], "reasoning_effort"),
    (Literal["medium"], "verbosity"),
    (Any, "user metadata safety_identifier"),  # about the client
    (Any, "prompt_cache_key prompt_cache_retention prompt_cache_options"),  # features are stored
)
"""Types of the values that change nothing, each with the names of its parameters. Null changes
nothing in any parameter."""
_NEUTRAL_FIELDS: Any = {
    name: (kind | None, None) for kind, names in NEUTRAL for name in names.split()
}
ChatCompletionRequest: type[ChatParams] = create_model(
    "ChatCompletionRequest", __base__=ChatParams, **_NEUTRAL_FIELDS
)


def checked(request: Mapping[str, Json], models: Collection[str]) -> ChatParams:
    """Return the parameters of a request. Raises HttpRefusal for an unsupported or invalid one, and
    for an unknown model."""
    ChatCompletionRequest.check_known(request)
    StreamOptions.check_known(request.get("stream_options"), "stream_options")
    try:
        params = ChatCompletionRequest.model_validate(request)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        name = str(errors[0]["loc"][0])
        kinds = {problem["type"] for problem in errors if problem["loc"][0] == name}
        raise _refusal(request, name, kinds) from error
    if params.model is not None and params.model not in models:
        raise no_model(params.model)
    if params.stream_options and not params.stream:
        raise invalid("stream_options", "stream_options require a stream", "Add stream: true")
    return params


def _refusal(request: Mapping[str, Json], name: str, kinds: set[str]) -> HttpRefusal:
    """Return the refusal of a parameter for the kinds of pydantic's errors."""
    field = ChatParams.model_fields.get(name)
    if field is None or kinds == {"literal_error"}:
        return unsupported(name, f"{name} {_shown(request.get(name))} is not supported")
    hint = f"Give {field.description}"
    if name == "messages":  # may be large
        return invalid(name, "messages cannot be read", hint)
    return invalid(name, f"{name} is {_shown(request.get(name))}", hint)


def no_model(name: str) -> HttpRefusal:
    """Return the refusal of an unknown model."""
    error = f"the model {name[:80]!r} is not served"
    hint = "GET /v1/models lists the model"
    return HttpRefusal(404, error, hint, code="model_not_found", param="model")


def forced_function(params: ChatParams) -> Function | None:
    """Return the function that the answer has to call; None: it is a text. Raises HttpRefusal."""
    tools, choice = params.tools or [], params.tool_choice
    if choice == "none" or (choice in (None, "auto") and not tools):
        return None
    if choice in (None, "auto"):
        error = "the model does not choose whether it calls a function"
        raise unsupported("tools", error, "Name the function in tool_choice, or leave tools out")
    wanted = choice.function.name if isinstance(choice, Tool) else None
    functions = [tool.function for tool in tools if wanted in (None, tool.function.name)]
    if len(functions) != 1:
        error = f"{len(functions)} of {len(tools)} functions in tools fit tool_choice"
        raise unsupported("tool_choice", error, "Name one function of tools")
    if params.response_format and params.response_format.type != "text":
        error = "an answer that calls a function has the form of its parameters"
        raise unsupported(RESPONSE_FORMAT, error)
    return functions[0]


def caption_params(params: ChatParams, function: Function | None) -> CaptionParams:
    """Return the caption parameters of a chat request whose answer calls this function, if any.
    Compiling a schema takes a moment. Raises HttpRefusal."""
    limits = (params.max_tokens, params.max_completion_tokens)
    max_tokens = min((bound for bound in limits if bound is not None), default=None)
    source = "tools" if function else RESPONSE_FORMAT
    if function:
        schema = _canonical(function.parameters or {}, source)
    else:
        schema = _format_schema(params.response_format)
    stop = [params.stop] if isinstance(params.stop, str) else params.stop or []
    generation = _generation(params, schema)
    is_plain = generation == SamplingParams() and not stop and not params.stream
    if params.logprobs and not (is_plain and max_tokens == 1):
        error = "logprobs are stated of one token, decoded greedily and not as a stream"
        hint = "Send max_tokens: 1 and temperature: 0, and leave out what else changes the answer"
        raise unsupported("logprobs", error, hint)
    if params.top_logprobs and not params.logprobs:
        raise invalid("top_logprobs", "top_logprobs require logprobs", "Add logprobs: true")
    return CaptionParams(
        generation=generation,
        max_tokens=max_tokens,
        stop=tuple(sorted(set(stop))),
        counts_prompt=True,
        sound=params.sound or AUTO,
        top_logprobs=max(1, params.top_logprobs or 0) if params.logprobs else 0,
    )


def _generation(params: ChatParams, schema: str) -> SamplingParams:
    temperature = params.temperature
    share = None if params.top_p == 1.0 else params.top_p
    greedy = SamplingParams(presence_penalty=params.presence_penalty or None, schema=schema)
    cold = temperature is not None and temperature < MIN_TEMPERATURE
    narrow = share is not None and share < MIN_TOP_P
    if (temperature is None and share is None) or cold or narrow:
        return greedy
    return replace(greedy, temperature=temperature, top_p=share, seed=params.seed or 0)


def _format_schema(form: ResponseFormat | None) -> str:
    """Return the canonical text of the requested schema; empty: no schema. Raises HttpRefusal."""
    if form is None or form.type == "text":
        return ""
    if form.type == "json_object":
        return _canonical(form.given or {}, RESPONSE_FORMAT)
    if form.json_schema is None:
        hint = f"Give {ChatParams.model_fields[RESPONSE_FORMAT].description}"
        raise invalid(RESPONSE_FORMAT, "json_schema has no schema", hint)
    return _canonical(form.json_schema.given, RESPONSE_FORMAT)


def _canonical(schema: Mapping[str, Json], param: str) -> str:
    """Return the canonical text of a schema. Raises HttpRefusal."""
    rest = plain(schema)
    kind, more = rest.pop("type", "object"), rest.pop("additionalProperties", None)
    names_none = not any(rest.values()) and rest.keys() <= {"properties", "required"}
    if kind == "object" and names_none and more in (None, True, False):
        # A function without parameters gets none; elsewhere an object is open unless closed.
        is_open = param == RESPONSE_FORMAT if more is None else more
        return ANY_OBJECT if is_open else EMPTY_OBJECT
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) > SCHEMA_LETTERS:
        error, hint = f"its schema has {len(text):,} characters", f"Send at most {SCHEMA_LETTERS:,}"
        raise unsupported(param, error, hint)
    try:
        return canonical(text)
    except UsageError as error:
        message = error.message.replace("--schema", "the schema")
        raise unsupported(param, message, error.hint) from error


def _shown(value: Json) -> str:
    """Return a value as JSON for an error message, cut at 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


LONE = "a string contains a lone surrogate, which is not valid Unicode"


def json_in(body: bytes) -> Json:
    """Parse the JSON of a body. Raises HttpRefusal."""
    try:
        value: Json = from_json(body, allow_inf_nan=False)
        return value
    except ValueError as error:
        if "hex escape" in str(error):
            hint = "Write characters above \\uffff as a pair of escapes"
            raise HttpRefusal(400, LONE, hint) from error
        raise HttpRefusal(400, "the body is not JSON in UTF-8", "Send a JSON object") from error


READERS = 2
"""Chat requests that are parsed concurrently."""
BASE64 = 4 / 3
"""Size of base64 text relative to its content."""
TEXT, MEDIA = "text", ("image_url", "video_url")
"""Types of the parts of a message."""
DATA_URL = re.compile(r"data:.*;\s*base64\s*\Z", re.IGNORECASE)
"""The head of a base64 data: URL, up to its comma."""
PROMPT_ROLES = ("system", "developer", "user")
"""Roles whose texts form the prompt."""
ASSISTANT = "assistant"
TOOL_ROLES = ("tool", "function")
"""Roles of an earlier conversation that are refused."""
MOST_PICTURES = 16
"""Largest number of images of a request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A validated chat request."""

    prompt: str
    medium: bytes
    others: tuple[bytes, ...]
    """Further images."""
    params: CaptionParams
    streamed: bool
    usage: bool
    """Whether a stream ends with its token usage."""
    function: str = ""
    """Name of the function that the answer calls; empty: the answer is a text."""
    whole: str = "stop"
    """OpenAI's `finish_reason` of an answer that is not cut."""
    request_id: str = ""
    """The client's name of the request; empty: none."""
    alternatives: int = 0
    """Number of tokens that the log probabilities of an answer list beside its own."""

    def content(self, text: str, **call: Json) -> dict[str, Json]:
        """Return a text of the answer as fields of a message: its content, or the arguments of the
        call of the function, with the fields of that `call`."""
        if not self.function:
            return {"content": text}
        function = {**({"name": self.function} if "id" in call else {}), "arguments": text}
        return {"tool_calls": [{**call, "function": function}]}

    def finish_reason(self, captioned: Captioned) -> str:
        """Return OpenAI's `finish_reason` of an answer."""
        return "length" if any(out.ended == "length" for out in captioned.outputs) else self.whole

    def logprobs(self, captioned: Captioned) -> Json:
        """Return the log probabilities of an answer of one token in OpenAI's form; None: they were
        not requested. Raises HttpRefusal if the model states none."""
        if not self.params.top_logprobs:
            return None
        if not (top := captioned.outputs[0].first.get("top")):
            raise unsupported("logprobs", "the model states no log probabilities")
        tokens: list[dict[str, Json]] = [
            {"token": text, "logprob": score, "bytes": [*text.encode()]} for text, score in top
        ]
        others: list[Json] = [*tokens[: self.alternatives]]
        return {"content": [{**tokens[0], "top_logprobs": others}], "refusal": None}

    def refusal(self, why: HttpRefusal) -> HttpRefusal:
        """Return a refusal as OpenAI's clients know it: 400 for every invalid request, with a code,
        and with the parameter that this request has."""
        if why.status in (415, 422):
            return invalid_message(why.code or "invalid_image", why.error, why.hint)
        if why.param == RESPONSE_FORMAT and self.function:
            return unsupported("tools", why.error, why.hint)
        return why


class ChatRoutes:
    """Handles the chat requests of one service."""

    def __init__(self, service: Service, captions: CaptionRoutes) -> None:
        self._service = service
        self._captions = captions
        # A separate pool: parsing large bodies and schemas must not block other routes' threads.
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="chat")

    async def models(self) -> Response:
        """Return the captioning model, and that of vectors."""
        names = dict.fromkeys(self._names().values())
        return json_answer({"object": "list", "data": [_card(name) for name in names]})

    async def model(self, name: str) -> Response:
        """Return a model by its name."""
        if name not in self._names():
            raise no_model(name)
        return json_answer(_card(self._names()[name]))

    async def complete(self, request: Request) -> Response:
        """Answer a prompt about an image or a clip."""
        served = self._served()
        max_bytes = round(self._service.config.body_bytes * BASE64)
        body = await body_of(request, max_bytes)
        parse = partial(parse_chat_request, body, served)
        chat = await asyncio.get_running_loop().run_in_executor(self._readers, parse)
        try:
            return await self._answer(request, chat)
        except HttpRefusal as why:
            raise chat.refusal(why) from why

    async def _answer(self, request: Request, chat: ChatRequest) -> Response:
        config, temp_store = self._service.config, self._service.temp_store
        chat = await in_time(request.receive, self._with_pictures(chat), config.caption_deadline)
        upload = await asyncio.to_thread(stored, chat.medium, config.body_bytes, temp_store)
        head: dict[str, Json] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": round(time.time()),
            "model": self._captions.captions().model,
        }
        named = {"x-request-id": chat.request_id} if chat.request_id else {}
        if chat.streamed:
            events = self._events(upload, chat, head)
            return StreamingResponse(events, media_type=EVENTS, headers=named)
        captioned = await self._captions.captions_of(request, upload, chat.prompt, chat.params)
        text = joined_text((output.caption for output in captioned.outputs), chat.params.stop)
        content = chat.content(text, id=f"call_{uuid.uuid4().hex}", type="function")
        choice: dict[str, Json] = {
            "index": 0,
            "message": {"role": "assistant", "content": None, "refusal": None, **content},
            "finish_reason": chat.finish_reason(captioned),
            "logprobs": chat.logprobs(captioned),
        }
        answer: dict[str, Json] = {**head, "object": "chat.completion", "choices": [choice]}
        fields = {**answer, "usage": usage_of(captioned), **warnings_of(captioned.index)}
        return json_answer(fields, headers=named)

    async def _with_pictures(self, chat: ChatRequest) -> ChatRequest:
        """Encode all images but the first, and return a request with the keys of their features.
        Raises HttpRefusal."""
        config, captions = self._service.config, self._captions.captions()
        for start in (chat.medium, *chat.others) if chat.others else ():
            if kind_of(start[:START_BYTES])[0] != "image":
                why = "a clip cannot stand beside other images and clips"
                raise invalid("messages", why, "Send it alone, or send images")
        keys = []
        for content in chat.others:
            place = config.body_bytes, self._service.temp_store
            upload = await asyncio.to_thread(stored, content, *place)
            keys.append(await captions.encoded(upload, chat.prompt))
        return replace(chat, params=replace(chat.params, pictures=tuple(keys)))

    async def _events(
        self, upload: Upload, chat: ChatRequest, head: Mapping[str, Json]
    ) -> AsyncIterator[str]:
        def chunk(choices: Sequence[Json], usage: Json = None, **more: Json) -> str:
            fields = {"usage": usage, **more} if chat.usage else more
            return event({**head, "object": "chat.completion.chunk", "choices": choices, **fields})

        def delta(content: Mapping[str, Json], finished: str | None = None, **more: Json) -> str:
            choice: Json
            choice = {"index": 0, "delta": content, "finish_reason": finished, "logprobs": None}
            return chunk([choice], **more)

        opening = chat.content("", index=0, id=f"call_{uuid.uuid4().hex}", type="function")
        yield delta({"role": "assistant", "content": None, **opening})
        text = StreamedText(chat.params.stop)
        try:
            async for piece in self._captions.pieces(upload, chat.prompt, chat.params):
                if isinstance(piece, Captioned):
                    if new := text.rest(output.caption for output in piece.outputs):
                        yield delta(chat.content(new, index=0))
                    yield delta({}, chat.finish_reason(piece), **warnings_of(piece.index))
                    if chat.usage:
                        yield chunk([], usage_of(piece))
                elif new := text.add(piece.chunk, piece.text, ended=piece.ended):
                    yield delta(chat.content(new, index=0))
        except HttpRefusal as why:
            yield event(chat.refusal(why).to_json(OPENAI[0]))
        yield event("[DONE]")

    def _names(self) -> dict[str, str]:
        """Return the accepted names of the models, each with the one that is shown."""
        service = self._service
        captions, names = service.captions, dict[str, str]()
        if (job := service.job) is not None:
            shown = shown_name(job.model.name)
            names |= {shown: shown, job.model.name: shown}
        return names if captions is None else dict.fromkeys(self._served(), captions.model) | names

    def _served(self) -> tuple[str, ...]:
        """Return the model's accepted names: the displayed one, and the one of --caption-model."""
        return self._captions.captions().model, self._service.config.caption_model


def _card(name: str) -> dict[str, Json]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "penstock"}


def usage_of(captioned: Captioned) -> dict[str, int]:
    """Return the token usage in OpenAI's form."""
    prompt = sum(output.prompt_tokens for output in captioned.outputs)
    generated = sum(output.tokens for output in captioned.outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }


def parse_chat_request(body: bytes, models: Collection[str]) -> ChatRequest:
    """Parse the body of a chat request. `models` are the accepted names of the model. Raises
    HttpRefusal."""
    fields = json_in(body)
    if not isinstance(fields, dict):
        raise HttpRefusal(
            400, "the body is not a chat completion request", "Send a JSON object in OpenAI's form"
        )
    chat = checked(fields, models)
    function = forced_function(chat)
    params = caption_params(chat, function)
    try:
        messages = [(f"messages[{at}]", message) for at, message in enumerate(chat.messages)]
        parts = [part for name, message in messages for part in _parts(name, message)]
    except (ValueError, TypeError, KeyError) as error:
        hint = "Send messages with role and content, in OpenAI's form"
        raise invalid("messages", "messages cannot be read", hint) from error
    media = [part for kind, part in parts if kind in MEDIA]
    if not 1 <= len(media) <= MOST_PICTURES:
        why = f"the request has {len(media)} images and clips; 1 to {MOST_PICTURES} are accepted"
        raise invalid("messages", why, "Send parts of type image_url, or one of type video_url")
    medium, *others = map(data_in, media)
    return ChatRequest(
        prompt=_prompt_of(parts),
        medium=medium,
        others=tuple(others),
        params=params,
        streamed=bool(chat.stream),
        usage=bool(chat.stream_options and chat.stream_options.include_usage),
        function=function.name if function else "",
        # OpenAI says `stop` where the request names the function.
        whole="tool_calls" if function and chat.tool_choice == "required" else "stop",
        request_id=chat.request_id or "",
        alternatives=chat.top_logprobs or 0,
    )


def _parts(name: str, message: Message) -> Sequence[tuple[str, str]]:
    """Return the type and content of each part of a message. Raises HttpRefusal for an
    unsupported role; `name` is the message's path in the request."""
    role, content = message.role, message.content or ""
    if role in TOOL_ROLES or (role == ASSISTANT and not content):
        hint = "Send texts, in messages of the roles system, developer, user and assistant"
        kind = "without a text" if role == ASSISTANT else "of this role"
        raise unsupported(f"{name}.role", f"{role!r}: messages {kind} are not supported", hint)
    if role not in (*PROMPT_ROLES, ASSISTANT):
        raise ValueError(role)
    if isinstance(content, str):
        return [(role if role == ASSISTANT else TEXT, content)]
    parts = []
    for part in content:
        kind = str(part["type"])
        if kind not in (TEXT, *MEDIA, "refusal"):
            raise unsupported("messages", f"a part of type {kind[:80]!r} is not supported")
        value = part[kind]
        text = value["url"] if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise TypeError(kind)
        parts.append((role if (role, kind) == (ASSISTANT, TEXT) else kind, text))
    return parts


def _prompt_of(parts: Sequence[tuple[str, str]]) -> str:
    """Return the texts as a prompt: the question, or questions and answers in turn. Raises
    HttpRefusal unless questions begin and end them."""
    said = [(kind, text) for kind, text in parts if kind in (TEXT, ASSISTANT) and text]
    turns = [
        (kind, "\n".join(text.replace(TURN, " ") for _, text in texts))
        for kind, texts in itertools.groupby(said, key=lambda part: part[0])
    ]
    if turns and {turns[0][0], turns[-1][0]} != {TEXT}:
        why = "a conversation begins and ends with a message of the user"
        raise invalid("messages", why, "Send the question that is to be answered last")
    return TURN.join(text for _, text in turns)


def data_in(address: str) -> bytes:
    head, comma, data = address.partition(",")
    if not (DATA_URL.match(head) and comma):
        hint = "Send the file itself: data:image/jpeg;base64,…"
        raise invalid_message("invalid_image_url", "only data: URLs are accepted", hint)
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "Encode the file in base64 again"
        raise invalid_message("invalid_base64_image", "the data: URL is damaged", hint) from error
