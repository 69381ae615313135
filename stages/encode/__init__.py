"""Turns frames into features. Loads only the vision half."""

from stages.encode.job import EncodeJob
from stages.process.job import StageSpec

OUTPUT_VERSION = 3
"""Increased when this stage's output changes for the same inputs; part of every later cache key."""
STAGE = StageSpec(
    name="encode",
    reads=("frames",),
    writes="features",
    part="vision",
    job=EncodeJob,
    can_reject_items=True,
    fans_out=True,
    deletes_inputs=True,
    output_version=OUTPUT_VERSION,
    entry="stages.encode.run:run",
    verb="encoding",
)
