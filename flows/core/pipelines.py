"""Defines the pipelines: which stages follow one another."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain

from artifacts.schema import Part
from flows.core.commands import declarations
from stages import (
    ask,
    decode,
    embed,
    embed_texts,
    encode,
    frames,
    hear,
    sift,
    sound,
    summarize,
    tag,
)
from stages.process.stage_spec import StageSpec

Pipeline = tuple[StageSpec, ...]
"""Stages in order. The first reads files; each other one reads records that an earlier one made."""
CAPTION: Pipeline = (frames.STAGE, encode.STAGE, decode.STAGE)
"""Captions of files."""
ASK: Pipeline = (frames.STAGE, ask.STAGE)
"""Captions of files by a model that a server runs."""
SUMMARY: Pipeline = (*CAPTION, summarize.STAGE)
"""Captions of files, and a summary of each video's captions."""
HEARING: Pipeline = (sound.STAGE, hear.STAGE)
"""Features of what is heard in files, whose chunks the frames stage found before."""
SOUND_KINDS = frozenset(stage.writes for stage in HEARING)
"""Kinds of records that hold what is heard in a chunk."""
REBUILD: Pipeline = CAPTION[:2]
"""Features of files, stored for later use."""
EMBED: Pipeline = (frames.STAGE, embed.STAGE)
"""Vectors of images and of video frames."""
LABEL: Pipeline = (*EMBED, embed_texts.STAGE)
"""Vectors of images, and of the labels to compare them with."""
TAG: Pipeline = (frames.STAGE, tag.STAGE)
"""Probabilities of tags, by a tagger that the user declared."""
SIFT: Pipeline = (sift.STAGE,)
"""Marks of files. Its records do not depend on a model, and it has no job as the others have."""
PIPELINES = (CAPTION, ASK, SUMMARY, REBUILD, EMBED, LABEL, TAG, HEARING, SIFT)
"""Pipelines that several commands run, and that of `sift`. Others are declared by their command."""
KEPT = (REBUILD, EMBED)
"""Pipelines whose records are kept for later use, one per sort of model."""
THUMBNAILS = "thumbnails"
"""Kind of the thumbnails that the studio keeps in the store."""
LARGE = frozenset(
    (THUMBNAILS, *(stage.writes for pipeline in (*KEPT, HEARING) for stage in pipeline))
)
"""Kinds of records that take nearly all the space of a store. They can be made again."""


class _Stages(Mapping[str, StageSpec]):
    """The stages by name. Those that a command declares are imported when one is looked up."""

    @cached_property
    def _by_name(self) -> Mapping[str, StageSpec]:
        of_commands = (declaration.pipelines for declaration in declarations())
        pipelines = chain(PIPELINES, *of_commands)
        return {stage.name: stage for pipeline in pipelines for stage in pipeline}

    def __getitem__(self, name: str) -> StageSpec:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


STAGES: Mapping[str, StageSpec] = _Stages()
"""Every stage by its name."""
LABELS = "labels"
"""Product of the label pipelines. No stage makes it; labels result from comparing vectors, or
probabilities with thresholds."""


def purposes() -> dict[str, tuple[Pipeline, ...]]:
    """Return the purposes of a plan, and the pipelines of each, one per sort of model."""
    planned = {"caption": (CAPTION, SUMMARY), "embed": (EMBED,), "label": (LABEL,)}
    for declaration in declarations():
        planned |= declaration.planned
    return {**planned, "serve": (LABEL, CAPTION)}


def product_of(pipeline: Iterable[StageSpec]) -> str:
    """Return the record kind that these stages make from files in the end."""
    stages = tuple(pipeline)
    kind = next((s.writes for s in reversed(stages) if s.writes and s.of_media), "")
    return LABELS if stages in (LABEL, TAG) else kind


def with_extras(pipelines: Iterable[Pipeline], *, summary: bool) -> tuple[Pipeline, ...]:
    """Return these pipelines; with `summary`, those that make captions also make summaries."""
    product = SUMMARY if summary else CAPTION
    return tuple(product if pipeline == CAPTION else pipeline for pipeline in pipelines)


def with_hearing(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline that makes captions, or features for them, of what is heard as well."""
    if pipeline[: len(REBUILD)] != REBUILD:
        return pipeline
    cut, encoded, *more = pipeline
    return (cut, sound.STAGE, encoded, hear.STAGE, *more)


def without_hearing(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline without the stages that process sound."""
    return tuple(stage for stage in pipeline if stage not in HEARING)


def makes_vectors(pipeline: Pipeline) -> bool:
    """Return whether a pipeline is for dual encoders instead of captioning models."""
    return any(stage.vectors for stage in pipeline)


def needs_weights(pipelines: Iterable[Pipeline]) -> bool:
    """Return whether all of these pipelines train a model, or write its weights in another form."""
    every = [any(stage.needs_weights for stage in pipeline) for pipeline in pipelines]
    return bool(every) and all(every)


def encoder_of(pipeline: Pipeline) -> StageSpec:
    """Return the stage of a pipeline that reads its frames."""
    cut = pipeline[0].writes
    return next(stage for stage in pipeline if cut in stage.reads)


def parts_of(stages: Iterable[StageSpec]) -> list[Part]:
    """Return the model parts that these stages load."""
    return [stage.part for stage in stages if stage.part]
