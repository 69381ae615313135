"""What is done and what is missing, read off the store; starts nothing and opens no media file."""

from collections.abc import Iterable, Sequence
from typing import Any

from artifacts.captions import ended_of
from artifacts.keys import digest_of, item_key
from artifacts.packs import Record, Shelf
from artifacts.schema import WHOLE, ChunkIndex, MediaIndex
from artifacts.shelves import Shelves
from artifacts.store import Store
from flows.job.scopes import Scopes
from flows.job.tasks import Medium, Task, unique

BYTES_A_TOKEN = 4
"""Of a prompt, about: enough to tell a long one from a short one without a tokenizer."""


class Ledger:
    """The shelves of one run's scopes. Nothing is kept here that the store does not say, but what
    did not fit this time."""

    def __init__(self, store: Store, *ways: Scopes) -> None:
        """`ways` in which things may be made, the best first: what was made in any is done."""
        self.ways = ways
        self.scopes = ways[0]
        """The way in which things are made now."""
        frames = self.scopes.frames
        self.media = Shelf(store, "media", frames)
        self.failures = Shelf(store, "failures", frames)
        self.frames = Shelf(store, "frames", frames)
        features = list(dict.fromkeys(way.features for way in ways))
        captions = list(dict.fromkeys(way.captions for way in ways))
        self._features = {scope: Shelf(store, "features", scope) for scope in features}
        self._captions = {scope: Shelf(store, "captions", scope) for scope in captions}
        self.features = Shelves(list(self._features.values()))
        self.refused = Shelves([Shelf(store, "failures", scope) for scope in features])
        self.captions = Shelves(list(self._captions.values()))
        self._waves = Shelf(store, "waves", self.scopes.captions)
        self.unfit: dict[tuple[str, int, str], dict[str, Any]] = {}
        """Place of a chunk, or digest of a medium with -1 and no prompt → why it did not fit, or
        could not be read this time."""
        self._indexes: dict[str, tuple[dict[str, Any], MediaIndex]] = {}
        """Content digest → what the shelf said of it and what that means."""
        self._tasks: dict[tuple[str, str], tuple[MediaIndex, list[Task]]] = {}
        """(content digest, prompt) → the chunks that were found in it and the tasks of them."""

    def refresh(self) -> None:
        """See what the stages have published since."""
        for shelf in (
            self.media,
            self.failures,
            self.frames,
            self.features,
            self.refused,
            self.captions,
        ):
            shelf.refresh()

    def take(self, *, vision: str, language: str) -> None:
        """From now on make things in this way."""
        self.scopes = next(w for w in self.ways if (w.vision, w.language) == (vision, language))
        self.reconsider()

    def reconsider(self) -> None:
        """Look again in which way each thing was made, or is to be."""
        if len(self.ways) > 1:
            self._tasks.clear()

    def index(self, medium: Medium) -> MediaIndex | None:
        """What the frames stage found in a medium; None when it has not been there."""
        try:
            meta = self.media.meta(medium.digest)
        except KeyError:
            return None
        known = self._indexes.get(medium.digest)
        if known is None or known[0] is not meta:
            known = self._indexes[medium.digest] = (meta, MediaIndex.from_json(meta))
        return known[1]

    def failure(self, medium: Medium) -> dict[str, Any] | None:
        """Why a medium cannot be captioned, when that is known."""
        if (medium.digest, -1, "") in self.unfit:
            return self.unfit[medium.digest, -1, ""]
        return self.failures.meta(medium.digest) if medium.digest in self.failures else None

    def refusal(self, medium: Medium) -> dict[str, Any] | None:
        """Why some chunk of a medium cannot be captioned, when that is known."""
        for task in self.tasks([medium]):
            if self.lost(task):
                why = self.unfit.get(task.place) or self.refused.meta(task.features)
                return {"stage": "encode", **why, "start": task.chunk.start}
        return None

    def lost(self, task: Task) -> bool:
        """Whether the model takes its frames not, or it does not fit."""
        return task.place in self.unfit or task.features in self.refused

    def forget_failures(self, media: Sequence[Medium]) -> None:
        """Let everything that failed before be tried again."""
        self.failures.drop([m.digest for m in media])
        self.refused.drop([task.features for task in self.tasks(media)])

    def tasks(self, media: Iterable[Medium]) -> list[Task]:
        """Every chunk of the media whose chunks are known, in order."""
        found: list[Task] = []
        for medium in media:
            found += self._tasks_of(medium)
        return found

    def _tasks_of(self, medium: Medium) -> list[Task]:
        index = self.index(medium)
        if index is None:
            return []
        identity = (medium.digest, medium.prompt)
        known = self._tasks.get(identity)
        if known is None or known[0] is not index:
            tasks = [self._task(medium, chunk) for chunk in index.chunks]
            known = self._tasks[identity] = (index, tasks)
        return known[1]

    def _task(self, medium: Medium, chunk: ChunkIndex) -> Task:
        """The chunk as it was captioned in the best way; else as it is to be, with the best
        features that there are."""
        seen: Task | None = None
        for way in self.ways if len(self.ways) > 1 else ():
            # Most ways are never taken, and a key takes time.
            if not len(self._features[way.features]) and not len(self._captions[way.captions]):
                continue
            task = self.at(medium, chunk, way)
            if self._answers(task):
                return task
            if seen is None and (task.features in self.features or task.features in self.refused):
                seen = task
        if seen is None or seen.scopes.features == self.scopes.features:
            return self.at(medium, chunk, self.scopes)
        vision, language = seen.scopes.vision, self.scopes.language
        way = next(w for w in self.ways if (w.vision, w.language) == (vision, language))
        return self.at(medium, chunk, way)

    def _answers(self, task: Task) -> bool:
        """Whether a stored caption is what would be said now: with another limit, if it ended by
        itself within this one, since greedy words do not hang on where they would be cut."""
        if task.caption not in self.captions:
            return False
        then, limit = task.scopes.limit, self.scopes.limit
        if then == limit:
            return True
        stored = self.captions.meta(task.caption)
        return ended_of(stored, then) == "stop" and bool(stored["tokens"] <= limit)

    def at(self, medium: Medium, chunk: ChunkIndex, scopes: Scopes) -> Task:
        """The chunk with the keys of one way."""
        place = (medium.digest, chunk.index)
        seen = (medium.prompt,) if scopes.prompted else ()
        index = self.index(medium)
        words = index.words(scopes.fit_image) if index is not None else ()
        return Task(
            medium=medium,
            chunk=chunk,
            frames=item_key(scopes.frames, *place, *words),
            features=item_key(scopes.features, *place, *seen, *words),
            caption=item_key(scopes.captions, *place, medium.prompt, *words),
            scopes=scopes,
        )

    def frames_wanted(self, medium: Medium) -> list[int] | None:
        """Chunks whose frames must be cut: None for all of an unknown medium, [] for none."""
        if self.failure(medium) is not None:
            return []
        index = self.index(medium)
        if index is None:
            return None
        return [
            task.chunk.index
            for task in self.tasks([medium])
            if task.features not in self.features
            and not self.lost(task)
            and task.caption not in self.captions
            and task.frames not in self.frames
        ]

    def lengths(self, tasks: Sequence[Task]) -> dict[str, int]:
        """Caption key → about how many tokens the decoder is given for it.

        Recorded before any of them is decoded: features that are gone when the run is resumed must
        not change which chunks share a batch.
        """
        wave = unique(tasks, "caption")
        key = digest_of(["lengths", *(task.caption for task in wave)])
        if key not in self._waves:
            counts = [self._length(task) for task in wave]
            self._waves.publish([Record(key=key, meta={"tokens": counts})])
        tokens: list[int] = self._waves.meta(key)["tokens"]
        return {task.caption: count for task, count in zip(wave, tokens, strict=True)}

    def _length(self, task: Task) -> int:
        known = task.features in self.features
        of_media = int(self.features.meta(task.features).get("tokens", 0)) if known else 0
        return of_media + len(task.medium.prompt.encode()) // BYTES_A_TOKEN

    def waves(
        self, media: Sequence[Medium], sizes: Sequence[int], limit: int
    ) -> list[list[Medium]]:
        """The media cut into waves of at most `limit` bytes of frames and features.

        The cut is recorded: how much disk was free the first time must not change which chunks
        share a
        batch when the run is resumed, because in 16 bit another batch gives other bytes.
        """
        # Cut anew where pictures may have been counted smaller than they are stored since.
        words = [WHOLE] if any(m.kind == "image" for m in media) else []
        key = digest_of([*([m.digest, m.prompt] for m in media), *words])
        if key not in self._waves:
            self._waves.publish([Record(key=key, meta={"lengths": cut_waves(sizes, limit)})])
        waves, start = [], 0
        for length in self._waves.meta(key)["lengths"]:
            waves.append(list(media[start : start + length]))
            start += length
        return waves


def cut_waves(sizes: Sequence[int], limit: int) -> list[int]:
    """How many media go into each wave, so that a wave stays below `limit` bytes; at least one
    each."""
    lengths: list[int] = []
    filled = 0
    for size in sizes:
        if not lengths or filled + size > limit:
            lengths.append(0)
            filled = 0
        lengths[-1] += 1
        filled += size
    return lengths
