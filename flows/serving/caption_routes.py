"""Handles `/v1/caption`, with a single response or a stream."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse

from flows.serving.answers import json_answer, warnings_of
from flows.serving.caption_params import CaptionParams
from flows.serving.captioning import AS_THE_SERVER, Captioned, Captioning
from flows.serving.guard import in_time
from flows.serving.refusals import HttpRefusal
from flows.serving.service import Service
from flows.serving.uploads import Upload, upload_of

EVENTS = "text/event-stream"
BROKEN_LETTER = "\ufffd"
"""Stands at the end of a text of which a letter's last bytes are still to come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """New text of a chunk's caption while it is generated."""

    chunk: int
    text: str
    ended: bool
    """Whether it is the last of that chunk."""


class CaptionRoutes:
    """Handles the caption requests of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def caption(
        self,
        request: Request,
        prompt: Annotated[str, Query(description="[Describe this image in detail.]")] = "",
        stream: Annotated[bool, Query(description="as server-sent events")] = False,
    ) -> Response:
        """Say what is to be seen in a picture or a clip."""
        began, captions = time.monotonic(), self.captions()
        config, scratch = self._service.config, self._service.scratch
        upload = await upload_of(request, config.body_bytes, scratch)

        def told(found: Captioned) -> dict[str, Any]:
            return {
                "kind": found.index.kind,
                "captions": found.to_json(),
                "model": captions.model,
                "precision": captions.precision,
                "cached": found.cached,
                **warnings_of(found.index),
                "seconds": round(time.monotonic() - began, 4),
            }

        if stream:
            return StreamingResponse(self._events(upload, prompt, told), media_type=EVENTS)
        return json_answer(told(await self.made(request, upload, prompt)))

    def captions(self) -> Captioning:
        """Return what makes captions. Raises Refused."""
        if self._service.captions is None:
            raise HttpRefusal(
                404, "this server has no model that captions", "Start it with --caption-model M"
            )
        return self._service.captions

    async def made(
        self,
        request: Request,
        upload: Upload,
        prompt: str,
        params: CaptionParams = AS_THE_SERVER,
    ) -> Captioned:
        """Return the captions of what was sent. Raises Refused."""
        work = self.captions().caption(upload, prompt, params=params)
        seconds = self._service.config.caption_deadline
        found: Captioned = await in_time(request.receive, work, seconds)
        return found

    async def pieces(
        self, upload: Upload, prompt: str, params: CaptionParams = AS_THE_SERVER
    ) -> AsyncIterator[Piece | Captioned]:
        """Yield new pieces of words, and at last all. Raises Refused."""
        heard: dict[int, tuple[str, bool]] = {}
        news = asyncio.Event()
        so_far: dict[int, str] = {}

        def piece(at: int, text: str, ended: bool) -> Piece:
            """Return what is new of a chunk's words: the last of them may be told otherwise."""
            before = so_far.get(at, "")
            text = text if ended else text.rstrip(BROKEN_LETTER)
            new = text[len(before) :] if text.startswith(before) else ""
            so_far[at] = before + new
            return Piece(chunk=at, text=new, ended=ended)

        def hear(at: int, text: str, ended: bool) -> None:
            heard[at] = text, ended  # who reads slowly is told the last of it alone
            news.set()

        doing = asyncio.ensure_future(self.captions().caption(upload, prompt, hear, params))
        try:
            async with asyncio.timeout(self._service.config.caption_deadline):
                while not doing.done():
                    listening = asyncio.ensure_future(news.wait())
                    await asyncio.wait({doing, listening}, return_when=asyncio.FIRST_COMPLETED)
                    listening.cancel()
                    news.clear()
                    while heard and not doing.done():
                        at = next(iter(heard))
                        yield piece(at, *heard.pop(at))
                found = doing.result()
                for at, words in enumerate(found.words):
                    yield piece(at, words.caption, True)
                yield found
        except TimeoutError as error:
            seconds = self._service.config.caption_deadline
            raise HttpRefusal(504, f"not answered within {seconds:.0f} s", "Ask again") from error
        finally:
            doing.cancel()

    async def _events(
        self, upload: Upload, prompt: str, told: Callable[[Captioned], dict[str, Any]]
    ) -> AsyncIterator[str]:
        try:
            async for each in self.pieces(upload, prompt):
                if isinstance(each, Captioned):
                    yield event({"done": True, **told(each)})
                elif each.text:
                    yield event({"chunk": each.chunk, "text": each.text})
        except HttpRefusal as why:
            yield event(why.to_json())


def event(value: Mapping[str, Any] | str) -> str:
    """Return a server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"data: {text}\n\n"
