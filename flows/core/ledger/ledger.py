"""Compares a job with the store: which records exist and which are missing. Starts no process and
opens no media file.

How it works:

1. Every kind of record of the pipeline has one record set per cache namespace. A job may have
   several variants (for example one per precision), each with its own namespaces. The record sets
   of a kind are read as one union, so a record of any variant counts.
2. The index of a medium, written by the frames stage, lists its chunks. Each chunk and prompt
   becomes a `Task` with one cache key per stage. Tasks are cached per (content digest, prompt).
3. A task takes the first variant whose stored caption is valid now. A caption made with another
   token limit is valid if it ended by itself within the present limit.
4. Without a stored caption, the task takes the variant in force, but keeps the precision of earlier
   stages whose records exist. Their work is then not repeated.
5. `has` returns whether a task needs a stage no more: the stage's own record exists, or that of a
   later stage. Earlier records may have been deleted by then.
6. `failures` (per medium) and `refused` (per stage and key) store why an item has no caption.
   `unfit` holds such reasons for this run only, so the next run tries these items again.
7. With chained prompts, a key also depends on the previous chunk's caption. Such a task is
   incomplete until that caption exists or is known to be lost, and it is rebuilt on each query.
8. `refresh` reads what the stages have published since. It clears the cached tasks if there are
   several variants; so does a change of the variant in force.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from artifacts.disk.json_records import read_record
from artifacts.records.keys import item_key
from artifacts.records.packs import RecordUnion
from artifacts.records.store import Store
from artifacts.schema import ChunkIndex, MediaIndex
from artifacts.texts.captions import answer_of
from flows.core.ledger.namespaces import Variant, Variants
from flows.core.ledger.run_records import RunRecords
from flows.core.ledger.tasks import Medium, Task, task_of
from flows.core.pipelines import Pipeline
from stages import sound
from stages.process.stage_spec import StageSpec
from stages.sound import sound_key


class Ledger:
    """The tasks of one run, and which of their records exist. All state comes from the store,
    except the items that did not fit in this run."""

    def __init__(
        self, store: Store, pipeline: Pipeline, *variants: Variant, opens_reasoning: bool = False
    ) -> None:
        """Open the record sets of all `variants`, best first. A record of any variant counts as
        done. `opens_reasoning`: the model's prompts end inside of its reasoning."""
        self.pipeline = pipeline
        self._opens_reasoning = opens_reasoning
        self.variants = Variants(variants)
        self.variant = variants[0]
        """Variant in which new records are made."""
        self.records = RunRecords(store, pipeline, variants)
        self.unfit: dict[tuple[str, int, str], dict[str, Any]] = {}
        """Why an item fails in this run. The key is a chunk's identity, or (digest, -1, "") for a
        medium."""
        self._indexes: dict[str, tuple[dict[str, Any], MediaIndex]] = {}
        """Content digest → (stored metadata, parsed index)."""
        self._tasks: dict[tuple[str, str], tuple[MediaIndex, list[Task]]] = {}
        """(content digest, prompt) → (index, tasks of its chunks)."""

    def __getitem__(self, kind: str) -> RecordUnion:
        """Return the records of a kind, in whichever variant they were made."""
        return self.records[kind]

    def refresh(self) -> None:
        """Read what the stages have published since the last call."""
        self.records.refresh()
        self.clear_tasks()

    def use_precision(self, precision: Mapping[str, str]) -> None:
        self.variant = self.variants.of_precision(precision)
        self.clear_tasks()

    def equivalent_tasks(self, task: Task) -> list[Task]:
        """Return the task in every variant with equivalent captions, its own first."""
        own = task.variant
        others = (v for v in self.variants if v != own and v.same_but_engine(own))
        return [task, *(task.in_variant(variant) for variant in others)]

    def clear_tasks(self) -> None:
        """Drop the cached tasks, so that each is assigned to a variant again."""
        if len(self.variants) > 1:
            self._tasks.clear()

    def media_index(self, medium: Medium) -> MediaIndex | None:
        """Return the index of a medium, or None before the frames stage has read it."""
        try:
            meta = self.records.media.meta(medium.digest)
        except KeyError:
            return None
        read_from, index = self._indexes.get(medium.digest, (None, None))
        if index is None or read_from is not meta:
            index = read_record(MediaIndex, meta)
            self._indexes[medium.digest] = (meta, index)
        return index

    def begun_tasks(self, medium: Medium) -> list[Task]:
        """Return every chunk of a medium that is known: all of them if it has an index, else those
        of a video that is still cut whose frames are stored."""
        if self.media_index(medium) is not None:
            return self._tasks_of(medium)
        first, tasks = self.pipeline[0].writes, list[Task]()
        for at in count() if medium.kind == "video" else ():
            key = item_key(self.variant[first], medium.digest, at)
            if key not in self[first]:
                break
            chunk = ChunkIndex.from_frames(self[first].meta(key))
            tasks.append(self._task(medium, chunk, None))
        return tasks

    def failure(self, medium: Medium) -> dict[str, Any] | None:
        """Return why a medium cannot be captioned, or None."""
        if (why := self.unfit.get((medium.digest, -1, ""))) is not None:
            return why
        failures = self.records.failures
        return failures.meta(medium.digest) if medium.digest in failures else None

    def refusal(self, medium: Medium) -> dict[str, Any] | None:
        """Return why a chunk of a medium cannot be captioned, or None."""
        for task in self.tasks([medium]):
            if (why := self._reason(task)) is not None:
                return {**why, "start": task.chunk.start}
        return None

    def has_failed(self, task: Task) -> bool:
        """Return whether the model rejects the chunk's frames, or the chunk does not fit in
        memory."""
        return self._reason(task) is not None

    def expected(self, medium: Medium) -> int:
        return sum(not self.has_failed(task) for task in self.tasks([medium]))

    def _reason(self, task: Task) -> dict[str, Any] | None:
        if task.identity in self.unfit:
            return self.unfit[task.identity]
        for stage in self.stages_of(task):
            if self.records.has_refused(task, stage):
                refused = self.records.refused[stage.name]
                return {"stage": stage.name, **refused.meta(task[stage.writes])}
        return None

    def has(self, task: Task, stage: StageSpec) -> bool:
        """Return whether a task no longer needs a stage. Either the stage's record exists, or those
        of all stages that read it; it may then be deleted."""
        kind = stage.writes
        if kind not in task.keys or task[kind] in self[kind]:
            return True
        readers = [reader for reader in self.stages_of(task) if kind in reader.reads]
        return bool(readers) and all(self.has(task, reader) for reader in readers)

    def is_done(self, task: Task) -> bool:
        return all(self.has(task, stage) for stage in self.stages_of(task))

    def can_make(self, task: Task, stage: StageSpec) -> bool:
        """Return whether all records are there that a stage reads."""
        return all(task[kind] in self[kind] for kind in stage.reads if kind in task.keys)

    def stages_of(self, task: Task) -> list[StageSpec]:
        return [stage for stage in self.pipeline if stage.writes in task.keys]

    def hears(self, medium: Medium, chunk: ChunkIndex) -> bool:
        """Return whether a chunk has sound, or may have it: the sound stage did not read it yet."""
        if self.records.silences is None or medium.kind != "video":
            return False
        namespace = self.variant[sound.STAGE.writes]
        return sound_key(namespace, medium.digest, chunk) not in self.records.silences

    def forget_failures(self, media: Sequence[Medium]) -> None:
        """Drop the recorded failures, so that everything is tried again."""
        self.records.failures.drop([m.digest for m in media])
        for stage in (stage for stage in self.pipeline if stage.can_reject_items):
            tasks = [equal for task in self.tasks(media) for equal in self.equivalent_tasks(task)]
            keys = [task[stage.writes] for task in tasks if stage.writes in task.keys]
            self.records.refused[stage.name].drop(keys)

    def tasks(self, media: Iterable[Medium]) -> list[Task]:
        """Return every chunk of the media with a known index, in order."""
        return [task for medium in media for task in self._tasks_of(medium)]

    def _tasks_of(self, medium: Medium) -> list[Task]:
        index = self.media_index(medium)
        if index is None:
            return []
        identity = (medium.digest, medium.prompt)
        made_from, tasks = self._tasks.get(identity, (None, []))
        chained = medium.uses_previous_caption and self.pipeline[-1].prompted
        if made_from is not index or chained:
            tasks = []
            previous: str | None = ""
            for chunk in index.chunks:
                tasks.append(self._task(medium, chunk, previous))
                previous = self._caption(tasks[-1]) if chained else ""
            self._tasks[identity] = (index, tasks)
        return tasks

    def _caption(self, task: Task) -> str | None:
        """Return the caption of a chunk, for the prompt of the next one. Return an empty string for
        a failed chunk, and None while the caption is unknown."""
        captions = self[self.pipeline[-1].writes]
        key = task[self.pipeline[-1].writes]
        if not task.awaits_previous and key in captions:
            return answer_of(captions.meta(key), opened=self._opens_reasoning) or ""
        return "" if not task.awaits_previous and self.has_failed(task) else None

    def _task(self, medium: Medium, chunk: ChunkIndex, previous: str | None) -> Task:
        """Return the chunk in the best variant that has its last record. Without one, use the
        variant in force, but keep the precision of intermediate records that exist."""
        between: dict[str, str] = {}
        hears = self.hears(medium, chunk)
        variants = [variant for variant in self.variants if variant.hears == hears]
        for variant in variants if len(self.variants) > 1 else ():
            # Most variants are never used, and computing keys takes time.
            if not self.records.has_some_of(variant):
                continue
            task = task_of(medium, chunk, variant, previous)
            if self._is_valid(task):
                return task
            between = between or self._finished_precision(task)
        precision = {**self.variant.precision, **between}
        if hears != self.variant.hears:
            precision = {part: precision[part] for part in variants[0].precision}
        return task_of(medium, chunk, self.variants.of_precision(precision), previous)

    def _finished_precision(self, task: Task) -> dict[str, str]:
        """Return the precision of the parts whose intermediate record exists or was rejected."""
        return {
            stage.part: task.variant.precision[stage.part]
            for stage in self.stages_of(task)[1:-1]
            if stage.part
            and (task[stage.writes] in self[stage.writes] or self.records.has_refused(task, stage))
        }

    def _is_valid(self, task: Task) -> bool:
        """Return whether the stored caption equals the one that would be made now. A caption with
        another token limit is valid if it ended by itself within the present limit, because greedy
        text does not depend on the limit."""
        last = self.stages_of(task)[-1].writes
        if task[last] not in self[last]:
            return False
        then, limit = task.variant.limit, self.variant.limit
        if then == limit:
            return True
        stored = self[last].meta(task[last])
        return stored["ended"] == "stop" and bool(stored["tokens"] <= limit)

    def frames_to_cut(self, medium: Medium) -> list[int] | None:
        """Return the chunks whose frames must be cut. None means all chunks of an unread medium; an
        empty list means none."""
        if self.failure(medium) is not None:
            return []
        if self.media_index(medium) is None:
            return None
        return [
            task.chunk.index
            for task in self.tasks([medium])
            if not self.has(task, self.pipeline[0]) and not self.has_failed(task)
        ]


def stages_with_work(ledger: Ledger, media: Sequence[Medium]) -> list[StageSpec]:
    """Return the stages after the first that have missing records, as far as the store shows it
    before work starts."""
    later = ledger.pipeline[1:]
    usable = [medium for medium in media if ledger.failure(medium) is None]
    if any(ledger.media_index(medium) is None for medium in usable):
        return list(later)
    tasks = [task for task in ledger.tasks(usable) if not ledger.has_failed(task)]
    return [stage for stage in later if not all(ledger.has(task, stage) for task in tasks)]
