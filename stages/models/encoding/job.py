"""Says what every job that encodes frames is told; imports no model library."""

from dataclasses import dataclass

from stages.models.half_job import HalfJob


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingJob(HalfJob):
    """Chunks to be encoded, all of them in one way."""

    store: str
    frames_namespace: str
    namespace: str
    """Namespace of what is made of them."""
    batches: list[list[dict[str, str]]]
    """`key`, `frames` (its key), `kind` and, where the encoder reads it, `prompt` of each chunk."""
    live: str = ""
    """Pipe of batches to be encoded as they are told; empty: those of `batches`."""
    frames_store: str = ""
    """Store of the frames, where that is another."""
    block: int = 0
    """Chunks that go through each layer before the next is read; 0: the half is there whole."""
