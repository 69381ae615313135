"""Reads the sound of media files as mono samples, cut as the frames are."""

from dataclasses import dataclass
from typing import NamedTuple

from artifacts.disk.stamps import Stamp
from artifacts.records.keys import item_key
from artifacts.schema import ChunkIndex
from stages.frames.job import FramesJob
from stages.process.stage_spec import StageSpec

OUTPUT_VERSION = 1
"""Raised when this stage's output changes for the same inputs; part of every cache key that depends
on it."""
SILENCES = "silences"
"""Kind of the records that name chunks without sound."""


class SoundChunk(NamedTuple):
    """A chunk whose sound is to be stored."""

    key: str
    """Cache key of its record."""
    start: float
    """Start in seconds since the medium's time 0, as the frames stage has cut it."""
    end: float
    """End in seconds."""


class SoundItem(NamedTuple):
    """A video to read."""

    path: str
    digest: str
    """Content digest, 64 hex digits."""
    chunks: list[SoundChunk]
    """Its chunks, ascending."""
    stamp: Stamp | None = None
    """Stamp of the file when its content was digested; None: not checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundJob:
    """Videos to read."""

    store: str
    namespace: str
    """Cache namespace of the sound."""
    rate: int
    """Samples per second."""
    track: int = 0
    """Number of the sound track, from 1; 0: the one that the file marks as default, else its
    first."""
    media: list[SoundItem]
    workers: int
    """Number of files read at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveSoundJob:
    """Requested files whose frames and sound are read."""

    frames: FramesJob
    """Has the pipe of the requests, and the store of both."""
    namespace: str
    """Cache namespace of the sound."""
    rate: int
    """Samples per second."""


def sound_key(namespace: str, digest: str, chunk: ChunkIndex) -> str:
    """Return the key of a record about the sound of a chunk. It does not depend on the frames."""
    return item_key(namespace, digest, chunk.index, chunk.start, chunk.end)


STAGE = StageSpec(
    name="sound",
    writes="sound",
    job=SoundJob,
    can_reject_items=True,
    output_version=OUTPUT_VERSION,
    entry="stages.sound.run:run",
    verb="reading sound",
)
