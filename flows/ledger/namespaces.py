"""Computes the cache namespaces of every variant: digests of everything that determines a stage's
output.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from artifacts.keys import digest_of
from artifacts.schema import SHRINKING, FrameFit, Part, Sampling
from artifacts.tiles import OFF
from flows.checkpoint.context import FrameBound
from flows.checkpoint.models import Model
from flows.checkpoint.precision import PartSettings
from flows.checkpoint.sampling import frame_bound
from flows.options.commands import RunOptions
from flows.options.media import VectorSamplingOptions
from flows.options.text import EngineOptions
from flows.pipelines import Pipeline
from stages.decode.generation import SamplingParams
from stages.process.stage import StageSpec

LARGEST_LIMIT = 2048
"""Longest limit, in tokens, whose captions are looked for when another limit is asked for: to try
them all takes 10 ms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One variant: for each kind of record, the digest of everything except the chunk that
    determines its bytes."""

    of: Mapping[str, str]
    """Kind of records → digest, in the order in which they are made."""
    prompted: frozenset[str] = frozenset()
    """The kinds that are made of the prompt too, so that another prompt has others."""
    precision: dict[str, str] = field(default_factory=dict)
    """Part → its precision, for people."""
    limit: int = 0
    """Most tokens of a caption."""
    fit_image: FrameFit = field(default_factory=FrameFit)
    """The size at which pictures are seen."""
    tiles: str = OFF
    """Squares that pictures are cut in."""
    frames_a_video: int = 0
    """Number of frames that its model takes of each chunk; 0: any."""
    bound: FrameBound | None = None
    """The most frames that are shown of a chunk, where that depends on their size; None: all."""
    engine: str = ""
    """Name of what makes the captions; empty where none are made."""

    def __getitem__(self, kind: str) -> str:
        return self.of[kind]

    def same_but_engine(self, other: "Variant") -> bool:
        """Return whether both answer one question: what they are of differs in the engine alone."""
        return replace(self, of={}, engine="") == replace(other, of={}, engine="")


def variants_of(
    config: RunOptions, model: Model, sampling: Sampling, pipeline: Pipeline, stored: Set[str]
) -> list[Variant]:
    """Return the variants of every choice of the parts' settings, the best first. Each stands
    before those of its last records among the `stored` that have another limit."""
    parts = [stage.part for stage in pipeline if stage.part]
    found = []
    for chosen in product(*(model.settings[part] for part in parts)):
        for engines in product(*(each.engines for each in chosen)):
            by = [replace(s, engine=e) for s, e in zip(chosen, engines, strict=True)]
            settings = dict(zip(parts, by, strict=True))
            namespaces = namespaces_of(config, model, sampling, pipeline, settings)
            found.append(namespaces)
            if SamplingParams.of(config).is_prefix_stable:
                said = _said(config, model)
                found += _other_limits(namespaces, pipeline[-1], model, settings, stored, said)
    return found


def namespaces_of(
    config: RunOptions,
    model: Model,
    sampling: Sampling,
    pipeline: Pipeline,
    settings: Mapping[Part, PartSettings],
) -> Variant:
    """Return the digests of what decides each stage's bytes. A stage's OUTPUT_VERSION rises when
    its own output changes."""
    vectors = VectorSamplingOptions.of(config)
    engine_options = EngineOptions.of(config)
    fits: dict[str, Any] = {kind: model.fit(kind).long_edges for kind in ("video", "image")}
    if model.fit("image").shrinks:
        fits["shrunk"] = SHRINKING
    of: dict[str, str] = {}
    for stage in pipeline:
        by = [of[stage.reads], *_decides(stage, model, settings)] if stage.reads else []
        limit = (
            [engine_options.max_new_tokens, *_said(config, model)] if stage.uses_token_limit else []
        )
        if stage.part and model.profile.prompted and not stage.uses_token_limit:
            limit = list(model.profile.turn_words(system=False))
        cut = (
            [vectors.tiles, model.fit("image").edge]
            if stage.supports_tiles and vectors.tiles != OFF
            else []
        )
        of[stage.writes] = _namespace(
            stage, [*by, *limit, *cut] if by else [sampling.decides, fits]
        )
    of_prompts = {s.writes for s in pipeline if s.prompted or (model.profile.prompted and s.part)}
    return Variant(
        of=of,
        prompted=frozenset(of_prompts),
        precision={part: chosen.label for part, chosen in settings.items()},
        limit=engine_options.max_new_tokens,
        fit_image=model.fit("image"),
        tiles=vectors.tiles,
        frames_a_video=model.profile.frames_a_video,
        bound=frame_bound(model.profile, config),
        engine="".join(chosen.engine for chosen in settings.values()),
    )


def namespace_aside(stage: StageSpec, model: Model, settings: PartSettings) -> str:
    """Return the digest of what decides the bytes of a stage that is run once, in these settings.
    Whatever makes captions has no part in it."""
    decides = replace(settings, engine="").decides
    return _namespace(stage, [model.digests[stage.part], *decides] if stage.part else [])


def _said(config: RunOptions, model: Model) -> list[Any]:
    """Return what decides the words of a caption besides their number, which none of it does as
    by default."""
    params = SamplingParams.of(config)
    turns = model.profile.turn_words(system=bool(params.system))
    return [*params.words, *turns]


def _decides(stage: StageSpec, model: Model, settings: Mapping[Part, PartSettings]) -> list[Any]:
    if not stage.part:
        return []
    limit: list[str] = []
    if stage.part == "vision":
        most, video = model.profile.max_pixels, model.profile.max_video_pixels
        limit = [f"{most} pixels"] * bool(most) + [f"{video} pixels a video"] * bool(video)
    return [model.digests[stage.part], *settings[stage.part].decides, *limit]


def _namespace(stage: StageSpec, by: Sequence[Any]) -> str:
    return digest_of([stage.writes, stage.output_version, *by])


def _other_limits(
    namespaces: Variant,
    stage: StageSpec,
    model: Model,
    settings: Mapping[Part, PartSettings],
    stored: Set[str],
    said: Sequence[Any],
) -> Iterator[Variant]:
    """Yield the stored variants of other limits, of which the words are chosen as `said`. A digest
    cannot be turned back, so every limit that may have been asked for is tried."""
    if not stage.uses_token_limit or not stored - {namespaces[stage.writes]}:
        return
    by = [namespaces[stage.reads], *_decides(stage, model, settings)]
    for limit in range(1, LARGEST_LIMIT + 1):
        digest = _namespace(stage, [*by, limit, *said])
        if limit != namespaces.limit and digest in stored:
            yield replace(namespaces, of={**namespaces.of, stage.writes: digest}, limit=limit)
