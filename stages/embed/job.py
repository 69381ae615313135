"""The job of the embed stage, as its process is told it; imports no model library."""

from dataclasses import dataclass

from stages.models.encoding.job import EncodingJob


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedJob(EncodingJob):
    """Chunks of whose frames vectors are made, one each."""
