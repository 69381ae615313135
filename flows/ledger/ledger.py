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
from functools import partial
from typing import Any

from artifacts.captions import answer_in, ended_of
from artifacts.packs import RecordSet
from artifacts.record_union import RecordUnion, refresh_together
from artifacts.schema import ChunkIndex, MediaIndex
from artifacts.store import Store
from flows.ledger.namespaces import Variant
from flows.ledger.tasks import Medium, Task, task_of
from flows.pipelines import Pipeline
from stages.process.stage import StageSpec


class Ledger:
    """The records of one run, by kind. All state comes from the store, except the items that did
    not fit in this run."""

    def __init__(self, store: Store, pipeline: Pipeline, *variants: Variant) -> None:
        """Open the record sets of all `variants`, the best first: what was made in any is done."""
        self.pipeline = pipeline
        self.variants = variants
        self.namespaces = variants[0]
        """The variant in which records are made now."""
        first, last = pipeline[0].writes, pipeline[-1].writes
        closed = partial(RecordSet, store, look=False)
        self.media = closed("media", self.namespaces[first])
        self.failures = closed("failures", self.namespaces[first])
        namespaces = {
            s.writes: dict.fromkeys(variant[s.writes] for variant in variants) for s in pipeline
        }
        self._record_sets = {
            kind: {namespace: closed(kind, namespace) for namespace in of_kind}
            for kind, of_kind in namespaces.items()
        }
        self._records = {k: RecordUnion([*of.values()]) for k, of in self._record_sets.items()}
        self.refused = {
            stage.name: RecordUnion([closed("failures", n) for n in namespaces[stage.writes]])
            for stage in pipeline
            if stage.can_reject_items
        }
        """Name of a stage → why the model does not take an item, by the key of what it would be."""
        self.cuts = closed("waves", self.namespaces[last])
        """The division of the work, as it was when it was done first."""
        self._look(self.cuts)
        self.unfit: dict[tuple[str, int, str], dict[str, Any]] = {}
        """Place of a chunk, or digest of a medium, -1 and no prompt → why not it, this time."""
        self._indexes: dict[str, tuple[dict[str, Any], MediaIndex]] = {}
        """Content digest → what the record set said of it and what that means."""
        self._tasks: dict[tuple[str, str], tuple[MediaIndex, list[Task]]] = {}
        """(content digest, prompt) → the chunks that were found in it and the tasks of them."""

    def __getitem__(self, kind: str) -> RecordUnion:
        """Return the records of a kind, in whichever variant they were made."""
        return self._records[kind]

    def refresh(self) -> None:
        """See what the stages have published since."""
        self._look()
        self.clear_tasks()

    def _look(self, *more: RecordSet) -> None:
        unions = (*self._records.values(), *self.refused.values())
        refresh_together(self.media, self.failures, *unions, *more)

    def take(self, precision: Mapping[str, str]) -> None:
        """Make records in the variant of this precision from now on."""
        self.namespaces = self.variant(precision)
        self.clear_tasks()

    def variant(self, precision: Mapping[str, str]) -> Variant:
        """Return the first variant in which the parts compute in these precisions."""
        return next(variant for variant in self.variants if variant.precision == precision)

    def instead(self, namespaces: Variant) -> Variant | None:
        """Return the variant whose captions answer as well as those of this one, if there is
        another."""
        others = (v for v in self.variants if v != namespaces and v.same_but_engine(namespaces))
        return next(others, None)

    def answers(self, task: Task) -> list[Task]:
        """Return the task in every variant whose captions answer as well as those of its own."""
        other = self.instead(task.namespaces)
        return [task, *([self.again(task, other)] if other else [])]

    def clear_tasks(self) -> None:
        """Look again in which variant each record was made, or is to be."""
        if len(self.variants) > 1:
            self._tasks.clear()

    def index(self, medium: Medium) -> MediaIndex | None:
        """Return what the frames stage found in a medium; None when it has not been there."""
        try:
            meta = self.media.meta(medium.digest)
        except KeyError:
            return None
        known = self._indexes.get(medium.digest)
        if known is None or known[0] is not meta:
            known = self._indexes[medium.digest] = (meta, MediaIndex.from_json(meta))
        return known[1]

    def failure(self, medium: Medium) -> dict[str, Any] | None:
        """Return why a medium cannot be captioned, when that is known."""
        if (why := self.unfit.get((medium.digest, -1, ""))) is not None:
            return why
        return self.failures.meta(medium.digest) if medium.digest in self.failures else None

    def refusal(self, medium: Medium) -> dict[str, Any] | None:
        """Return why some chunk of a medium cannot be captioned, when that is known."""
        for task in self.tasks([medium]):
            if (why := self._loss(task)) is not None:
                return {**why, "start": task.chunk.start}
        return None

    def lost(self, task: Task) -> bool:
        """Return whether the model does not take its frames, or it does not fit."""
        return self._loss(task) is not None

    def _loss(self, task: Task) -> dict[str, Any] | None:
        if task.place in self.unfit:
            return self.unfit[task.place]
        for stage in self.pipeline:
            if self._refused(task, stage):
                return {"stage": stage.name, **self.refused[stage.name].meta(task[stage.writes])}
        return None

    def _refused(self, task: Task, stage: StageSpec) -> bool:
        return stage.can_reject_items and task[stage.writes] in self.refused[stage.name]

    def has(self, task: Task, stage: StageSpec) -> bool:
        """Return whether a task needs nothing of a stage any more. Either the stage's record is
        there, or one that was made of it; then the records before may be gone."""
        later = self.pipeline[self.pipeline.index(stage) :]
        return any(task[s.writes] in self._records[s.writes] for s in later)

    def forget_failures(self, media: Sequence[Medium]) -> None:
        """Let everything that failed before be tried again."""
        self.failures.drop([m.digest for m in media])
        for stage in (each for each in self.pipeline if each.can_reject_items):
            again = [each for task in self.tasks(media) for each in self.answers(task)]
            self.refused[stage.name].drop([task[stage.writes] for task in again])

    def tasks(self, media: Iterable[Medium]) -> list[Task]:
        """Return every chunk of the media whose chunks are known, in order."""
        return [task for medium in media for task in self._tasks_of(medium)]

    def _tasks_of(self, medium: Medium) -> list[Task]:
        index = self.index(medium)
        if index is None:
            return []
        identity = (medium.digest, medium.prompt)
        known = self._tasks.get(identity)
        chained = medium.chained and self.pipeline[-1].prompted
        if known is None or known[0] is not index or chained:
            tasks: list[Task] = []
            previous: str | None = ""
            for chunk in index.chunks:
                tasks.append(self._task(medium, chunk, previous))
                previous = self._said(tasks[-1]) if chained else ""
            known = self._tasks[identity] = (index, tasks)
        return known[1]

    def _said(self, task: Task) -> str | None:
        """Return what was said of a chunk, for the one after it; nothing of one that is lost. It is
        None where that is not known yet."""
        made = self[self.pipeline[-1].writes]
        key = task[self.pipeline[-1].writes]
        if not task.waits and key in made:
            return answer_in(str(made.meta(key)["caption"]))
        return "" if not task.waits and self.lost(task) else None

    def _task(self, medium: Medium, chunk: ChunkIndex, previous: str | None) -> Task:
        """Return the chunk in the best variant in which its last record was made. Without one, it
        is in the variant in which that is to be made, of the best of the records between that there
        are."""
        between: dict[str, str] = {}
        for variant in self.variants if len(self.variants) > 1 else ():
            # Most variants are never taken, and a key takes time.
            if not any(
                len(self._record_sets[s.writes][variant[s.writes]]) for s in self.pipeline[1:]
            ):
                continue
            task = self.at(medium, chunk, variant, previous)
            if self._answers(task):
                return task
            between = between or self._seen(task)
        variant = self.variant({**self.namespaces.precision, **between})
        return self.at(medium, chunk, variant, previous)

    def _seen(self, task: Task) -> dict[str, str]:
        """Return the precision of the parts whose work is there, or was refused, before the
        last."""
        return {
            stage.part: task.namespaces.precision[stage.part]
            for stage in self.pipeline[1:-1]
            if stage.part
            and (task[stage.writes] in self[stage.writes] or self._refused(task, stage))
        }

    def _answers(self, task: Task) -> bool:
        """Return whether a stored caption is the one that would be made now. One of another limit
        is, if it ended by itself within this one: greedy words do not hang on where they would be
        cut."""
        last = self.pipeline[-1].writes
        if task[last] not in self[last]:
            return False
        then, limit = task.namespaces.limit, self.namespaces.limit
        if then == limit:
            return True
        stored = self[last].meta(task[last])
        return ended_of(stored, then) == "stop" and bool(stored["tokens"] <= limit)

    def at(
        self,
        medium: Medium,
        chunk: ChunkIndex,
        namespaces: Variant,
        previous: str | None = "",
    ) -> Task:
        """Return the chunk with the keys of one variant; `previous` is what was said before it."""
        return task_of(medium, self.index(medium), chunk, namespaces, previous)

    def again(self, task: Task, namespaces: Variant) -> Task:
        """Return a task with the keys of another variant."""
        return self.at(task.medium, task.whole, namespaces, task.previous)

    def frames_wanted(self, medium: Medium) -> list[int] | None:
        """Return the chunks whose frames must be cut: None for all of an unknown medium, [] for
        none."""
        if self.failure(medium) is not None:
            return []
        if self.index(medium) is None:
            return None
        return [
            task.chunk.index
            for task in self.tasks([medium])
            if not self.has(task, self.pipeline[0]) and not self.lost(task)
        ]
