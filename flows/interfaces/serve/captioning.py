"""Captions an uploaded image or video, and reuses each result that is already in the store.

1. The upload is decoded to frames.
2. The vision half computes their features.
3. The language half writes the captions. A new prompt for a stored medium needs this half only.

A request has caption parameters besides the prompt. The texts of several chunks are joined.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple
from weakref import WeakValueDictionary

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.records.packs import Record
from artifacts.schema import MediaIndex
from artifacts.tiles import AUTO, OFF
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.prompt_tokens import PromptTokens, max_prompt_tokens
from flows.core.job.prepare import Job, sound_note
from flows.core.ledger.namespaces import Variant
from flows.core.ledger.prompts import prompt_for, refuse_control_words
from flows.core.ledger.tasks import Medium, Task, task_of
from flows.core.options.media import ON
from flows.core.pipelines import parts_of, without_hearing
from flows.execution.stage_calls import StageCallBuilder
from flows.interfaces.serve.decoders import FrameSource
from flows.interfaces.serve.half_worker import HalfWorker
from flows.interfaces.serve.metrics import Metrics
from flows.interfaces.serve.record_cache import RecordCacheFlusher
from flows.interfaces.serve.refusals import bad_request, exceeded, shown_name, unsupported
from flows.interfaces.serve.uploads import SingleFlight, Upload
from stages.decode.generation import RequestSettings, SamplingParams, cut_at, held_back
from stages.process.events import CaptionProgress, Event


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionParams:
    """Sampling parameters, length limit, stop strings and schema of one request. Defaults are those
    of the server."""

    generation: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    """Largest number of tokens of the whole answer; None: the server's limit for each chunk."""
    stop: tuple[str, ...] = ()
    """Strings at whose first occurrence the whole answer ends."""
    counts_prompt: bool = False
    """Whether the response reports the prompt's token count."""
    sound: str = AUTO
    """Whether the captions of a video are of what is heard, too: AUTO, ON or OFF."""
    top_logprobs: int = 0
    """Number of tokens whose log probability as the first one is stated."""
    labels: tuple[str, ...] = ()
    """Labels whose log probability as the first token of each chunk's answer is stated."""
    pictures: tuple[str, ...] = ()
    """Keys of the features of further images that the prompt is about."""

    @property
    def to_context(self) -> bool:
        """Return whether an answer may be cut at the end of the context."""
        return self.max_tokens is None

    @property
    def text(self) -> str:
        """Return the settings that distinguish two requests for the same medium and prompt."""
        fields = {
            "generation": self.generation.non_defaults,
            "max_tokens": self.max_tokens,
            "stop": sorted(set(self.stop)),
            "counts_prompt": self.counts_prompt,
            "sound": self.sound == OFF,
            "top_logprobs": self.top_logprobs,
            "labels": self.labels,
            "pictures": self.pictures,
        }
        return json.dumps(fields, sort_keys=True)

    def settings(self, limit: int, server_limit: int) -> str:
        """Return the serialized settings of one caption with this token limit. They are empty if
        they are the server's own, whose limit is `server_limit`."""
        own = RequestSettings(
            generation=self.generation,
            max_new_tokens=limit,
            stop=self.stop,
            top_logprobs=self.top_logprobs,
            labels=self.labels,
            pictures=self.pictures,
        )
        return "" if own == RequestSettings(max_new_tokens=server_limit) else own.text

    def is_of_chunks(self, count: int, limit: int) -> bool:
        """Return whether so many chunks can be captioned concurrently, each with its own limit. A
        limit or stop string of the whole answer makes them sequential; labels are of each."""
        enough = self.max_tokens is None or self.max_tokens >= count * limit
        return count == 1 or bool(self.labels) or (enough and not self.stop)

    def ends(self, captions: Sequence[str]) -> bool:
        """Return whether the captions so far contain a stop string."""
        joined = "\n".join(captions) + "\n"
        return cut_at(joined, self.stop) != joined


async def in_order(
    count: int,
    params: CaptionParams,
    limit: int,
    caption: Callable[[int, str], Awaitable[CaptionProgress | None]],
) -> list[CaptionProgress | None]:
    """Caption the chunks and return their captions up to the end of the answer. They run
    concurrently unless a caption decides whether the next one is made.

    `caption` gets the chunk's position and settings. It may return None, which ends the answer.
    Raises HttpRefusal."""
    if params.generation.schema and count > 1:
        raise unsupported(
            "response_format", f"the clip has {count} chunks, and each gets its own answer"
        )
    if params.top_logprobs and count > 1:
        raise unsupported("logprobs", f"the clip has {count} chunks, and each has its own")
    if params.is_of_chunks(count, limit):
        settings = params.settings(min(params.max_tokens or limit, limit), limit)
        return [*await asyncio.gather(*(caption(at, settings) for at in range(count)))]
    left = params.max_tokens or count * limit
    outputs: list[CaptionProgress | None] = []
    captions: list[str] = []
    while len(outputs) < count and left > 0:
        output = await caption(len(outputs), params.settings(min(left, limit), limit))
        outputs.append(output)
        if output is None or output.stopped or params.ends([*captions, output.caption]):
            return outputs
        captions.append(output.caption)
        left -= output.tokens
    if len(outputs) < count and outputs[-1] is not None:
        outputs[-1] = replace(outputs[-1], ended="length")
    return outputs


def joined_text(captions: Iterable[str], stop: Sequence[str]) -> str:
    """Return the captions of all chunks, one per line, up to the first stop string."""
    return cut_at("\n".join(captions), stop)


class StreamedText:
    """The text of a streamed response, possibly of several chunks that are generated at once."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._captions: dict[int, str] = {}
        self._ended: set[int] = set()
        self._sent = 0

    def add(self, chunk: int, text: str, *, ended: bool) -> str:
        """Add new text of a chunk's caption. Return what can be sent now: chunks in order, and no
        text that a stop string may still remove."""
        self._captions[chunk] = self._captions.get(chunk, "") + text
        if ended:
            self._ended.add(chunk)
        known: list[str] = []
        while (at := len(known)) in self._captions:
            known.append(self._captions[at])
            if at not in self._ended:
                break
        joined = "\n".join(known)
        cut = joined_text(known, self._stop)
        kept = held_back(joined, self._stop) if cut == joined else 0
        return self._new(cut[: len(cut) - kept])

    def rest(self, captions: Iterable[str]) -> str:
        """Return the unsent text of the finished captions."""
        return self._new(joined_text(captions, self._stop))

    def _new(self, text: str) -> str:
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new


def key_of(key: str, settings: str) -> str:
    """Return the cache key of a caption with these request settings."""
    return digest_of([key, settings]) if settings else key


def _output_of(record: Record) -> CaptionProgress:
    """Return a stored caption. Captions of runs have no prompt token count."""
    meta = record.meta
    return CaptionProgress(
        key=record.key,
        caption=meta["caption"],
        tokens=meta["tokens"],
        ended=meta["ended"],
        prompt_tokens=meta.get("prompt_tokens", 0),
        stopped=meta.get("stopped", False),
        first=meta.get("first", {}),
    )


MAX_PROMPT_LETTERS = 20_000
"""Largest number of characters of a prompt."""
OnPartial = Callable[[int, str, bool], None]
"""Gets a chunk's position, its text so far, and whether it is finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioned:
    """The captions of one medium."""

    index: MediaIndex
    outputs: tuple[CaptionProgress, ...]
    """One caption per chunk; fewer if a limit or stop string ended the whole answer."""
    cached: bool
    heard: tuple[bool, ...]
    """Whether the caption of each chunk is of what is heard, too."""

    def to_json(self) -> list[dict[str, Json]]:
        """Return the captions as JSON."""
        return [
            {
                "start": chunk.start,
                "end": chunk.end,
                "caption": output.caption,
                "tokens": output.tokens,
                "ended": output.ended,
                **({"heard": True} if heard else {}),
            }
            for chunk, output, heard in zip(
                self.index.chunks, self.outputs, self.heard, strict=False
            )
        ]


def _captioned(
    index: MediaIndex,
    tasks: Sequence[Task],
    output: Sequence[CaptionProgress | None],
    *,
    cached: bool = False,
) -> Captioned:
    heard = tuple(task.variant.hears for task in tasks)
    return Captioned(index=index, outputs=tuple(filter(None, output)), cached=cached, heard=heard)


class _Encoded(NamedTuple):
    """The chunks of a medium, and the keys of their features."""

    medium: MediaIndex
    tasks: list[Task]
    features: list[str]


class PromptChecker:
    """Refuses prompts that a model cannot be given."""

    def __init__(self, model: Model, limit: int) -> None:
        """`limit` is the largest number of tokens of a caption."""
        self._model, self._limit = model, limit
        self._tokens = PromptTokens(model.folder)

    async def check(self, prompt: str, params: CaptionParams) -> None:
        """Raise HttpRefusal for a prompt that is too long or has control words."""
        if len(prompt) > MAX_PROMPT_LETTERS:
            hint = f"Send at most {MAX_PROMPT_LETTERS:,} characters"
            raise bad_request("the prompt is too long", hint, "invalid_prompt")
        await self._check_context(prompt, params)
        try:
            refuse_control_words("the prompt", prompt, self._model)
        except UsageError as error:
            raise bad_request(error.message, error.hint, "invalid_prompt") from error

    async def _check_context(self, prompt: str, params: CaptionParams) -> None:
        """Raise HttpRefusal for a prompt that exceeds the context together with its answer. Of an
        answer that may be cut, only the first token has to fit."""
        context = self._model.profile.context_tokens  # 0: unknown
        new = min(params.max_tokens or self._limit, self._limit)
        needed = 1 if params.to_context else new
        if not context or max_prompt_tokens(prompt) + needed <= context:
            return
        count = await asyncio.to_thread(self._tokens.count, prompt)
        if count + needed > context:
            raise exceeded(
                f"the model's context is {context:,} tokens: the prompt needs {count:,}, and "
                f"the answer up to {new:,}",
                "Shorten the prompt, or request a shorter answer",
            )


class Captioning:
    """The decoders and both halves of one captioning model."""

    def __init__(
        self,
        job: Job,
        encoding: HalfWorker,
        decoding: HalfWorker,
        frames: FrameSource,
        keeper: RecordCacheFlusher,
        metrics: Metrics,
    ) -> None:
        _, self._encode, self._decode = without_hearing(job.pipeline)
        self._job = job
        self._unheard_model = job.model.of_parts(parts_of((self._encode, self._decode)))
        self._encoding = encoding
        self._decoding = decoding
        self._frames = frames
        self._calls = StageCallBuilder(job)
        self._metrics = metrics
        self._prompts = PromptChecker(job.model, self.limit)
        self._of = job.ledger.variant
        self._unheard = job.ledger.variants.unheard(self._of)
        every = {variant.hears: variant for variant in (self._unheard, self._of)}
        self._other = {h: job.ledger.variants.other_engine(variant) for h, variant in every.items()}
        self._variants = {h: job.ledger.variants.answering(variant) for h, variant in every.items()}
        answering = [variant for some in self._variants.values() for variant in some]
        self._kept, self._features = (
            keeper.of(job.store, stage.writes, *(variant[stage.writes] for variant in answering))
            for stage in (self._decode, self._encode)
        )
        self._shared: SingleFlight[Captioned] = SingleFlight()
        self._shared_pictures: SingleFlight[_Encoded] = SingleFlight()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Digest of a medium → the lock held while its frames are decoded and encoded."""
        self._listeners: dict[str, dict[object, Callable[[str, bool], None]]] = {}

    @property
    def model(self) -> str:
        return shown_name(self._job.model.name)

    @property
    def limit(self) -> int:
        """Return the largest number of tokens of a caption."""
        return self._job.config.groups.engine.max_new_tokens

    def precision(self, captioned: Captioned) -> dict[str, str]:
        """Return the precision of the halves that made these captions."""
        return (self._of if any(captioned.heard) else self._unheard).precision

    def on_event(self, event: Event) -> None:
        """Pass partial text from the language half to its listeners."""
        if isinstance(event, CaptionProgress):
            self._notify(event.key, event.caption, ended=False)

    def _notify(self, key: str, caption: str, *, ended: bool) -> None:
        for listen in list(self._listeners.get(key, {}).values()):
            listen(caption, ended)

    async def caption(
        self,
        upload: Upload,
        prompt: str,
        params: CaptionParams,
        on_partial: OnPartial = lambda at, text, ended: None,
    ) -> Captioned:
        """Return the captions of an upload. `on_partial` is called while they are generated.
        Raises HttpRefusal."""
        model = self._unheard_model if params.sound == OFF else self._job.model
        medium = Medium(
            digest=upload.digest,
            path=str(upload.path),
            kind=upload.kind,
            prompt=prompt.strip() or prompt_for(model, self._job.config, upload.kind),
        )
        try:
            self._check_sound(upload, params)
            await self._prompts.check(medium.prompt, params)
            index = await self._frames.known(medium)
            captioned = await self._from_store(medium, index, params) if index else None
        except BaseException:
            upload.remove()
            raise
        if captioned is not None:
            upload.remove()
            self._metrics.store_hits.inc()
            return captioned
        return await self._made(medium, upload, on_partial, params)

    def _check_sound(self, upload: Upload, params: CaptionParams) -> None:
        """Raise HttpRefusal for a request for sound that this server cannot use."""
        if params.sound == ON and upload.kind == "video" and self._frames.sound is None:
            why = sound_note(self._job.model) or f"{self.model} hears nothing"
            raise bad_request(f"sound is on: {why}", "Leave it out, or send sound=auto")

    async def _tasks_of(self, medium: Medium, index: MediaIndex, sound: str) -> list[Task]:
        """Return the chunks of a medium, with what is heard in them unless the request has sound
        OFF."""
        source = self._frames.sound if sound != OFF else None
        return [
            task_of(
                medium,
                chunk,
                self._of if source and await source.has(medium, chunk) else self._unheard,
            )
            for chunk in index.chunks
        ]

    async def _made(
        self, medium: Medium, upload: Upload, on_partial: OnPartial, params: CaptionParams
    ) -> Captioned:
        listener, key = object(), f"{medium.digest} {params.text} {medium.prompt}"

        def started(at: int, name: str) -> None:
            of_chunk = self._listeners.setdefault(name, {})
            of_chunk[listener] = lambda text, ended: on_partial(at, text, ended)

        try:
            return await self._shared.once_of(
                upload, key, lambda: self._make(medium, started, params)
            )
        finally:
            for name in [name for name, of in self._listeners.items() if of.pop(listener, None)]:
                if not self._listeners[name]:
                    del self._listeners[name]

    async def _make(
        self, medium: Medium, started: Callable[[int, str], None], params: CaptionParams
    ) -> Captioned:
        index, tasks, features = await self._encode_medium(medium, params.sound)

        def decoded(at: int, settings: str) -> Awaitable[CaptionProgress]:
            started(at, key_of(tasks[at][self._decode.writes], settings))
            return self._decoded(tasks[at], features[at], settings, params.to_context)

        output = await in_order(len(tasks), params, self.limit, decoded)
        return _captioned(index, tasks, output)

    async def encoded(self, upload: Upload, prompt: str) -> str:
        """Encode an image that is shown beside another, and return the key of its features. Raises
        HttpRefusal."""
        place = str(upload.path)
        medium = Medium(digest=upload.digest, path=place, kind=upload.kind, prompt=prompt)
        encoded = await self._shared_pictures.once_of(
            upload, f"{medium.digest} {prompt}", lambda: self._encode_medium(medium, OFF)
        )
        return encoded.features[0]

    async def _encode_medium(self, medium: Medium, of_sound: str) -> _Encoded:
        """Decode and encode a medium, unless that is done. Raises HttpRefusal."""
        lock = self._locks.setdefault(medium.digest, asyncio.Lock())
        async with lock:
            index, sound = await self._frames.known(medium), self._frames.sound
            tasks = await self._tasks_of(medium, index, of_sound) if index else []
            features = [await self._features_of(task) for task in tasks]
            is_heard = sound is None or all([await sound.is_encoded(task) for task in tasks])
            if index is None or not features or not all(features) or not is_heard:
                index = await self._frames.decode(medium, self._encoding)
                try:
                    tasks, features = await self._encode_all(medium, index, of_sound)
                except BaseException:
                    self._frames.drop_unsent(medium, index, self._encoding)
                    raise
                self._frames.keep(medium, index)
        return _Encoded(index, tasks, features)

    async def _encode_all(
        self, medium: Medium, index: MediaIndex, of_sound: str
    ) -> tuple[list[Task], list[str]]:
        """Encode the chunks of a medium that was just decoded. Return them, and the keys of their
        features. Raises HttpRefusal."""
        if (sound := self._frames.sound) is not None:
            await sound.note_silences(medium, index)
        tasks = await self._tasks_of(medium, index, of_sound)
        heard = [sound.encode(task) for task in tasks] if sound is not None else []
        made = await asyncio.gather(*map(self._encoded, tasks), *heard)
        return tasks, [key or "" for key in made[: len(tasks)]]

    async def _from_store(
        self, medium: Medium, index: MediaIndex, params: CaptionParams
    ) -> Captioned | None:
        """Return the captions from the store. Return None unless all are there."""
        tasks = await self._tasks_of(medium, index, params.sound)

        async def stored(at: int, settings: str) -> CaptionProgress | None:
            for variant in self._variants[tasks[at].variant.hears]:
                key = key_of(self._made_as(tasks[at], variant), settings)
                if (record := await self._kept.read(key)) is not None:
                    output = _output_of(record)
                    return output if output.prompt_tokens or not params.counts_prompt else None
            return None

        output = await in_order(len(tasks), params, self.limit, stored)
        if None in output:
            return None
        return _captioned(index, tasks, output, cached=True)

    async def _features_of(self, task: Task) -> str:
        """Return the key of a chunk's stored features, encoded in any way; empty: there are
        none."""
        own, kind = task[self._encode.writes], self._encode.writes
        if await self._features.finds(own):
            return own
        variants = self._variants[task.variant.hears]
        keys = {self._made_as(task, variant, kind) for variant in variants}
        return next((key for key in sorted(keys) if key in self._features), "")

    async def _encoded(self, task: Task) -> str:
        """Encode a chunk unless that is done, and return the key of its features."""
        if stored := await self._features_of(task):
            self._frames.drop([task])
            return stored
        item, key = self._calls.encode_item(self._encode, task), task[self._encode.writes]
        weight = self._frames.weight(task, self._encoding)
        await self._frames.submit(task, self._encoding, key, item, weight)
        return key

    async def _decoded(
        self, task: Task, features: str, settings: str, to_context: bool
    ) -> CaptionProgress:
        fallback_key, key = "", key_of(task[self._decode.writes], settings)
        if (other := self._other[task.variant.hears]) is not None:
            fallback_key = key_of(self._made_as(task, other), settings)
        item = self._calls.decode_item(self._decode, task)._replace(
            key=key,
            features=features,
            fallback_key=fallback_key,
            settings=settings,
            to_context=to_context,
        )
        output: CaptionProgress = await self._decoding.submit(key, item, 1)
        meta = {name: value for name, value in asdict(output).items() if name != "key"}
        self._kept.remember(Record(key=output.key, meta=meta))  # the stage has stored it
        self._notify(key, output.caption, ended=True)
        return output

    def _made_as(self, task: Task, variant: Variant, kind: str = "captions") -> str:
        """Return a chunk's cache key of one kind in one variant; of a caption, before request
        settings."""
        return task_of(task.medium, task.whole, variant)[kind]
