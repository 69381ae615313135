"""The fields of every job that encodes frames. Imports no model library."""

from dataclasses import dataclass
from typing import NamedTuple

from stages.models.half_job import HalfJob


class EncodeItem(NamedTuple):
    """A chunk to encode."""

    key: str
    """Key of what is made of it."""
    frames: str
    """Key of its frames."""
    kind: str
    """`video` or `image`."""
    prompt: str = ""
    """Prompt of the chunk, where the encoder reads it."""
    shown: int = 0
    """How many of its frames the encoder sees; 0: all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingJob:
    """Chunks to encode with the same settings."""

    half: HalfJob
    store: str
    frames_namespace: str
    namespace: str
    """Namespace of what is made of them."""
    batches: list[list[EncodeItem]]
    live: str = ""
    """Pipe of batches to be encoded as they are told; empty: those of `batches`."""
    frames_store: str = ""
    """Store of the frames, where that is another."""
    block: int = 0
    """Chunks that go through each layer before the next is read; 0: the half is there whole."""
