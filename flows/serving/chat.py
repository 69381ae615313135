"""Implements OpenAI's chat completions API, so that existing clients work.

A request contains one prompt about one image or clip, which is sent inline. The server fetches no
URLs and continues no earlier conversation.
"""

import asyncio
import base64
import binascii
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from flows.serving.answers import warnings_of
from flows.serving.caption_params import CaptionParams, StreamedText, joined_text
from flows.serving.caption_routes import EVENTS, CaptionRoutes, event
from flows.serving.captioning import Captioned
from flows.serving.chat_params import (
    RESPONSE_FORMAT,
    Message,
    caption_params,
    checked,
    forced_function,
    no_model,
)
from flows.serving.json_answers import json_answer
from flows.serving.refusals import OPENAI, HttpRefusal, invalid, invalid_message, unsupported
from flows.serving.service import Service
from flows.serving.uploads import Upload, body_of, stored

LONE = "a string contains a lone surrogate, which is not valid Unicode"


def json_in(body: bytes) -> Any:
    """Parse the JSON of a body. Raises HttpRefusal."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        _check_texts(value)
        return value
    except UnicodeEncodeError as error:
        raise HttpRefusal(
            400, LONE, "Write characters above \\uffff as a pair of escapes"
        ) from error
    except (ValueError, RecursionError) as error:  # its message would quote bytes of the body
        raise HttpRefusal(400, "the body is not JSON in UTF-8", "Send a JSON object") from error


def _check_texts(value: Any) -> None:
    """Raise UnicodeEncodeError for a string that UTF-8 cannot encode."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
    elif isinstance(value, list):
        for each in value:
            _check_texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_texts(name)
            _check_texts(each)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


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
HISTORY_ROLES = ("assistant", "tool", "function")
"""Roles of an earlier conversation, which are refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A validated chat request."""

    prompt: str
    medium: bytes
    params: CaptionParams
    streamed: bool
    usage: bool
    """Whether a stream ends with its token usage."""
    function: str = ""
    """Name of the function that the answer calls; empty: the answer is a text."""
    request_id: str = ""
    """The client's name of the request; empty: none."""

    def content(self, text: str, **call: Any) -> dict[str, Any]:
        """Return a text of the answer as fields of a message: its content, or the arguments of the
        call of the function, with the fields of that `call`."""
        if not self.function:
            return {"content": text}
        function = {**({"name": self.function} if "id" in call else {}), "arguments": text}
        return {"tool_calls": [{**call, "function": function}]}

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
        """Return the one captioning model."""
        return json_answer({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        """Return the captioning model by its name."""
        if name not in self._served():
            raise no_model(name)
        return json_answer(self._model())

    async def complete(self, request: Request) -> Response:
        """Answer a prompt about an image or a clip."""
        captions, served = self._captions.captions(), self._served()
        max_bytes = round(self._service.config.body_bytes * BASE64)
        body = await body_of(request, max_bytes)
        parse = partial(parse_chat_request, body, served, captions.limit)
        chat = await asyncio.get_running_loop().run_in_executor(self._readers, parse)
        try:
            return await self._answer(request, chat)
        except HttpRefusal as why:
            raise chat.refusal(why) from why

    async def _answer(self, request: Request, chat: ChatRequest) -> Response:
        config, temp_store = self._service.config, self._service.temp_store
        upload = await asyncio.to_thread(stored, chat.medium, config.body_bytes, temp_store)
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": round(time.time()),
            "model": self._captions.captions().model,
        }
        named = {"x-request-id": chat.request_id} if chat.request_id else {}
        if chat.streamed:
            events = self._events(upload, chat, head)
            return StreamingResponse(events, media_type=EVENTS, headers=named)
        found = await self._captions.captions_of(request, upload, chat.prompt, chat.params)
        text = joined_text((output.caption for output in found.outputs), chat.params.stop)
        content = chat.content(text, id=_call_id(), type="function")
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": None, "refusal": None, **content},
            "finish_reason": finish_reason(found),
            "logprobs": None,
        }
        answer = {**head, "object": "chat.completion", "choices": [choice]}
        fields = {**answer, "usage": usage_of(found), **warnings_of(found.index)}
        return json_answer(fields, headers=named)

    async def _events(
        self, upload: Upload, chat: ChatRequest, head: Mapping[str, Any]
    ) -> AsyncIterator[str]:
        def chunk(
            choices: Sequence[Any], usage: Mapping[str, int] | None = None, **more: Any
        ) -> str:
            fields = {"usage": usage, **more} if chat.usage else more
            return event({**head, "object": "chat.completion.chunk", "choices": choices, **fields})

        def delta(content: Mapping[str, Any], finished: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": content, "finish_reason": finished, "logprobs": None}
            return chunk([choice], **more)

        opening = chat.content("", index=0, id=_call_id(), type="function")
        yield delta({"role": "assistant", "content": None, **opening})
        text = StreamedText(chat.params.stop)
        try:
            async for each in self._captions.pieces(upload, chat.prompt, chat.params):
                if isinstance(each, Captioned):
                    if new := text.rest(output.caption for output in each.outputs):
                        yield delta(chat.content(new, index=0))
                    yield delta({}, finish_reason(each), **warnings_of(each.index))
                    if chat.usage:
                        yield chunk([], usage_of(each))
                elif new := text.add(each.chunk, each.text, ended=each.ended):
                    yield delta(chat.content(new, index=0))
        except HttpRefusal as why:
            yield event(chat.refusal(why).to_json(OPENAI[0]))
        yield event("[DONE]")

    def _model(self) -> dict[str, Any]:
        name = self._captions.captions().model
        return {"id": name, "object": "model", "created": 0, "owned_by": "penstock"}

    def _served(self) -> tuple[str, ...]:
        """Return the model's accepted names: the displayed one, and the one of --caption-model."""
        return self._captions.captions().model, self._service.config.caption_model


def finish_reason(found: Captioned) -> str:
    """Return OpenAI's `finish_reason` of a completion."""
    return "length" if any(output.ended == "length" for output in found.outputs) else "stop"


def usage_of(found: Captioned) -> dict[str, int]:
    """Return the token usage in OpenAI's form."""
    prompt = sum(output.prompt_tokens for output in found.outputs)
    generated = sum(output.tokens for output in found.outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex}"


def parse_chat_request(body: bytes, models: Collection[str], limit: int) -> ChatRequest:
    """Parse the body of a chat request. `models` are the accepted names of the model; `limit` is
    the server's token limit of one caption. Raises HttpRefusal."""
    fields = json_in(body)
    if not isinstance(fields, dict):
        raise HttpRefusal(
            400, "the body is not a chat completion request", "Send a JSON object in OpenAI's form"
        )
    chat = checked(fields, models)
    function = forced_function(chat)
    params = caption_params(chat, function, limit)
    try:
        messages = [(f"messages[{at}]", each) for at, each in enumerate(chat.messages)]
        parts = [part for name, message in messages for part in _parts(name, message)]
    except (ValueError, TypeError, KeyError) as error:
        hint = "Send messages with role and content, in OpenAI's form"
        raise invalid("messages", "messages cannot be read", hint) from error
    media = [part for kind, part in parts if kind in MEDIA]
    if len(media) != 1:
        found = f"the request has {len(media)} images and clips; exactly one is accepted"
        raise invalid("messages", found, "Send one part of type image_url or video_url")
    return ChatRequest(
        prompt="\n".join(part for kind, part in parts if kind == TEXT and part),
        medium=_data(media[0]),
        params=params,
        streamed=bool(chat.stream),
        usage=bool(chat.stream_options and chat.stream_options.include_usage),
        function=function.name if function else "",
        request_id=chat.request_id or "",
    )


def _parts(name: str, message: Message) -> Sequence[tuple[str, str]]:
    """Return the type and content of each part of a message. Raises HttpRefusal for an
    unsupported role; `name` is the message's path in the request."""
    role, content = message.role, message.content or ""
    if role in HISTORY_ROLES:
        hint = "Send one question, in messages of the roles system, developer and user"
        raise unsupported(f"{name}.role", f"messages of the role {role!r} are not supported", hint)
    if role not in PROMPT_ROLES:
        raise ValueError(role)
    if isinstance(content, str):
        return [(TEXT, content)]
    found = []
    for part in content:
        kind = str(part["type"])
        if kind not in (TEXT, *MEDIA, "refusal"):
            raise unsupported("messages", f"a part of type {kind[:80]!r} is not supported")
        value = part[kind]
        text = value["url"] if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise TypeError(kind)
        found.append((kind, text))
    return found


def _data(address: str) -> bytes:
    head, comma, data = address.partition(",")
    if not (DATA_URL.match(head) and comma):
        hint = "Send the file itself: data:image/jpeg;base64,…"
        raise invalid_message("invalid_image_url", "only data: URLs are accepted", hint)
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "Encode the file in base64 again"
        raise invalid_message("invalid_base64_image", "the data: URL is damaged", hint) from error
