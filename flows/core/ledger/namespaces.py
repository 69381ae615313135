"""Computes the cache namespaces of every variant.

A namespace is a digest of everything that determines a stage's output.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import product

from artifacts.digests import digest_of, digests_by_number
from artifacts.disk.json_shapes import Json
from artifacts.frame_fit import FrameFit
from artifacts.records.eight_bits import namespace_in
from artifacts.records.packs import RecordSet
from artifacts.records.store import Store
from artifacts.schema import Part, Sampling, values_of
from artifacts.tiles import OFF
from flows.core.checkpoint.frame_room import FrameBound, frame_bound
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import PartSettings
from flows.core.ledger.prompts import prompt_for
from flows.core.options.commands import RunOptions
from flows.core.pipelines import SOUND_KINDS, Pipeline, parts_of, without_hearing
from stages import hear, sound
from stages.decode.generation import SamplingParams
from stages.models.encoding import BATCHES
from stages.process.stage_spec import StageSpec

LARGEST_LIMIT = 2048
"""Largest token limit whose captions are looked for when another limit is requested. Trying all
limits takes 2 ms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One variant: for each record kind, the digest of everything except the chunk that determines
    its bytes."""

    of: Mapping[str, str]
    """Record kind → digest, in the order in which the kinds are made."""
    prompted: frozenset[str] = frozenset()
    """Record kinds that depend on the prompt too."""
    precision: dict[str, str] = field(default_factory=dict)
    """Part → its precision, for display."""
    limit: int = 0
    """Token limit of a caption."""
    fit_image: FrameFit = field(default_factory=FrameFit)
    """Size at which the model sees images."""
    tiles: str = OFF
    """Tile setting of images."""
    frames_per_video: int = 0
    """Number of frames that the model takes per chunk; 0: any."""
    bound: FrameBound | None = None
    """Frame limit of a chunk if it depends on the frame size; None: no such limit."""
    engine: str = ""
    """Name of the engine that makes the captions; empty without captions."""
    in_batches: bool = True
    """Whether inputs pass the vision half in batches."""
    sends_video: bool = False
    """Whether the frames of a chunk are sent to a server as one video."""
    silent_prompts: Mapping[str, str] = field(default_factory=dict)
    """Default prompt of a run with sound → the one of its chunks without."""

    @property
    def hears(self) -> bool:
        """Return whether its captions are of what is heard, too."""
        return not SOUND_KINDS.isdisjoint(self.of)

    def __getitem__(self, kind: str) -> str:
        return self.of[kind]

    def same_but_engine(self, other: "Variant") -> bool:
        """Return whether the two variants differ at most in the engine, and so answer the same
        question."""
        return self.same_but_rounding(other) and self.in_batches == other.in_batches

    def same_but_rounding(self, other: "Variant") -> bool:
        """Return whether the two variants differ at most in the engine and in how inputs pass the
        vision half, and so in rounding."""
        mine, its = (replace(v, of={}, engine="", in_batches=False) for v in (self, other))
        return mine == its


class Variants(tuple[Variant, ...]):
    """The variants of a run, the best first."""

    __slots__ = ()

    def of_precision(self, precision: Mapping[str, str]) -> Variant:
        return next(variant for variant in self if variant.precision == precision)

    def other_engine(self, own: Variant) -> Variant | None:
        """Return another variant with equivalent captions, or None."""
        return next((v for v in self if v != own and v.same_but_engine(own)), None)

    def unheard(self, own: Variant) -> Variant:
        """Return the variant that makes captions without sound, and otherwise as this one."""
        precision = {p: of for p, of in own.precision.items() if p != hear.STAGE.part}
        wanted = (precision, own.engine)
        return next(v for v in self if not v.hears and (v.precision, v.engine) == wanted)

    def answering(self, own: Variant) -> list[Variant]:
        """Return a variant, then those that differ from it at most in the engine and in how inputs
        pass the vision half. Those that differ only in the engine come first."""
        others = [v for v in self if v != own and v.same_but_rounding(own)]
        return [own, *sorted(others, key=lambda variant: variant.in_batches != own.in_batches)]


def variants_of(
    config: RunOptions, model: Model, sampling: Sampling, pipeline: Pipeline, stored: Set[str]
) -> list[Variant]:
    """Return a variant for every combination of the parts' settings, the best first. An engine
    that cannot run here has one only if its captions are `stored`. Each is followed by its
    `stored` variants with another token limit. With stages for sound, the variants
    without them follow: they are those of the chunks that have none."""
    parts = [stage.part for stage in pipeline if stage.part]
    variants, params = [], config.groups.generation
    for chosen in product(*(model.settings[part] for part in parts)):
        for engines in product(*(choice.engines for choice in chosen)):
            by = [replace(s, engine=e) for s, e in zip(chosen, engines, strict=True)]
            settings = dict(zip(parts, by, strict=True))
            variant = variant_of(config, model, sampling, pipeline, settings)
            may_run = all(s.may_run(engine) for s, engine in zip(chosen, engines, strict=True))
            if may_run or variant[pipeline[-1].writes] in stored:
                variants.append(variant)
            if params.is_prefix_stable:
                variants += _other_limits(variant, pipeline[-1], model, settings, stored, params)
    if (silent := without_hearing(pipeline)) != pipeline:
        both = (model, model.of_parts(parts_of(silent)))
        heard, seen = (prompt_for(m, config, "video") for m in both)
        without = variants_of(config, model, sampling, silent, stored)
        variants += [replace(variant, silent_prompts={heard: seen}) for variant in without]
    return variants


def variant_of(
    config: RunOptions,
    model: Model,
    sampling: Sampling,
    pipeline: Pipeline,
    settings: Mapping[Part, PartSettings],
) -> Variant:
    """Return the variant of one combination of settings: the digest of everything that determines
    each stage's bytes. A stage's OUTPUT_VERSION rises when its output changes."""
    vectors = config.groups.vectors
    engine_options = config.groups.engine
    text_fields = [engine_options.max_new_tokens, *_text_fields(config.groups.generation, model)]
    fits = [values_of(model.fit(kind)) for kind in ("video", "image")]
    of: dict[str, str] = {}
    for stage in pipeline:
        by: list[Json] = [of[kind] for kind in stage.reads if kind in of]
        by += _part_fields(stage, model, settings) if by else []
        limit = text_fields if stage.uses_token_limit else []
        cut: list[Json] = [vectors.tiles, model.fit("image").edge] if stage.supports_tiles else []
        cut += [BATCHES] if stage.part == "vision" and model.in_batches else []
        if stage is sound.STAGE:
            assert model.profile.hearing is not None
            by = [model.profile.hearing.rate, config.groups.sound.sound_track or 0]
            of[stage.writes] = _namespace(stage, by)
            continue
        namespace = _namespace(stage, [*by, *limit, *cut] if by else [sampling.key_fields, fits])
        form = settings[stage.part].features_as if stage.part else ""
        of[stage.writes] = namespace_in(form, namespace)
    profile = model.beside_sound(config) if hear.STAGE in pipeline else model.profile
    of_prompts = {s.writes for s in pipeline if s.prompted or (model.profile.prompted and s.part)}
    return Variant(
        of=of,
        prompted=frozenset(of_prompts),
        precision={part: chosen.label for part, chosen in settings.items()},
        limit=engine_options.max_new_tokens,
        fit_image=model.fit("image"),
        tiles=vectors.tiles,
        frames_per_video=model.profile.frames_per_video,
        bound=frame_bound(profile, config),
        engine="".join(chosen.engine for chosen in settings.values()),
        in_batches=model.in_batches,
        sends_video=model.served is not None and bool(model.served.video),
    )


def _text_fields(params: SamplingParams, model: Model) -> list[Json]:
    """Return what decides a caption besides its limit."""
    blank = model.profile.answer_blank if params.start_with else ""
    return [*params.key_fields, *([blank] if blank else [])]


def one_shot_namespace(stage: StageSpec, model: Model, settings: PartSettings) -> str:
    """Return the cache namespace of a stage that runs once, in these settings. The caption engine
    is no part of it."""
    key_fields = replace(settings, engine="").key_fields
    return _namespace(stage, [model.digests[stage.part], *key_fields] if stage.part else [])


def _part_fields(
    stage: StageSpec, model: Model, settings: Mapping[Part, PartSettings]
) -> list[Json]:
    if not stage.part:
        return model.served.key_fields if model.served else []
    pixels = [model.profile.max_pixels, model.profile.max_video_pixels]
    limit = pixels if stage.part == "vision" else []
    return [model.digests[stage.part], *settings[stage.part].key_fields, *limit]


def _namespace(stage: StageSpec, by: Sequence[Json]) -> str:
    return digest_of([stage.writes, stage.output_version, *by])


def _other_limits(
    variant: Variant,
    stage: StageSpec,
    model: Model,
    settings: Mapping[Part, PartSettings],
    stored: Set[str],
    params: SamplingParams,
) -> Iterator[Variant]:
    """Yield the stored variants of other token limits, with the same `params`. A digest cannot be
    reversed, so every limit that may have been requested is tried."""
    if not stage.uses_token_limit or not stored - {variant[stage.writes]}:
        return
    inputs = [variant[kind] for kind in stage.reads if kind in variant.of]
    by = [*inputs, *_part_fields(stage, model, settings)]
    before = [stage.writes, stage.output_version, *by]
    limits = range(1, LARGEST_LIMIT + 1)
    for limit, digest in digests_by_number(before, limits, _text_fields(params, model)):
        if limit != variant.limit and digest in stored:
            yield replace(variant, of={**variant.of, stage.writes: digest}, limit=limit)


def notes(store: Store) -> RecordSet:
    """Return the notes of a store: namespace → its model and settings."""
    return RecordSet(store, "namespaces", digest_of(["namespaces", 1]))
