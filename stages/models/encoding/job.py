"""The fields of every job that encodes frames. Imports no model library."""

from dataclasses import dataclass, field
from typing import NamedTuple

from artifacts.claims import Share
from stages.models.half_job import HalfJob


class EncodeItem(NamedTuple):
    """A chunk to encode."""

    key: str
    """Key of the resulting record."""
    frames: str
    """Key of its frames, or of its sound."""
    kind: str
    """`video` or `image`."""
    prompt: str = ""
    """Prompt of the chunk, if the encoder reads it."""
    shown: int = 0
    """How many of its frames the encoder sees; 0: all."""
    rows: int = 0
    """Rows of the passes that its inputs take part in (stages/models/encoding/pass_modes.py); 0:
    its batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingJob:
    """Chunks to encode with the same settings. For an audio half, its `frames` are sounds."""

    half: HalfJob
    store: str
    frames_namespace: str
    namespace: str
    """Cache namespace of the results."""
    batches: list[list[EncodeItem]]
    live: str = ""
    """Pipe that delivers batches one by one; empty: encode `batches`."""
    feed: str = ""
    """Pipe that delivers portions of batches while frames are cut, then null; empty: encode
    `batches`."""
    share: Share = field(default_factory=Share)
    """What this process may claim until those on other devices work, too."""
    pass_checks_namespace: str = ""
    """Cache namespace of the trials of passes; empty: the items pass with their batch."""
    windows_namespace: str = ""
    """Cache namespace of the comparisons of windows; empty on a CPU."""
    frames_store: str = ""
    """Store of the frames, if different."""
    block: int = 0
    """Chunks that pass through each layer before the next layer is read; 0: all layers are
    loaded."""
    workers: int = 1
    """Threads that read and prepare chunks. They do not affect the results."""
