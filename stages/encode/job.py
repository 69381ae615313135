"""The job description of the encode stage. Imports no model library."""

from dataclasses import dataclass

from stages.models.encoding.job import EncodingJob


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJob(EncodingJob):
    """Chunks to encode."""

    frames_a_video: int = 0
    """Number of frames that each chunk must have; 0: any number."""
