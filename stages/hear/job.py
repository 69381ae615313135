"""The job description of the hear stage. Imports no model library."""

from dataclasses import dataclass

from stages.models.encoding.job import EncodingJob


@dataclass(frozen=True, kw_only=True, slots=True)
class HearJob(EncodingJob):
    """Sounds to encode. Its `frames` are sounds: `frames_namespace`, `frames_store` and the items'
    `frames` name their records."""
