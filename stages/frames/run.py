"""The frames stage: media files in, stored chunks of RGB frames out; knows nothing of what the
frames are for.

Each worker holds one chunk, or one pack of pictures, and stores it before it goes on: that is all
the memory there is, however long the videos and however slow the disk.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, MediaError, PenstockError
from artifacts.keys import item_key
from artifacts.packs import Record, Shelf
from artifacts.schema import ChunkIndex, FrameFit, MediaIndex, Sampling
from artifacts.store import open_store
from stages.frames.picture import read_picture
from stages.frames.plan import ChunkPlan
from stages.frames.video import Chunk, Damage, Video
from stages.frames.watchdog import Watchdog
from stages.process.budget import short
from stages.process.cgroup import cores
from stages.process.ending import out_of_memory
from stages.process.report import Report

log = logging.getLogger(__name__)

PACK_RECORDS = 64
"""At most so many pictures are stored together."""
PASSING = frozenset(("missing", "unreadable"))
"""What a file that could be read a moment ago is when its disk goes away: no fault of the file, and
not to be remembered as one."""
PACK_BYTES = 64 << 20
"""Pictures are stored as soon as they come to this many bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Medium:
    """One file to cut."""

    path: Path
    digest: str
    """Content digest, 64 hex digits."""
    kind: str
    """`video` or `image`."""
    wanted: frozenset[int] | None
    """Indexes of the chunks to make; None: all of them."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Medium":
        wanted = None if value.get("wanted") is None else frozenset(value["wanted"])
        return cls(**{**value, "path": Path(value["path"]), "wanted": wanted})


def run(job: dict[str, Any], report: Report) -> None:
    """Cut every medium of the job that is not on the shelf yet.

    A medium that cannot be used is recorded as such and the others go on. Raises EnvironmentFault
    when the store or a disk is in the way.
    """
    watchdog = Watchdog()
    stage = Stage(job, report, watchdog)
    workers = max(1, int(job["workers"]))
    with watchdog, ThreadPoolExecutor(workers, thread_name_prefix="frames") as pool:
        futures = [pool.submit(task) for task in stage.tasks(workers)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stage.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class Stage:
    """One job: its shelves, and what is still to do."""

    def __init__(self, job: dict[str, Any], report: Report, watchdog: Watchdog) -> None:
        store, self.scope = open_store(job["store"]), str(job["scope"])
        self.frames = Shelf(store, "frames", self.scope)
        self.media = Shelf(store, "media", self.scope)
        self.failures = Shelf(store, "failures", self.scope)
        self.sampling = Sampling(**job["sampling"])
        self.fits = {
            kind: FrameFit(long_edges=tuple((float(a), int(e)) for a, e in edges))
            for kind, edges in job["fit"].items()
        }
        self.report = report
        self.watchdog = watchdog
        self.stop = threading.Event()
        """Set when workers are to end after the chunk in hand."""
        media = map(Medium.from_json, job["media"])
        # Two files of one content are one medium.
        self.to_do = {m.digest: m for m in media if self._is_missing(m)}
        self._lock = threading.Lock()
        self._items = {m.digest: len(m.wanted or (0,)) for m in self.to_do.values()}
        self._threads = 1

    def tasks(self, workers: int) -> list[Callable[[], None]]:
        """What the workers do: one video each, or a group of pictures."""
        videos = [m for m in self.to_do.values() if m.kind == "video"]
        images = [m for m in self.to_do.values() if m.kind == "image"]
        self._threads = max(1, cores() // max(1, min(workers, len(videos))))
        size = min(PACK_RECORDS, max(1, -(-len(images) // workers)))
        groups = [images[at : at + size] for at in range(0, len(images), size)]
        self.report.total(sum(self._items.values()))
        return [
            *(partial(self.cut_video, medium) for medium in videos),
            *(partial(self.cut_pictures, group) for group in groups),
        ]

    def cut_video(self, medium: Medium) -> None:
        """Store the missing chunks of a video one by one, then what is to be said of the whole."""
        if self.stop.is_set():
            return
        with self._failing(medium), Video(medium.path, threads=self._threads) as video:
            if self.sampling.shots and medium.digest not in self.media:
                self._cut_shots(medium, video)
                return
            plans = self._plans(medium, video)
            known, missing = self._split(medium, video, plans)
            for chunk in video.chunks(missing, self.fits["video"]):
                self._publish([(medium, chunk)])
                known[chunk.index.index] = chunk.index
                # Or two chunks would be in memory while the next one is decoded.
                del chunk
                if self.stop.is_set():
                    return
            tried = {plan.index for plan in missing}
            if all(plan.index in known or plan.index in tried for plan in plans):
                index = video.media_index([known[at] for at in sorted(known)])
                self._finish([(medium, index)])

    def _plans(self, medium: Medium, video: Video) -> list[ChunkPlan]:
        if not self.sampling.shots:
            return video.plan(self.sampling)
        index = MediaIndex.from_json(self.media.meta(medium.digest))
        return video.plan_again(index.chunks)

    def _cut_shots(self, medium: Medium, video: Video) -> None:
        """Store the chunks of a video whose shots are not known yet, or only the first ones."""
        done = [self._known(medium, video, at) for at in self._first_stored(medium)]
        known = {chunk.index: chunk for chunk in done}
        for chunk in video.shots(self.sampling, self.fits["video"], after=done):
            with self._lock:
                self._items[medium.digest] = chunk.index.index + 1 - len(done)
                self.report.total(sum(self._items.values()))
            self._publish([(medium, chunk)])
            known[chunk.index.index] = chunk.index
            del chunk
            if self.stop.is_set():
                return
        self._finish([(medium, video.media_index([known[at] for at in sorted(known)]))])

    def _first_stored(self, medium: Medium) -> Iterator[int]:
        """Indexes of the chunks that are stored, up to the first that is not."""
        return takewhile(lambda at: self._key(medium, at) in self.frames, count())

    def cut_pictures(self, group: Sequence[Medium]) -> None:
        """Store a group of pictures, in packs."""
        chunks: list[tuple[Medium, Chunk]] = []
        done: list[tuple[Medium, MediaIndex]] = []

        def store() -> None:
            self._publish(chunks)
            self._finish(done)
            chunks.clear()
            done.clear()

        for medium in group:
            if self.stop.is_set():
                break
            with self._failing(medium):
                index, chunk = read_picture(medium.path, self.fits["image"])
                chunks.append((medium, chunk))
                done.append((medium, index))
            if sum(chunk.pixels.nbytes for _, chunk in chunks) >= PACK_BYTES:
                store()
        store()

    def _is_missing(self, medium: Medium) -> bool:
        """Whether anything of a medium is not on the shelves yet."""
        if medium.digest not in self.media:
            return True
        wanted = medium.wanted
        if wanted is None:
            index = MediaIndex.from_json(self.media.meta(medium.digest))
            wanted = frozenset(chunk.index for chunk in index.chunks)
        return any(self._key(medium, index) not in self.frames for index in wanted)

    def _split(
        self, medium: Medium, video: Video, plans: Sequence[ChunkPlan]
    ) -> tuple[dict[int, ChunkIndex], list[ChunkPlan]]:
        """What is stored of a video, by index, which the video is told, and what is to be made."""
        known: dict[int, ChunkIndex] = {}
        missing = []
        for plan in plans:
            if self._key(medium, plan.index) in self.frames:
                known[plan.index] = self._known(medium, video, plan.index)
            elif medium.wanted is None or plan.index in medium.wanted:
                missing.append(plan)
        with self._lock:
            self._items[medium.digest] = len(missing)
            self.report.total(sum(self._items.values()))
        return known, missing

    def _known(self, medium: Medium, video: Video, at: int) -> ChunkIndex:
        """A chunk that is stored, which the video is told of."""
        meta = {**self.frames.meta(self._key(medium, at))}
        damage = Damage.from_json(meta.pop("damage"))
        index = ChunkIndex(**{**meta, "times": tuple(meta["times"])})
        video.recall(index, damage)
        return index

    def _key(self, medium: Medium, index: int) -> str:
        return item_key(self.scope, medium.digest, index)

    def _publish(self, chunks: Sequence[tuple[Medium, Chunk]]) -> None:
        records = [
            Record(
                key=self._key(medium, chunk.index.index),
                meta={**asdict(chunk.index), "damage": asdict(chunk.damage)},
                payload=chunk.pixels.reshape(-1).data,
            )
            for medium, chunk in chunks
        ]
        new = set(self.frames.publish(records))
        for record, (medium, chunk) in zip(records, chunks, strict=True):
            if record.key in new:
                length = chunk.index.end - chunk.index.start
                self.report.item(record.key, label=medium.path.name, seconds_of_media=length)

    def _finish(self, media: Sequence[tuple[Medium, MediaIndex]]) -> None:
        self.media.publish([Record(key=m.digest, meta=index.to_json()) for m, index in media])
        # A medium that could not be used before, and now can, has no failure to its name.
        self.failures.drop([m.digest for m, _ in media if m.digest in self.failures])
        for medium, index in media:
            for warning in index.warnings:
                self.report.warning(f"{medium.path}: {warning}")

    @contextlib.contextmanager
    def _failing(self, medium: Medium) -> Iterator[None]:
        """Record what makes a medium unusable, and go on."""
        self.report.begin(medium.digest)
        try:
            with self.watchdog.over():
                yield
        except MediaError as error:
            if out_of_memory(error) and short():
                raise MemoryError(error.message) from error
            if error.kind in PASSING:
                hint = "Check the disk it lies on; the same command then goes on"
                raise EnvironmentFault(error.message, hint=hint) from error
            self._refuse(medium, error)
        except OSError as error:
            raise EnvironmentFault(
                f"{medium.path} could not be read to its end ({error.strerror or error})",
                hint="Check the disk it lies on; the same command then goes on",
            ) from error
        except (PenstockError, MemoryError):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            # One file must not end the run, whatever a library makes of it.
            log.warning("while cutting %s", medium.path, exc_info=True)
            self._refuse(
                medium,
                MediaError(
                    f"{medium.path} cannot be read ({type(error).__name__}: {error})",
                    kind="unexpected",
                    hint="Convert it, for example to H.264 in MP4; the log of the stage says more",
                ),
            )
        self.report.done(medium.digest)

    def _refuse(self, medium: Medium, error: MediaError) -> None:
        """Remembered by content, under whatever name it comes next time."""
        message = error.message.replace(str(medium.path), "the file")
        meta = {"kind": error.kind, "message": message, "hint": error.hint}
        self.failures.publish([Record(key=medium.digest, meta=meta)])
        self.report.failure(medium.digest, error.kind, f"{medium.path.name}: {message}", error.hint)
