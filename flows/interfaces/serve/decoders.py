"""Decodes uploaded files in separate processes, one file at a time per process.

Uploads are untrusted, so each decoding process has memory and time limits. A process that ends is
restarted. Its file is tried once more and then refused. A process receives its next files while it
decodes one, so that it does not wait for the server in between.

`FrameSource` decodes the uploads for one job, and deletes their frames after a half has read them.
Their sound is read with the frames, and encoded by a half of its own. The store keeps which chunks
have none, as runs note it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from artifacts.disk.json_records import read_record
from artifacts.errors import PenstockError
from artifacts.records.packs import Record, RecordSet, record_sets_of
from artifacts.schema import ChunkIndex, MediaIndex
from flows.core.job.prepare import Job
from flows.core.ledger.namespaces import Variant
from flows.core.ledger.tasks import Medium, Task, task_of
from flows.core.machine.launch import StageCall
from flows.core.pipelines import encoder_of
from flows.execution.stage_calls import StageCallBuilder
from flows.interfaces.serve.half_worker import HalfWorker
from flows.interfaces.serve.metrics import HalfMetrics, Metrics
from flows.interfaces.serve.record_cache import RecordCacheFlusher
from flows.interfaces.serve.refusals import HttpRefusal, bad_request, unavailable
from flows.interfaces.serve.temp_store import TempStore
from flows.interfaces.serve.worker_process import LauncherMaker, WorkerProcess
from stages.frames.job import FramesItem
from stages.frames.live import NO_MEMORY, TOO_LARGE
from stages.hear import STAGE as HEAR
from stages.models.encoding import FRAMES_PER_BATCH
from stages.process.events import NO_ROOM, NOT_ANSWERED, Answered, Event, Failed
from stages.process.requests import Keyed, Make
from stages.sound import SILENCES, sound_key
from stages.sound import STAGE as SOUND


class SoundSource:
    """The sound of the uploads of one job."""

    def __init__(
        self, job: Job, half: HalfWorker, keeper: RecordCacheFlusher, temp_store: TempStore
    ) -> None:
        """Take the audio half. `temp_store` is where decoders put sound."""
        of, self._half, self._calls = job.ledger.variant, half, StageCallBuilder(job)
        self._namespace = of[SOUND.writes]
        self._silences = keeper.of(job.store, SILENCES, self._namespace)
        self._heard = keeper.of(job.store, HEAR.writes, of[HEAR.writes])
        places = [(kind, self._namespace) for kind in (SOUND.writes, SILENCES)]
        self._read, self._read_silences = record_sets_of(temp_store.store, *places)

    async def has(self, medium: Medium, chunk: ChunkIndex) -> bool:
        """Return whether a chunk has sound, or may have it: nothing has read it yet."""
        key = sound_key(self._namespace, medium.digest, chunk)
        return medium.kind == "video" and not await self._silences.finds(key)

    async def is_encoded(self, task: Task) -> bool:
        """Return whether a chunk has no sound, or its features are stored."""
        return HEAR.writes not in task.keys or await self._heard.finds(task[HEAR.writes])

    async def note_silences(self, medium: Medium, index: MediaIndex) -> None:
        """Keep which chunks of a medium that was just read have no sound."""
        keys = [sound_key(self._namespace, medium.digest, chunk) for chunk in index.chunks]
        self._silences.keep(await asyncio.to_thread(self._take_silences, keys))

    async def encode(self, task: Task) -> None:
        """Encode the sound of a chunk that was just read, unless that is done. Raises
        HttpRefusal."""
        if await self.is_encoded(task):
            self.drop(task.medium, [task.chunk])
            return
        try:
            item = self._calls.encode_item(HEAR, task)
            await self._half.submit(item.key, item, 1)
        except BaseException:
            if item.key not in self._half.batches.in_flight:  # the half deletes the sound of those
                self.drop(task.medium, [task.chunk])
            raise

    def drop(self, medium: Medium, chunks: Sequence[ChunkIndex]) -> None:
        """Delete the unused sound of chunks on a thread."""
        keys = [sound_key(self._namespace, medium.digest, chunk) for chunk in chunks]
        asyncio.get_running_loop().run_in_executor(None, self._drop, keys)

    def _drop(self, keys: Sequence[str]) -> None:
        for records in (self._read, self._read_silences):
            for key in keys:  # each chunk is a pack
                records.look_up_pack([key])
            records.drop(keys)

    def _take_silences(self, keys: Sequence[str]) -> list[Record]:
        records = self._read_silences
        for key in keys:
            records.look_up_pack([key])
        silences = [records.read(key) for key in keys if key in records]
        records.drop([record.key for record in silences])
        return silences


log = logging.getLogger(__name__)

NAME = "decoders"
TRIES = 2
AHEAD = 3
"""Images that a process has at once. With one at a time, each waited 10 ms for a busy server, which
was most of the time. A video is sent alone, so that no other file waits behind it."""
STATUS = {
    TOO_LARGE: 413,
    NO_MEMORY: 413,
    "not-media": 415,
    "playlist": 415,
    NO_ROOM: 507,
    NOT_ANSWERED: 503,
}
"""Failure kind of a file → HTTP status; 422 for all others."""


@dataclass(eq=False, kw_only=True, slots=True)
class SentFile:
    """One file to be decoded."""

    medium: FramesItem
    answer: "asyncio.Future[MediaIndex]"
    deaths: int = 0
    """Processes that died while decoding it."""

    @property
    def is_image(self) -> bool:
        return self.medium.kind == "image"


class DecodingProcess:
    """One process that decodes its files in order."""

    def __init__(
        self,
        start: Callable[["DecodingProcess"], WorkerProcess],
        seconds: float,
        requeue: Callable[[list[SentFile]], None],
        died: Callable[[], None],
    ) -> None:
        """Start no process yet. A file may take `seconds`. `requeue` gets the unfinished files of a
        dead process, the current one first. It also gets an empty list whenever a file is done.
        `died` is called when the process died."""
        self._start = start
        self._seconds = seconds
        self._requeue = requeue
        self._died = died
        self._live: WorkerProcess | None = None
        self._files: deque[SentFile] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        return self._live.pid if self._live else 0

    @property
    def load(self) -> int:
        """Return its number of files."""
        return len(self._files)

    def takes(self, file: SentFile) -> bool:
        """Return whether it accepts another file."""
        images = file.is_image and all(other.is_image for other in self._files)
        return not self._files or (images and len(self._files) < AHEAD)

    def give(self, file: SentFile) -> None:
        """Queue a file for this process."""
        self.begin()
        assert self._live is not None
        self._files.append(file)
        self._live.send(Make(batches=[[file.medium]]))
        if len(self._files) == 1:
            self._watch()

    def begin(self) -> None:
        """Start the process before its first file."""
        self._live = self._live or self._start(self)

    def stop(self) -> None:
        """Let the process end after its files."""
        if self._live is not None:
            self._live.stop()

    def on_event(self, event: Event) -> None:
        """Resolve the current file's future."""
        if not isinstance(event, Answered | Failed) or not self._files:
            return
        if event.media != self._files[0].medium.digest:  # from a killed process
            return
        answer = self._files.popleft().answer
        self._watch()
        if not answer.done():
            if isinstance(event, Answered):
                assert event.index is not None
                answer.set_result(event.index)
            else:
                status = STATUS.get(event.kind, 422)
                answer.set_exception(HttpRefusal(status, event.message, event.hint))
        self._requeue([])

    def ended(self, live: WorkerProcess, error: PenstockError | None) -> None:
        """Requeue the files of a process that ended."""
        if live is not self._live:
            return
        self._live = None
        if error is not None:
            log.warning("decoder exited: %s", error.message)
            self._died()
        if self._files:
            self._files[0].deaths += 1
        self._hand_back()

    def _watch(self) -> None:
        """Restart the timer for the current file."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._files:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._give_up)

    def _give_up(self) -> None:
        assert self._live is not None
        self._live.kill()
        self._live = None
        self._died()
        answer = self._files.popleft().answer
        if not answer.done():
            answer.set_exception(
                bad_request(
                    f"decoding takes longer than {self._seconds:.0f} s",
                    "Send a smaller file, or a shorter clip",
                )
            )
        self._hand_back()

    def _hand_back(self) -> None:
        files = list(self._files)
        self._files.clear()
        self._watch()
        self._requeue(files)


class Decoders:
    """The pool of decoding processes of one pipeline."""

    def __init__(
        self,
        count: int,
        seconds: float,
        make_launcher: LauncherMaker,
        call_over: Callable[[str], StageCall],
        temp_store: TempStore,
        metrics: Metrics,
    ) -> None:
        """Make `count` processes. A file may take `seconds`."""

        def start(decoder: DecodingProcess) -> WorkerProcess:
            pipe = temp_store.path("-decoder")
            return WorkerProcess(make_launcher, call_over, pipe, decoder.on_event, decoder.ended)

        self._metrics = HalfMetrics(metrics, NAME)
        self._waiting: deque[SentFile] = deque()
        died = partial(self._metrics.restarted, "died")
        self._every = [DecodingProcess(start, seconds, self._go_on, died) for _ in range(count)]

    def begin(self) -> None:
        """Start all processes."""
        for decoder in self._every:
            decoder.begin()

    def stop(self) -> None:
        """Let all processes end."""
        for decoder in self._every:
            decoder.stop()

    async def decode(self, medium: FramesItem) -> MediaIndex:
        """Decode a file, store its frames and return its index. Raises HttpRefusal."""
        file = SentFile(medium=medium, answer=asyncio.get_running_loop().create_future())
        self._waiting.append(file)
        self._go_on([])
        return await file.answer

    def withdraw(self, medium: FramesItem) -> bool:
        """Drop a file that no client waits for. Return False if its decoding has begun."""
        for file in self._waiting:
            if file.medium is medium:
                self._waiting.remove(file)
                file.answer.cancel()
                return True
        return False

    def _go_on(self, left: list[SentFile]) -> None:
        """Give waiting files to free processes, starting with the files `left` by a dead one."""
        for file in reversed(left):
            if file.deaths < TRIES:
                self._waiting.appendleft(file)
            elif not file.answer.done():
                file.answer.set_exception(self._refusal())
        while self._waiting:
            idlest = min(self._every, key=lambda decoder: decoder.load)
            if not idlest.takes(self._waiting[0]):
                return
            idlest.give(self._waiting.popleft())

    def _refusal(self) -> HttpRefusal:
        if not any(decoder.pid for decoder in self._every):
            return unavailable("no decoding process could be started", "See the server's log")
        return bad_request(
            "two decoding processes died of this file", "Convert it, or send another one"
        )


class FrameSource:
    """Decodes uploads for one job, and caches what was found in them."""

    def __init__(
        self,
        job: Job,
        decoders: Decoders,
        keeper: RecordCacheFlusher,
        temp_store: TempStore,
        sound: SoundSource | None = None,
    ) -> None:
        """`sound`: that of the same uploads, if the decoders read it."""
        self.sound = sound
        self._kind, self._encoded = job.pipeline[0].writes, encoder_of(job.pipeline).writes
        self._decoders = decoders
        self.variant = job.ledger.variant
        namespace = self.variant[self._kind]
        self._media = keeper.of(job.store, "media", namespace)
        self._frames = RecordSet(temp_store.store, self._kind, namespace)

    async def known(self, medium: Medium) -> MediaIndex | None:
        """Return the index of a medium that was decoded before, or None."""
        record = await self._media.read(medium.digest)
        return None if record is None else read_record(MediaIndex, record.meta)

    def keep(self, medium: Medium, index: MediaIndex) -> None:
        """Cache the index of a medium."""
        self._media.keep([Record(key=medium.digest, meta=index.to_json())])

    def tasks(
        self, medium: Medium, index: MediaIndex, variant: Variant | None = None
    ) -> list[Task]:
        """Return the chunks of a medium, by default in the variant of new records."""
        by = variant or self.variant
        return [task_of(medium, chunk, by) for chunk in index.chunks]

    async def decode(self, medium: Medium, half: HalfWorker) -> MediaIndex:
        """Decode a medium, store its frames for a half and return its index. Raises HttpRefusal."""
        item = FramesItem(medium.path, medium.digest, medium.kind)
        half.expect(1)
        # A running decoder is not cancelled: its process would have to be restarted.
        doing = asyncio.ensure_future(self._decoders.decode(item))
        doing.add_done_callback(lambda _: half.expect(-1))
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            if not self._decoders.withdraw(item):
                doing.add_done_callback(lambda done: self._throw_away(medium, done))
            raise

    def weight(self, task: Task, half: HalfWorker) -> int:
        """Return a chunk's weight in a batch of a half: its pixels, or for a video its share of the
        frames that a batch may have."""
        pixels = task.chunk.height * task.chunk.width * len(task.chunk.times)
        frames = len(task.chunk.times) * half.batches.max_weight // FRAMES_PER_BATCH
        return max(pixels, frames if task.medium.kind == "video" else 0)

    async def submit(
        self, task: Task, half: HalfWorker, key: str, request: Keyed, weight: int
    ) -> Any:
        """Have a half process a chunk's frames, and return the result. Raises HttpRefusal."""
        try:
            return await half.submit(key, request, weight)
        except BaseException:
            if key not in half.batches.in_flight:  # otherwise the half deletes the frames itself
                self.drop([task])
            raise

    def drop(self, tasks: Sequence[Task]) -> None:
        """Delete unused frames on a thread."""
        keys = [task[self._kind] for task in tasks]
        asyncio.get_running_loop().run_in_executor(None, self._drop, keys)

    def drop_unsent(self, medium: Medium, index: MediaIndex, half: HalfWorker) -> None:
        """Delete the frames and the sound of a medium whose clients have left, except those that a
        half has, which deletes them itself."""
        tasks, made = self.tasks(medium, index), self._encoded
        self.drop([task for task in tasks if task[made] not in half.batches.in_flight])
        if self.sound is not None:
            self.sound.drop(medium, index.chunks)

    def _drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._frames.look_up_pack([key])
            self._frames.drop([key])

    def _throw_away(self, medium: Medium, doing: "asyncio.Future[MediaIndex]") -> None:
        if not doing.cancelled() and doing.exception() is None:
            self.drop(self.tasks(medium, doing.result()))
            if self.sound is not None:
                self.sound.drop(medium, doing.result().chunks)
