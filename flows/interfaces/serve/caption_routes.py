"""Handles `/v1/caption`, with a single response or a stream."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse

from artifacts.disk.json_shapes import Json
from flows.interfaces.serve.captioning import Captioned, Captioning, CaptionParams
from flows.interfaces.serve.embedding import warnings_of
from flows.interfaces.serve.guard import in_time
from flows.interfaces.serve.refusals import HttpRefusal, json_answer, json_bytes
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.uploads import Upload, upload_of

EVENTS = "text/event-stream"
BROKEN_LETTER = "\ufffd"
"""Ends a partial text whose last character is incomplete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """New text of a chunk's caption while it is generated."""

    chunk: int
    text: str
    ended: bool
    """Whether the chunk's caption is finished."""


class CaptionRoutes:
    """Handles the caption requests of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def caption(
        self,
        request: Request,
        prompt: Annotated[str, Query(description="[Describe this image in detail.]")] = "",
        stream: Annotated[bool, Query(description="as server-sent events")] = False,
        sound: Annotated[
            Literal["auto", "on", "off"],
            Query(description="caption what is heard in a clip: auto, if the model hears"),
        ] = "auto",
    ) -> Response:
        """Caption an image or a clip."""
        params = CaptionParams(sound=sound)
        began, captions = time.monotonic(), self.captions()
        config, temp_store = self._service.config, self._service.temp_store
        upload = await upload_of(request, config.body_bytes, temp_store)

        def to_fields(captioned: Captioned) -> dict[str, Json]:
            return {
                "kind": captioned.index.kind,
                "captions": captioned.to_json(),
                "model": captions.model,
                "precision": captions.precision(captioned),
                "cached": captioned.cached,
                **warnings_of(captioned.index),
                "seconds": round(time.monotonic() - began, 4),
            }

        if stream:
            events = self._events(upload, prompt, params, to_fields)
            return StreamingResponse(events, media_type=EVENTS)
        return json_answer(to_fields(await self.captions_of(request, upload, prompt, params)))

    def captions(self) -> Captioning:
        """Return the captioning service. Raises HttpRefusal if there is none."""
        if self._service.captions is None:
            raise HttpRefusal(
                404, "this server has no captioning model", "Start it with --caption-model M"
            )
        return self._service.captions

    async def captions_of(
        self, request: Request, upload: Upload, prompt: str, params: CaptionParams
    ) -> Captioned:
        """Return the captions of an upload. Raises HttpRefusal."""
        work = self.captions().caption(upload, prompt, params)
        seconds = self._service.config.caption_deadline
        captioned: Captioned = await in_time(request.receive, work, seconds)
        return captioned

    async def pieces(
        self, upload: Upload, prompt: str, params: CaptionParams
    ) -> AsyncIterator[Piece | Captioned]:
        """Yield partial texts, then the finished captions. Raises HttpRefusal."""
        latest: dict[int, tuple[str, bool]] = {}
        news = asyncio.Event()
        so_far: dict[int, str] = {}

        def piece(at: int, text: str, ended: bool) -> Piece:
            """Return a chunk's new text. Its last, incomplete character is held back."""
            before = so_far.get(at, "")
            text = text if ended else text.rstrip(BROKEN_LETTER)
            new = text[len(before) :] if text.startswith(before) else ""
            so_far[at] = before + new
            return Piece(chunk=at, text=new, ended=ended)

        def on_partial(at: int, text: str, ended: bool) -> None:
            latest[at] = text, ended  # a slow client gets only the latest text
            news.set()

        doing = asyncio.ensure_future(self.captions().caption(upload, prompt, params, on_partial))
        doing.add_done_callback(lambda _: news.set())
        try:
            async with asyncio.timeout(self._service.config.caption_deadline):
                while not doing.done():
                    await news.wait()
                    news.clear()
                    while latest and not doing.done():
                        at = next(iter(latest))
                        yield piece(at, *latest.pop(at))
                captioned = doing.result()
                for at, output in enumerate(captioned.outputs):
                    yield piece(at, output.caption, True)
                yield captioned
        except TimeoutError as error:
            seconds = self._service.config.caption_deadline
            raise HttpRefusal(504, f"no answer within {seconds:.0f} s", "Ask again") from error
        finally:
            doing.cancel()

    async def _events(
        self,
        upload: Upload,
        prompt: str,
        params: CaptionParams,
        to_fields: Callable[[Captioned], dict[str, Json]],
    ) -> AsyncIterator[str]:
        try:
            async for piece in self.pieces(upload, prompt, params):
                if isinstance(piece, Captioned):
                    yield event({"done": True, **to_fields(piece)})
                elif piece.text:
                    yield event({"chunk": piece.chunk, "text": piece.text})
        except HttpRefusal as why:
            yield event(why.to_json())


def event(value: Mapping[str, Json] | str) -> str:
    """Return a server-sent event."""
    text = value if isinstance(value, str) else json_bytes(value).decode()
    return f"data: {text}\n\n"
