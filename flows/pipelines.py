"""Which stages follow one another, and what of that is asked by name; knows no job."""

from collections.abc import Mapping

from artifacts.schema import Half
from stages import decode, encode, frames
from stages.process.stage import Stage

FRAMES, ENCODE, DECODE = frames.STAGE, encode.STAGE, decode.STAGE
CAPTION: tuple[Stage, ...] = (FRAMES, ENCODE, DECODE)
"""What captions files."""
STAGES = tuple(stage.name for stage in CAPTION)
"""Their names, in order."""
HALF_OF: Mapping[str, Half] = {stage.name: stage.half for stage in CAPTION if stage.half}
"""Name of a stage -> the half that it runs."""
