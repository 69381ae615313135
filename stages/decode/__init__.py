"""Generates captions from features and a prompt. Loads only the language half."""

from stages.decode.job import DecodeJob
from stages.process.stage import StageSpec

OUTPUT_VERSION = 4
"""Raised when this stage's own output changes for the same inputs; part of every key below it."""
STAGE = StageSpec(
    name="decode",
    reads="features",
    writes="captions",
    part="language",
    job=DecodeJob,
    prompted=True,
    uses_token_limit=True,
    can_reject_items=True,
    output_version=OUTPUT_VERSION,
    entry="stages.decode.run:run",
    verb="captioning",
)
