"""Collects what a run needs to know about its checkpoint. Imports no model library."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.errors import UsageError
from artifacts.frame_fit import FrameFit
from artifacts.records.eight_bits import GROUP, packed_bytes
from artifacts.records.keys import DIGESTS, ContentDigests
from artifacts.records.model_files import ModelFiles
from artifacts.records.store import Store
from artifacts.schema import MediaKind, Part, Sampling
from flows.core.checkpoint.adapters import (
    adapter_for,
    adapter_notes,
    as_published_by,
    read_noted_adapter,
    recorded_adapter,
)
from flows.core.checkpoint.frame_room import sampling_of
from flows.core.checkpoint.frame_sampling import requested_sampling
from flows.core.checkpoint.frame_tokens import chunk_frame_tokens, encoder_frames
from flows.core.checkpoint.gguf import gguf_for
from flows.core.checkpoint.graphs import graphs_for
from flows.core.checkpoint.model_digests import ModelDigests, digests_of_parts, with_fetched
from flows.core.checkpoint.precision import (
    BYTES,
    SHORT,
    PartSettings,
    resolve_settings,
    unplanned_note,
    with_adapter,
    with_gguf,
)
from flows.core.checkpoint.profile_loading import (
    Describer,
    custom_code_fields,
    io_errors_as_fault,
    read_profile,
    small_files,
)
from flows.core.checkpoint.served import (
    NOWHERE,
    ServedModel,
    only_captions,
    open_served,
    served_profile,
)
from flows.core.checkpoint.tagger import Tagger, read_tagger, tagger_profile
from flows.core.checkpoint.template_date import template_date
from flows.core.machine.launch import Launcher
from flows.core.options.commands import RunOptions
from flows.core.options.model import DEMO_MODEL, is_served
from flows.core.pipelines import ASK, CAPTION, Pipeline, makes_vectors, parts_of
from stages.models.encoding import FIXED_ROWS
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.quantized import ignored_settings
from stages.models.hub.resolve import find_model, refuse_revision
from stages.models.hub.transfer import Announce
from stages.models.profile import ModelProfile

NO_FEATURES = ("dual", "joint", "served")
"""Routes whose records are vectors of images, pixels, or nothing."""
MIN_TOKENS = 64
"""Smallest useful image, in tokens; a smaller one shows almost nothing."""


def check_pixels(config: RunOptions, profile: ModelProfile) -> None:
    """Check `--max-pixels` and `--max-video-pixels`. Raises UsageError if the model's processor has
    no such limit, or the value is too small."""
    video, model, least = config.groups.video, config.model, profile.least_pixels
    for option, value, min_pixels in (
        ("--max-pixels", video.max_pixels, least),
        ("--max-video-pixels", video.max_video_pixels, least if profile.video_bounds else 0),
    ):
        if value is not None and not min_pixels:
            raise UsageError(
                f"{option}: not supported by {model} (its processor has no pixel limit)",
                hint="Leave it out; a smaller --max-frames also takes less memory",
            )
        if value is not None and value < min_pixels:
            raise UsageError(
                f"{option} {value} is too small (one token of {model} covers {min_pixels} pixels)",
                hint=f"Give {MIN_TOKENS * min_pixels} or more",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A checkpoint as a run uses it."""

    name: str
    """Name as the user gave it."""
    checkpoint: Checkpoint
    profile: ModelProfile
    """Facts from its headers and its processor."""
    digests: Mapping[Part, str]
    """Part → digest of all files that affect its results: configuration, processor, shards."""
    settings: Mapping[Part, tuple[PartSettings, ...]]
    """Part → the settings it may run with, best first."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Name of each weight file → SHA-256 of its content; empty if unknown."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how it is computed."""
    read: bool = True
    """Whether the digests of its weights are known. Without them, no stored record is found."""
    fp16_check: str = ""
    """Digest of the half in fp16, which the embed stage is to check; empty: no check."""
    in_batches: bool = True
    """Whether inputs pass the vision half with the rest of their batch, and not in a fixed number
    of rows (stages/models/encoding/__init__.py)."""
    images_per_row: int = 0
    """Largest number of images of an input that shares a pass of fixed rows with others."""
    files: ModelFiles = field(default_factory=ModelFiles)
    """Stamps of the files when their digests were computed."""
    today: str = ""
    """Date for templates that ask for one, as YYYY-MM-DD; empty: none does."""
    served: ServedModel | None = None
    """The model on its servers; None: this machine loads it."""
    tagger: Tagger | None = None
    """The declaration of a graph that gives probabilities of tags; None: it is a checkpoint."""

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    def shards(self, parts: Iterable[Part]) -> list[str]:
        """Return the names of the files that hold the weights of these parts."""
        return sorted({shard for part in parts for shard in self.profile.parts[part].shards})

    def files_of(self, parts: Iterable[Part]) -> ModelFiles:
        """Return the files of these parts, with weights that were downloaded after the plan was
        made."""
        shards = {self.folder / n: self.weights.get(n, "") for n in self.shards(parts)}
        return with_fetched(self.files, shards)

    def best(self, part: Part) -> PartSettings:
        return self.settings[part][0]

    def of_parts(self, parts: Iterable[Part], *, alone: bool = False) -> "Model":
        """Return the model with settings of these parts only; with `alone`, only the best of
        each."""
        kept = {part: self.settings[part][: 1 if alone else None] for part in parts}
        return replace(self, settings=kept)

    def serving(self, served: ServedModel) -> "Model":
        """Return the model as a server was found to run it."""
        return replace(self, served=served, notes=(served.line, *served.notes))

    def half_digest(self, part: Part, settings: PartSettings) -> str:
        """Return the digest of all that decides what a half computes: its files and settings."""
        return digest_of([self.digests[part], *replace(settings, engine="").key_fields])

    def precision(self) -> dict[str, str]:
        return {part: settings[0].label for part, settings in self.settings.items()}

    def sampling(self, config: RunOptions) -> Sampling:
        """Return the sampling: as requested, else as the checkpoint's processor states, limited by
        the model's context."""
        return sampling_of(self.beside_sound(config), config)

    def beside_sound(self, config: RunOptions) -> ModelProfile:
        """Return the profile with what the sound of a full chunk leaves of the context; the whole
        one if the run uses no sound."""
        tokens = self.sound_tokens(requested_sampling(self.profile, config).chunk_seconds)
        left = max(1, self.profile.context_tokens - tokens)
        limited = tokens and self.profile.context_tokens
        return replace(self.profile, context_tokens=left) if limited else self.profile

    @property
    def hears(self) -> bool:
        """Return whether a run has the audio half: its captions are of what is heard, too."""
        return "audio" in self.settings

    def sound_tokens(self, seconds: float) -> int:
        """Return the prompt tokens of so many seconds of sound; 0 if the run uses none."""
        hearing = self.profile.hearing
        if not (hearing and self.hears and seconds):
            return 0
        return hearing.tokens(seconds)

    def sound_bytes(self, seconds: float) -> int:
        """Return the bytes of so many seconds of sound: one channel of 16 bits."""
        hearing = self.profile.hearing
        return math.ceil(2 * hearing.rate * seconds) if hearing and self.hears else 0

    def heard_bytes(self, seconds: float) -> int:
        """Return the expected bytes of the features of so many seconds of sound, on disk."""
        item_bytes = BYTES.get(self.best("audio").dtype, 4) if self.hears else 0
        numbers = self.profile.feature_width * self.sound_tokens(seconds)
        return math.ceil(item_bytes * numbers * self.share_in(self.features_as, "audio"))

    @property
    def features_as(self) -> str:
        """Return the form in which its features are stored; empty: as computed."""
        return self.settings["vision"][0].features_as if "vision" in self.settings else ""

    def share_in(self, form: str, part: Part = "vision") -> float:
        """Return the bytes of features in a form as a share of those as computed."""
        width, has_features = self.profile.feature_width, self.profile.route not in NO_FEATURES
        if not (form and has_features and part in self.settings) or width < GROUP:
            return 1.0
        return packed_bytes(width) / (width * BYTES.get(self.best(part).dtype, 4))

    def pass_rows(self, images: int) -> int:
        """Return the rows of a pass for an input of so many images; 0: as many as its batch has."""
        if self.in_batches:
            return 0
        return 1 if images > self.images_per_row else FIXED_ROWS

    def fit(self, kind: str) -> FrameFit:
        """Return the size to which the processor scales video frames or images."""
        return self.profile.fit_image if kind == "image" else self.profile.fit_video

    def seen_size(self, kind: MediaKind, stored: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width at which a stored frame is encoded. Video frames are stored
        at that size."""
        return self.fit("image").size(*stored) if kind == "image" else stored

    def feature_bytes(
        self, kind: MediaKind, frames: int, stored: tuple[int, int], parts: int = 1
    ) -> int:
        """Return the expected bytes of the stored features of so many frames that are stored at
        this height and width, each with so many `parts`. For a joint model, these are its
        pixels."""
        restored = self.restored_bytes(kind, frames, stored, parts)
        return math.ceil(restored * self.share_in(self.features_as))

    def restored_bytes(
        self, kind: MediaKind, frames: int, stored: tuple[int, int], parts: int = 1
    ) -> int:
        """Return the bytes of these features in memory, in which they are as computed."""
        profile, size = self.profile, self.seen_size(kind, stored)
        tokens, pixel_bytes = chunk_frame_tokens(profile, kind, frames, size)
        counted: float = encoder_frames(profile, kind, frames) * parts
        if profile.frames_per_video:  # the profile has the tokens of a whole video for two frames
            counted *= 2 / profile.frames_per_video
        if profile.route == "joint":
            return math.ceil(counted * pixel_bytes)
        # Vectors are stored in 32 bit, whatever dtype computed them.
        item_bytes = (
            4 if profile.route in ("dual", "served") else BYTES.get(self.best("vision").dtype, 4)
        )
        width = profile.stored_widths.get(kind, profile.feature_width)
        return math.ceil(counted * tokens * width * item_bytes)


def pipeline_for(model: Model, pipelines: Sequence[Pipeline]) -> Pipeline:
    """Return the first of these pipelines that suits the checkpoint. Raises UsageError."""
    if model.served is not None:
        by_servers = (ASK if pipeline == CAPTION else pipeline for pipeline in pipelines)
        if own := next((pipeline for pipeline in by_servers if not parts_of(pipeline)), None):
            return own
        raise only_captions(model.name)
    dual = model.profile.route == "dual"
    for pipeline in pipelines:
        if all(stage.vectors == dual for stage in pipeline if stage.part):
            return pipeline
    if dual:
        raise UsageError(
            f"{model.name} makes vectors of images and texts, and writes no captions",
            hint=f"Run `penstock embed SOURCES --model {model.name}`, or choose a model that "
            "captions: docs/models.md lists them",
        )
    raise UsageError(
        f"{model.name} writes captions, and makes no vectors that can be compared with texts",
        hint="Choose a model of the CLIP kind (docs/embed.md), or run `penstock caption`",
    )


def _open_served(config: RunOptions, announce: Announce | None) -> Model:
    nothing = Model(
        name=config.model,
        checkpoint=Checkpoint(name=config.model, folder=NOWHERE),
        profile=served_profile(config),
        digests={},
        settings={},
    )
    return nothing.serving(open_served(config, announce))


def _open_tagger(given: str, digests: ContentDigests, *, read_weights: bool) -> Model:
    tagger, files = read_tagger(given), ModelDigests(digests)
    digest, folder = files.of if read_weights else files.known, tagger.graph.parent
    with io_errors_as_fault(tagger.file.name):
        weights = {name: digest(folder / name) for name in tagger.weight_files}
        profile = tagger_profile(tagger)
    settings = PartSettings(
        precision=SHORT[tagger.dtype],
        dtype=tagger.dtype,
        attention="",
        weight_bytes=profile.vision.stored_bytes,
    )
    return Model(
        name=given,
        checkpoint=Checkpoint(name=str(tagger.file), folder=folder),
        profile=profile,
        digests={"vision": digest_of([weights, *tagger.key_fields])},
        settings={"vision": (settings,)},
        weights=weights,
        read=all(weights.values()),
        files=files.files,
        tagger=tagger,
    )


def digests_in(store: Store) -> ContentDigests:
    return ContentDigests(store.local / DIGESTS)


def demo_folder(*, is_dual: bool = False) -> Path:
    """Return the folder of the demo model: the one for captions, or the dual encoder."""
    from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT

    return DUAL_CHECKPOINT if is_dual else CHECKPOINT


def find_checkpoint(
    config: RunOptions, announce: Announce | None = None, *pipelines: Pipeline
) -> Checkpoint:
    """Return the files of the requested checkpoint. For `demo`, it is the one that suits the first
    of `pipelines` (default: captions). `announce` is called for each download; weights are not
    downloaded here. Raises UsageError or EnvironmentFault."""
    if is_served(config.model):
        raise only_captions(config.model)
    if config.model == DEMO_MODEL:
        refuse_revision("the demo model", config.revision)
        is_dual = bool(pipelines) and makes_vectors(pipelines[0])
        return Checkpoint(name=DEMO_MODEL, folder=demo_folder(is_dual=is_dual))
    return find_model(config.model, config.revision, announce)


def open_model(
    config: RunOptions,
    *pipelines: Pipeline,
    store: Store,
    digests: ContentDigests,
    launcher: Launcher,
    device: str,
    announce: Announce | None = None,
    read_weights: bool = True,
) -> Model:
    """Return the requested checkpoint, with `pipelines` as in `find_checkpoint`; its weights need
    not be local. Its profile comes from the store or from a describing process. Without
    `read_weights`, weights without a stored digest are not read, and no stored record of theirs is
    found. Raises UsageError."""
    if is_served(config.model):
        return _open_served(config, announce)
    if tagger := config.groups.tagger.tagger:
        return _open_tagger(tagger, digests, read_weights=read_weights)
    files = ModelDigests(digests)
    adapter = read_noted_adapter(n, files) if (n := config.groups.adapter.adapter) else None
    folder = (checkpoint := find_checkpoint(config, announce, *pipelines)).folder
    with io_errors_as_fault(config.model):
        files.note_folder(checkpoint)
        small = {p.name: files.of_small(p) for p in small_files(checkpoint)}
        today = template_date(store, folder, small, config.groups.date.today)
    as_published = as_published_by(adapter or recorded_adapter(config), folder)
    describer = Describer(
        config=config,
        checkpoint=checkpoint,
        files=files,
        store=store,
        launcher=launcher,
        device=device,
    )
    profile = read_profile(describer, small, as_published, today)
    check_pixels(config, profile)
    digest = files.of if read_weights else files.known
    with io_errors_as_fault(config.model):
        weights = _weight_digests(checkpoint, profile, digest)
        code = custom_code_fields(folder, trusted=config.trust_remote_code)
        graphs = graphs_for(config, folder, profile, digest, weights, device)
        gguf = gguf_for(describer, profile, small, digest, *pipelines)
    settings = resolve_settings(config, profile, device, graphs.uses)
    if gguf is not None:
        settings = {**settings, "language": (with_gguf(config, settings["language"][0], gguf),)}
    if adapter is not None:
        settings = with_adapter(settings, adapter_for(adapter, config, profile, files))
    notes = _notes(config, profile, graphs.note, folder, today=today)
    return Model(
        name=config.model,
        checkpoint=checkpoint,
        profile=profile,
        digests=digests_of_parts(profile, small, weights, code, today),
        settings=settings,
        weights=weights,
        notes=(*notes, *adapter_notes(adapter, checkpoint, weights)),
        read=all(weights.values()),
        files=files.files,
        today=today,
    )


def _weight_digests(
    checkpoint: Checkpoint, profile: ModelProfile, digest: Callable[[Path], str]
) -> dict[str, str]:
    """Return weight file → its digest: the published one, else what `digest` returns."""
    names = sorted({shard for part in profile.parts.values() for shard in part.shards})
    return {name: checkpoint.digest(name) or digest(checkpoint.folder / name) for name in names}


def _notes(
    config: RunOptions, profile: ModelProfile, graphs_note: str, folder: Path, *, today: str
) -> Iterator[str]:
    """Yield what users should know of a checkpoint as they use it."""
    if graphs_note:
        yield graphs_note
    if note := unplanned_note(config, profile):
        yield note
    if config.groups.date.today and not today:
        yield f"--today has no effect: {config.model} writes no date into prompts"
    if note := ignored_settings(folder):
        yield note
