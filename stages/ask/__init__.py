"""Asks a server for captions of frames. Loads no model."""

from stages.ask.job import AskJob
from stages.process.stage import StageSpec

OUTPUT_VERSION = 1
"""Raised when what a server is sent changes for the same inputs; part of every caption's key."""
QUALITY = 90
"""JPEG quality of the frames that are sent; part of every caption's key."""
STAGE = StageSpec(
    name="ask",
    reads="frames",
    writes="captions",
    job=AskJob,
    prompted=True,
    uses_token_limit=True,
    can_reject_items=True,
    deletes_inputs=True,
    output_version=OUTPUT_VERSION,
    entry="stages.ask.run:run",
    verb="captioning",
)
