"""Generates captions from features and a prompt. Loads only the language half."""

from stages.decode.generation import DecodeJob
from stages.process.stage_spec import StageSpec

OUTPUT_VERSION = 5
"""Increased when this stage's output changes for the same inputs; part of every later cache key."""
STAGE = StageSpec(
    name="decode",
    reads=("features", "heard"),
    writes="captions",
    part="language",
    job=DecodeJob,
    prompted=True,
    uses_token_limit=True,
    can_reject_items=True,
    fans_out=True,
    output_version=OUTPUT_VERSION,
    entry="stages.decode.run:run",
    verb="captioning",
    counts="caption",
)
