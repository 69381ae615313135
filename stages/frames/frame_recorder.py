"""Publishes the results of the frames stage, and ends a process that does not finish with one file.

If a library does not finish with a file, the process ends. The limit counts processor time, so the
stage waits for a slow disk without limit. The parent process then retries the open files one by
one.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from artifacts.disk.json_records import read_record
from artifacts.disk.stamps import CHANGED, CHANGED_MESSAGE
from artifacts.errors import EnvironmentFault, MediaError, PenstockError
from artifacts.records.keys import item_key
from artifacts.records.packs import Record, RecordSet, record_sets_of
from artifacts.records.store import Store
from artifacts.remote.media_cache import open_local
from artifacts.schema import MediaIndex, values_of
from stages.frames.chunk import Chunk
from stages.frames.job import TRANSIENT_KINDS, UNSTORED_KINDS, FramesItem
from stages.process.events import EventReporter
from stages.process.exit_diagnosis import out_of_memory
from stages.process.memory_limit import memory_was_short

LIMIT_CPU_SECONDS = 300.0
"""CPU time of all threads without a new packet after which decoding counts as stuck. None of 60,000
randomly damaged files took 2 s."""
POLL_SECONDS = 1.0

_steps: dict[int, int] = {}


def step() -> None:
    """Record that this thread made progress: a packet was read."""
    thread = threading.get_ident()
    _steps[thread] = _steps.get(thread, 0) + 1


class Watchdog:
    """Watches every thread that is inside `over`; a context manager."""

    def __init__(self) -> None:
        self._since: dict[int, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    @contextlib.contextmanager
    def over(self) -> Iterator[None]:
        """Watch one file from opening to end."""
        thread = threading.get_ident()
        step()
        with self._lock:
            self._since[thread] = _steps[thread], time.process_time()
        try:
            yield
        finally:
            with self._lock:
                del self._since[thread]

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            now = time.process_time()
            with self._lock:
                for thread, (steps, since) in self._since.items():
                    if _steps[thread] != steps:
                        self._since[thread] = _steps[thread], now
                    elif now - since > LIMIT_CPU_SECONDS:
                        os.kill(os.getpid(), signal.SIGABRT)


log = logging.getLogger(__name__)


class FrameRecorder:
    """The record sets of one cache namespace, and the reports about new records."""

    def __init__(
        self, store: Store, namespace: str, report: EventReporter, watchdog: Watchdog
    ) -> None:
        self.frames, self.media, self.failures = record_sets_of(
            store, *((kind, namespace) for kind in ("frames", "media", "failures"))
        )
        self._namespace = namespace
        self._report = report
        self._watchdog = watchdog
        self._failed_before = self.failures.keys()

    @property
    def all(self) -> tuple[RecordSet, RecordSet, RecordSet]:
        """Return the record sets, that of media first."""
        return self.media, self.frames, self.failures

    def key(self, medium: FramesItem, at: int) -> str:
        return item_key(self._namespace, medium.digest, at)

    def publish(self, chunks: Sequence[tuple[FramesItem, Chunk]]) -> None:
        new = self.store(chunks)
        for medium, chunk in chunks:
            if (key := self.key(medium, chunk.index.index)) in new:
                self._report.answered(key, label=Path(medium.path).name, media=medium.digest)

    def store(self, chunks: Sequence[tuple[FramesItem, Chunk]]) -> set[str]:
        """Store chunks. Return the keys of those that were not stored before."""
        records = [
            Record(
                key=self.key(medium, chunk.index.index),
                meta={**values_of(chunk.index), "damage": values_of(chunk.damage)},
                payload=chunk.pixels.reshape(-1).data,
            )
            for medium, chunk in chunks
        ]
        return set(self.frames.publish(records))

    def finish(self, media: Sequence[tuple[FramesItem, MediaIndex]]) -> None:
        """Store the indexes of finished media, and report their warnings."""
        self.media.publish([Record(key=m.digest, meta=index.to_json()) for m, index in media])
        # Remove the failures of media that can now be used.
        self.failures.drop([m.digest for m, _ in media if m.digest in self.failures])
        for medium, index in media:
            for warning in index.all_warnings:
                self._report.warning(f"{medium.path}: {warning}")

    def missing_digests(self, medium: FramesItem) -> list[str]:
        """Return the medium's digest in a list if anything of it is missing. Return an empty list
        if another run recorded a failure of it meanwhile."""
        failed = medium.digest in self.failures and medium.digest not in self._failed_before
        return [] if failed or not self.is_missing(medium) else [medium.digest]

    def is_missing(self, medium: FramesItem) -> bool:
        if medium.digest not in self.media:
            return True
        indexes = medium.chunk_indexes
        if indexes is None:
            index = read_record(MediaIndex, self.media.meta(medium.digest))
            indexes = [chunk.index for chunk in index.chunks]
        return any(self.key(medium, at) not in self.frames for at in indexes)

    def failing(self, medium: FramesItem) -> contextlib.AbstractContextManager[Path]:
        return failing(medium, self.failures, self._report, self._watchdog)


@contextlib.contextmanager
def failing(
    medium: FramesItem,
    failures: RecordSet,
    report: EventReporter,
    watchdog: Watchdog,
    missing: Callable[[], Sequence[str]] | None = None,
) -> Iterator[Path]:
    """Give the local path of a medium, fetched if it is remote. If it is unusable, record a failure
    of each `missing` key, or of its digest, and continue. A failure of a file that changed
    meanwhile is reported, but not stored."""
    report.begin(medium.digest)
    try:
        # The watchdog does not cover fetching, which has no time limit.
        with media_errors(medium), open_local(Path(medium.path)) as path, watchdog.over():
            yield path
    except MediaError as error:
        # By content digest, independent of the file name, unless it does not depend on the content.
        message = error.message.replace(medium.path, "the file")
        if error.kind == CHANGED:
            message = CHANGED_MESSAGE
        meta = {"kind": error.kind, "message": message, "hint": error.hint}
        keys = missing() if missing else [medium.digest]
        if error.kind not in UNSTORED_KINDS:
            failures.publish([Record(key=key, meta=meta) for key in keys])
        for key in keys:
            report.failure(key, **meta)
    report.done(medium.digest)


@contextlib.contextmanager
def media_errors(medium: FramesItem) -> Iterator[None]:
    """Raise MediaError for every error that one file causes, EnvironmentFault for a disk, and
    MemoryError for a failed allocation."""
    try:
        try:
            yield
        except Exception:
            # Parts of both files may have been read if it was replaced meanwhile.
            with contextlib.suppress(OSError):  # it is missing, which the error already says
                medium.check()
            raise
    except MediaError as error:
        if out_of_memory(error) and memory_was_short():
            raise MemoryError(error.message) from error
        if error.kind in TRANSIENT_KINDS:
            hint = "Check its disk, then run the same command again to resume"
            raise EnvironmentFault(error.message, hint=hint) from error
        raise
    except OSError as error:
        raise EnvironmentFault(
            f"{medium.path} could not be read to its end ({error.strerror or error})",
            hint="Check its disk, then run the same command again to resume",
        ) from error
    except (PenstockError, MemoryError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        # One bad file must not stop the run.
        log.warning("while cutting %s", medium.path, exc_info=True)
        raise MediaError(
            f"{medium.path} cannot be read ({type(error).__name__}: {error})",
            kind="unexpected",
            hint="Convert it, for example to H.264 in MP4; see the log of the stage",
        ) from error
