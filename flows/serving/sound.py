"""Hears uploaded videos for a captioning server. Their sound is read with their frames, and encoded
by a half of its own. The store keeps which chunks have none, as runs note it."""

import asyncio
from collections.abc import Sequence

from artifacts.packs import Record, record_sets_of
from artifacts.schema import ChunkIndex, MediaIndex
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task
from flows.running.stage_calls import StageCallBuilder
from flows.serving.half_worker import HalfWorker
from flows.serving.record_cache import RecordCacheFlusher, TempStore
from stages.hear import STAGE as HEAR
from stages.sound import SILENCES, sound_key
from stages.sound import STAGE as SOUND


class SoundSource:
    """The sound of the uploads of one job."""

    def __init__(
        self, job: Job, half: HalfWorker, keeper: RecordCacheFlusher, temp_store: TempStore
    ) -> None:
        """Take the audio half. `temp_store` is where decoders put sound."""
        of, self._half, self._calls = job.ledger.namespaces, half, StageCallBuilder(job)
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
            if not self._half.has(item.key):  # otherwise the half deletes the sound itself
                self.drop(task.medium, [task.chunk])
            raise

    def drop(self, medium: Medium, chunks: Sequence[ChunkIndex]) -> None:
        """Delete the unused sound of chunks on a thread."""
        keys = [sound_key(self._namespace, medium.digest, chunk) for chunk in chunks]
        asyncio.get_running_loop().run_in_executor(None, self._drop, keys)

    def _drop(self, keys: Sequence[str]) -> None:
        for records in (self._read, self._read_silences):
            records.look_up(keys)
            records.drop(keys)

    def _take_silences(self, keys: Sequence[str]) -> list[Record]:
        records = self._read_silences
        records.look_up(keys)
        found = [records.read(key) for key in keys if key in records]
        records.drop([each.key for each in found])
        return found
