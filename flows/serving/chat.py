"""Answers as OpenAI's chat completions do, so that existing clients work; makes nothing itself.

Of a conversation one picture or clip counts, and the text of the last question. It is sent in the
request: no address is followed.
"""

import base64
import binascii
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from flows.serving.answers import json_answer
from flows.serving.caption_routes import EVENTS, CaptionRoutes, event
from flows.serving.captioning import Captioned
from flows.serving.refusals import OPENAI, Refused, bad
from flows.serving.service import Service
from flows.serving.uploads import Upload, body_of, stored

BASE64 = 4 / 3
"""Times as large as what it stands for."""


class ChatRoutes:
    """What answers chat clients of one service."""

    def __init__(self, service: Service, captions: CaptionRoutes) -> None:
        self._service = service
        self._captions = captions

    async def models(self) -> Response:
        """Return the one model that captions."""
        model = {"id": self._captions.captions().model, "object": "model", "owned_by": "penstock"}
        return json_answer({"object": "list", "data": [{**model, "created": 0}]})

    async def complete(self, request: Request) -> Response:
        """Answer a question about a picture or a clip, as OpenAI's API has it."""
        model = self._captions.captions().model
        most = round(self._service.config.body_bytes * BASE64)
        body = await body_of(request, most)
        prompt, data, streamed = asked_in(body)
        upload = stored(data, self._service.config.body_bytes, self._service.scratch)
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": round(time.time()),
            "model": model,
        }
        if streamed:
            return StreamingResponse(self._events(upload, prompt, head), media_type=EVENTS)
        found = await self._captions.made(request, upload, prompt)
        said = sum(words.tokens for words in found.words)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text_of(found), "refusal": None},
            "finish_reason": ended_of(found),
            "logprobs": None,
        }
        usage = {"prompt_tokens": 0, "completion_tokens": said, "total_tokens": said}
        return json_answer(
            {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        )

    async def _events(
        self, upload: Upload, prompt: str, head: Mapping[str, Any]
    ) -> AsyncIterator[str]:
        def chunk(delta: Mapping[str, Any], finished: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finished, "logprobs": None}
            return event({**head, "object": "chat.completion.chunk", "choices": [choice]})

        yield chunk({"role": "assistant", "content": ""})
        last = 0
        try:
            async for each in self._captions.pieces(upload, prompt):
                if isinstance(each, Captioned):
                    yield chunk({}, ended_of(each))
                else:
                    at, text = each
                    # Of a clip of several chunks, what is said of each is a line.
                    yield chunk({"content": "\n" * (at - last) + text})
                    last = max(at, last)
        except Refused as why:
            yield event(why.to_json(OPENAI[0]))
        yield event("[DONE]")


def text_of(found: Captioned) -> str:
    """Return all that was said, a line a chunk."""
    return "\n".join(words.caption for words in found.words)


def ended_of(found: Captioned) -> str:
    """Return why a completion ended, as OpenAI says it."""
    return "length" if any(words.ended == "length" for words in found.words) else "stop"


def asked_in(body: bytes) -> tuple[str, bytes, bool]:
    """Return question, medium and whether the answer is streamed. Raises Refused."""
    try:
        asked = json.loads(body)
        messages = asked["messages"]
        parts = [part for message in messages for part in _parts(message)]
        if asked.get("n") not in (None, 1):
            raise bad("n is not 1", "Ask for one answer")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise bad(
            "this is no chat completion", "Send JSON with messages, as OpenAI has it"
        ) from error
    media = [part for role, kind, part in parts if kind in ("image_url", "video_url")]
    if len(media) != 1:
        raise bad(
            f"{len(media)} pictures and clips are sent, and one is answered at a time",
            "Send one part of type image_url or video_url",
        )
    texts = [part for role, kind, part in parts if kind == "text" and role in ("system", "user")]
    return "\n".join(filter(None, texts)), _data(media[0]), bool(asked.get("stream"))


def _parts(message: Mapping[str, Any]) -> Sequence[tuple[str, str, str]]:
    """Return role, type and content of each part of a message."""
    role, content = str(message.get("role", "")), message.get("content") or ""
    if isinstance(content, str):
        return [(role, "text", content)]
    found = []
    for part in content:
        kind = str(part["type"])
        value = part[kind]
        found.append((role, kind, str(value["url"] if isinstance(value, dict) else value)))
    return found


def _data(address: str) -> bytes:
    head, comma, data = address.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise bad(
            "no address is followed but data: addresses",
            "Send the file itself: data:image/jpeg;base64,…",
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad("the data: address is damaged", "Encode the file in base64 again") from error
