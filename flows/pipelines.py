"""Defines the pipelines: which stages follow one another."""

from collections.abc import Iterable, Mapping

from artifacts.schema import Part
from stages import decode, embed, embed_texts, encode, export, frames, summarize, tune
from stages.process.stage import StageSpec

Pipeline = tuple[StageSpec, ...]
"""Stages in order: the first reads files, each other one records that one before it makes."""
CAPTION: Pipeline = (frames.STAGE, encode.STAGE, decode.STAGE)
"""Captions of files."""
SUMMARY: Pipeline = (*CAPTION, summarize.STAGE)
"""Captions of files, and of each video a summary of its captions."""
REBUILD: Pipeline = CAPTION[:2]
"""Features of files, kept for later."""
EMBED: Pipeline = (frames.STAGE, embed.STAGE)
"""Vectors of pictures, and of the frames of videos."""
LABEL: Pipeline = (*EMBED, embed_texts.STAGE)
"""Vectors of pictures, and of the labels that they are compared with."""
TUNE: Pipeline = (*REBUILD, tune.STAGE)
"""Features of files, and an adapter that is trained on them."""
EXPORT: Pipeline = (*CAPTION, export.CALIBRATE, export.STAGE, export.JUDGE)
"""Captions of files, a checkpoint in few bits, and what its original expects of those."""
EXPORT_GRAPHS: Pipeline = (*CAPTION, export.TRACE, export.JUDGE)
"""Captions of files, a checkpoint with graphs, and what its original expects of those."""
EXPORTED: Pipeline = (*REBUILD, export.COMPARE, export.JUDGE)
"""Features of the same files by that checkpoint, and how far it is from the original."""
EXPORT_VECTORS: Pipeline = (*EMBED, export.STAGE)
"""Vectors of files, and a checkpoint in few bits."""
EXPORT_GRAPHS_VECTORS: Pipeline = (*EMBED, export.TRACE)
"""Vectors of files, and a checkpoint with graphs."""
EXPORTED_VECTORS: Pipeline = (*EMBED, export.COMPARE)
"""Vectors of the same files by that checkpoint, and how far it is from the original."""
PIPELINES = (
    CAPTION,
    SUMMARY,
    REBUILD,
    EMBED,
    LABEL,
    TUNE,
    EXPORT,
    EXPORT_GRAPHS,
    EXPORTED,
    EXPORT_VECTORS,
    EXPORT_GRAPHS_VECTORS,
    EXPORTED_VECTORS,
)
KEPT = (REBUILD, EMBED)
"""What is made of files to be used later, of each sort of model."""
EXPORTS = (EXPORT, EXPORT_VECTORS)
"""Checkpoints in few bits, of each sort of model."""
GRAPHS = (EXPORT_GRAPHS, EXPORT_GRAPHS_VECTORS)
"""Checkpoints with graphs, of each sort of model."""
PURPOSES: Mapping[str, tuple[Pipeline, ...]] = {
    "caption": (CAPTION, SUMMARY),
    "embed": (EMBED,),
    "label": (LABEL,),
    "export": EXPORTS,
    "serve": (LABEL, CAPTION),
}
"""What a plan may be for → the pipelines for that, of each sort of model."""
STAGES: Mapping[str, StageSpec] = {stage.name: stage for line in PIPELINES for stage in line}
"""Every stage by its name."""
LABELS = "labels"
"""What comes of comparing vectors, which no stage does."""


def product_of(pipeline: Iterable[StageSpec]) -> str:
    """Return what is made of files by these stages in the end."""
    stages = tuple(pipeline)
    made = next((s.writes for s in reversed(stages) if s.writes and s.of_media), "")
    return LABELS if stages == LABEL else made


def with_summaries(pipelines: Iterable[Pipeline], *, asked: bool) -> tuple[Pipeline, ...]:
    """Return these pipelines, with summaries where captions are made if those are asked for."""
    return tuple(SUMMARY if asked and each == CAPTION else each for each in pipelines)


def makes_vectors(pipeline: Pipeline) -> bool:
    """Return whether a pipeline is for dual encoders, and not for models that caption."""
    return any(stage.vectors for stage in pipeline)


def parts_of(stages: Iterable[StageSpec]) -> list[Part]:
    """Return the parts of a checkpoint that these stages load."""
    return [stage.part for stage in stages if stage.part]
