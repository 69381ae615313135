"""Turns sound into features. Loads only the audio half."""

from stages.models.encoding import EncodingJob
from stages.process.stage_spec import StageSpec

OUTPUT_VERSION = 1
"""Increased when this stage's output changes for the same inputs; part of every later cache key."""
STAGE = StageSpec(
    name="hear",
    reads=("sound",),
    writes="heard",
    part="audio",
    job=EncodingJob,
    can_reject_items=True,
    fans_out=True,
    deletes_inputs=True,
    output_version=OUTPUT_VERSION,
    entry="stages.hear.run:run",
    verb="encoding sound",
)
