"""Says which stages follow one another; knows no job."""

from collections.abc import Mapping

from stages import decode, embed, encode, frames
from stages.process.stage import Stage

Pipeline = tuple[Stage, ...]
"""Stages in order: the first reads files, each other one records that one before it makes."""
CAPTION: Pipeline = (frames.STAGE, encode.STAGE, decode.STAGE)
"""Captions of files."""
REBUILD: Pipeline = CAPTION[:2]
"""Features of files, kept for later."""
EMBED: Pipeline = (frames.STAGE, embed.STAGE)
"""Vectors of pictures, and of the frames of videos."""
PIPELINES = (CAPTION, REBUILD, EMBED)
STAGES: Mapping[str, Stage] = {stage.name: stage for line in PIPELINES for stage in line}
"""Every stage by its name."""
