"""Answers what is to be seen in words: frames, then features by the vision half, then captions by
the language half. Each is found in the store where it was made before; knows no HTTP.

A new question to what was seen before costs the language half alone.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from artifacts.errors import UsageError
from artifacts.packs import Record, RecordSet
from artifacts.schema import MediaIndex
from flows.job.contents import refuse_placeholders
from flows.job.prepare import Job
from flows.job.tasks import Medium, Task, task_of
from flows.running.calls import Calls
from flows.serving.frame_source import FrameSource
from flows.serving.half import Half
from flows.serving.keeping import RecordKeeper
from flows.serving.metrics import Metrics
from flows.serving.refusals import bad, refusal_of
from flows.serving.shared import Shared
from flows.serving.uploads import Upload
from stages.process.events import Event, Words

MOST_LETTERS = 20_000
"""Letters of a prompt."""
Hear = Callable[[int, str], None]
"""Hears all words so far of a chunk, by its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioned:
    """The captions of one medium."""

    index: MediaIndex
    words: tuple[Words, ...]
    """Those of each chunk."""
    cached: bool

    def to_json(self) -> list[dict[str, Any]]:
        """Return the captions, for programs."""
        return [
            {
                "start": chunk.start,
                "end": chunk.end,
                "caption": words.caption,
                "tokens": words.tokens,
                "ended": words.ended,
            }
            for chunk, words in zip(self.index.chunks, self.words, strict=True)
        ]


class Captioning:
    """The decoders and both halves of one model that captions."""

    def __init__(
        self,
        job: Job,
        encoding: Half,
        decoding: Half,
        cutting: FrameSource,
        keeper: RecordKeeper,
        metrics: Metrics,
    ) -> None:
        _, self._encode, self._decode = job.pipeline
        self._job = job
        self._encoding = encoding
        self._decoding = decoding
        self._cutting = cutting
        self._calls = Calls(job)
        self._metrics = metrics
        self._of = job.ledger.namespaces
        self._other = job.ledger.instead(self._of)
        self._kept = [
            keeper.of(job.store, self._decode.writes, each[self._decode.writes])
            for each in (self._of, self._other)
            if each is not None
        ]
        self._features = RecordSet(job.store, self._encode.writes, self._of[self._encode.writes])
        self._shared: Shared[Captioned] = Shared()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Digest of a medium → who looks at its frames, which are gone once they were encoded."""
        self._listeners: dict[str, dict[object, Callable[[str], None]]] = {}

    @property
    def model(self) -> str:
        return self._job.model.name

    @property
    def precision(self) -> dict[str, str]:
        return self._of.precision

    def hear(self, event: Event) -> None:
        """Hear what the language half says on the way."""
        if isinstance(event, Words):
            for listen in list(self._listeners.get(event.key, {}).values()):
                listen(event.caption)

    async def caption(
        self, upload: Upload, prompt: str, hear: Hear = lambda at, text: None
    ) -> Captioned:
        """Return the captions of what was sent; `hear` is told of them while they are made. Raises
        Refused."""
        medium = Medium(
            digest=upload.digest,
            path=str(upload.path),
            kind=upload.kind,
            prompt=prompt.strip() or self._job.model.prompt_for(self._job.config, upload.kind),
        )
        try:
            if len(prompt) > MOST_LETTERS:
                raise bad("the prompt is too long", f"Send at most {MOST_LETTERS:,} letters")
            try:
                refuse_placeholders([medium], self._job.model)
            except UsageError as error:
                raise refusal_of(error) from error
            index = await self._cutting.known(medium)
            found = await self._said(medium, index) if index else None
        except BaseException:
            upload.remove()
            raise
        if found is not None:
            upload.remove()
            self._metrics.from_store()
            return found
        return await self._made(medium, upload, hear)

    async def _made(self, medium: Medium, upload: Upload, hear: Hear) -> Captioned:
        listener, key = object(), f"{medium.digest} {medium.prompt}"

        def started(tasks: list[Task]) -> None:
            for at, task in enumerate(tasks):
                of_chunk = self._listeners.setdefault(task[self._decode.writes], {})
                of_chunk[listener] = lambda text, at=at: hear(at, text)  # type: ignore[misc]

        try:
            return await self._shared.once_of(upload, key, lambda: self._make(medium, started))
        finally:
            for name in [name for name, of in self._listeners.items() if of.pop(listener, None)]:
                if not self._listeners[name]:
                    del self._listeners[name]

    async def _make(self, medium: Medium, started: Callable[[list[Task]], None]) -> Captioned:
        turn = self._turns.setdefault(medium.digest, asyncio.Lock())
        async with turn:
            index = await self._cutting.known(medium)
            tasks = self._cutting.tasks(medium, index) if index else []
            seen = bool(tasks) and all([await self._is_encoded(task) for task in tasks])
            if not seen:
                index = await self._cutting.cut(medium, self._encoding)
                tasks = self._cutting.tasks(medium, index)
                await asyncio.gather(*map(self._encoded, tasks))
                self._cutting.keep(medium, index)
        assert index is not None
        started(tasks)
        words = await asyncio.gather(*(self._decoded(task, index) for task in tasks))
        return Captioned(index=index, words=tuple(words), cached=False)

    async def _said(self, medium: Medium, index: MediaIndex) -> Captioned | None:
        """Return the captions that are in the store, if all are."""
        found: list[Words] = []
        for task in self._cutting.tasks(medium, index):
            record = await self._stored(task, index)
            if record is None:
                return None
            meta = record.meta
            found.append(
                Words(
                    key=record.key,
                    caption=meta["caption"],
                    tokens=meta["tokens"],
                    ended=meta.get("ended") or "stop",
                )
            )
        return Captioned(index=index, words=tuple(found), cached=True)

    async def _stored(self, task: Task, index: MediaIndex) -> Record | None:
        places = [self._of, *([self._other] if self._other else [])]
        for kept, place in zip(self._kept, places, strict=True):
            key = task_of(task.medium, index, task.chunk, place)[self._decode.writes]
            if key in kept and (record := await kept.read(key)) is not None:
                return record
        return None

    async def _is_encoded(self, task: Task) -> bool:
        key = task[self._encode.writes]
        if key not in self._features:
            await asyncio.to_thread(self._features.find, [key])
        return key in self._features

    async def _encoded(self, task: Task) -> None:
        if await self._is_encoded(task):
            self._cutting.drop([task])
            return
        member = self._calls.member(self._encode, task)
        weight = self._cutting.weight(task, self._encoding)
        await self._cutting.given(task, self._encoding, task[self._encode.writes], member, weight)

    async def _decoded(self, task: Task, index: MediaIndex) -> Words:
        member = self._calls.member(self._decode, task)
        if self._other is not None:
            other = task_of(task.medium, index, task.chunk, self._other)
            member["instead"] = other[self._decode.writes]
        key = task[self._decode.writes]
        words: Words = await self._decoding.make(key, member, 1)
        meta = {"caption": words.caption, "tokens": words.tokens, "ended": words.ended}
        self._kept[0].remember(Record(key=key, meta=meta))
        return words
