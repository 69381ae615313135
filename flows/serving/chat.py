"""Implements OpenAI's chat completions API, so that existing clients work.

A request contains one prompt about one image or clip, which is sent inline. The server follows no
URLs and continues no earlier conversation.
"""

import asyncio
import base64
import binascii
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

from flows.serving.answers import json_answer, warnings_of
from flows.serving.caption_params import CaptionParams, StreamedText, joined_text
from flows.serving.caption_routes import EVENTS, CaptionRoutes, event
from flows.serving.captioning import Captioned
from flows.serving.chat_params import check_known, no_model, params_in, streaming_in
from flows.serving.json_bodies import json_in
from flows.serving.refusals import OPENAI, HttpRefusal, bad_request, invalid, unsupported
from flows.serving.service import Service
from flows.serving.uploads import Upload, body_of, stored

READERS = 2
"""Chat requests that are read at once."""
BASE64 = 4 / 3
"""Times as large as what it stands for."""
TEXT, MEDIA = "text", ("image_url", "video_url")
"""Types of the parts of a message."""
DATA_URL = re.compile(r"data:.*;\s*base64\s*\Z", re.IGNORECASE)
"""How an address of base64 begins, up to its comma."""
ASKING = ("system", "developer", "user")
"""Roles whose texts are the prompt."""
ANSWERING = ("assistant", "tool", "function")
"""Roles of an earlier conversation, which is not continued."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A validated chat request."""

    prompt: str
    medium: bytes
    params: CaptionParams
    streamed: bool
    usage: bool
    """Whether a stream ends with the tokens that were used."""


class ChatRoutes:
    """Handles the chat requests of one service."""

    def __init__(self, service: Service, captions: CaptionRoutes) -> None:
        self._service = service
        self._captions = captions
        # Of their own: to read large bodies and schemas must not keep threads from other routes.
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="chat")

    async def models(self) -> Response:
        """Return the one model that captions."""
        return json_answer({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        """Return the one model that captions, by its name."""
        if name not in self._served():
            raise no_model(name)
        return json_answer(self._model())

    async def complete(self, request: Request) -> Response:
        """Answer a question about a picture or a clip, as OpenAI's API has it."""
        captions, served = self._captions.captions(), self._served()
        most = round(self._service.config.body_bytes * BASE64)
        body = await body_of(request, most)
        read = partial(request_in, body, served, captions.limit)
        asked = await asyncio.get_running_loop().run_in_executor(self._readers, read)
        upload = await asyncio.to_thread(
            stored, asked.medium, self._service.config.body_bytes, self._service.scratch
        )
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": round(time.time()),
            "model": captions.model,
        }
        if asked.streamed:
            return StreamingResponse(self._events(upload, asked, head), media_type=EVENTS)
        found = await self._captions.made(request, upload, asked.prompt, asked.params)
        text = joined_text((words.caption for words in found.words), asked.params.stop)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": ended_of(found),
            "logprobs": None,
        }
        answer = {**head, "object": "chat.completion", "choices": [choice]}
        return json_answer({**answer, "usage": usage_of(found), **warnings_of(found.index)})

    async def _events(
        self, upload: Upload, asked: ChatRequest, head: Mapping[str, Any]
    ) -> AsyncIterator[str]:
        def chunk(
            choices: Sequence[Any], usage: Mapping[str, int] | None = None, **more: Any
        ) -> str:
            told = {"usage": usage, **more} if asked.usage else more
            return event({**head, "object": "chat.completion.chunk", "choices": choices, **told})

        def delta(content: Mapping[str, Any], finished: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": content, "finish_reason": finished, "logprobs": None}
            return chunk([choice], **more)

        yield delta({"role": "assistant", "content": ""})
        text = StreamedText(asked.params.stop)
        try:
            async for each in self._captions.pieces(upload, asked.prompt, asked.params):
                if isinstance(each, Captioned):
                    if new := text.rest(words.caption for words in each.words):
                        yield delta({"content": new})
                    yield delta({}, ended_of(each), **warnings_of(each.index))
                    if asked.usage:
                        yield chunk([], usage_of(each))
                elif new := text.add(each.chunk, each.text, ended=each.ended):
                    yield delta({"content": new})
        except HttpRefusal as why:
            yield event(why.to_json(OPENAI[0]))
        yield event("[DONE]")

    def _model(self) -> dict[str, Any]:
        name = self._captions.captions().model
        return {"id": name, "object": "model", "created": 0, "owned_by": "penstock"}

    def _served(self) -> tuple[str, ...]:
        """Return the names of the model: the one that is told, and the one it was started with."""
        return self._captions.captions().model, self._service.config.caption_model


def ended_of(found: Captioned) -> str:
    """Return why a completion ended, as OpenAI says it."""
    return "length" if any(words.ended == "length" for words in found.words) else "stop"


def usage_of(found: Captioned) -> dict[str, int]:
    """Return the tokens that were read and said."""
    read = sum(words.prompt_tokens for words in found.words)
    said = sum(words.tokens for words in found.words)
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def request_in(body: bytes, models: Collection[str], limit: int) -> ChatRequest:
    """Return what a body asks a server that serves a model under these names, and gives each
    caption at most `limit` tokens. Raises Refused."""
    asked = json_in(body)
    if not isinstance(asked, dict):
        raise HttpRefusal(400, "this is no chat completion", "Send a JSON object, as OpenAI has it")
    check_known(asked, models)
    streamed, usage = streaming_in(asked)
    params = params_in(asked, limit)
    try:
        messages = [(f"messages[{at}]", each) for at, each in enumerate(asked["messages"])]
        parts = [part for name, message in messages for part in _parts(name, message)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        hint = "Send a list of messages with role and content, as OpenAI has it"
        raise invalid("messages", "messages cannot be read", hint) from error
    media = [part for kind, part in parts if kind in MEDIA]
    if len(media) != 1:
        raise bad_request(
            f"{len(media)} pictures and clips are sent, and one is answered at a time",
            "Send one part of type image_url or video_url",
        )
    texts = [part for kind, part in parts if kind == TEXT]
    prompt = "\n".join(filter(None, texts))
    return ChatRequest(
        prompt=prompt, medium=_data(media[0]), params=params, streamed=streamed, usage=usage
    )


def _parts(name: str, message: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Return type and content of each part of a message. Raises Refused for one of a role that is
    not followed, by the name of the message."""
    role, content = message["role"], message.get("content") or ""
    if role in ANSWERING:
        hint = "Send one question, in messages of the roles system, developer and user"
        raise unsupported(f"{name}.role", f"messages of the role {role!r} are not supported", hint)
    if role not in ASKING:
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
        raise bad_request(
            "no address is followed but data: addresses",
            "Send the file itself: data:image/jpeg;base64,…",
        )
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(
            "the data: address is damaged", "Encode the file in base64 again"
        ) from error
