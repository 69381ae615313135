"""What a run needs to know of its checkpoint, without ever importing a model library."""

import contextlib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import ContentDigests, digest_of
from artifacts.packs import Record, Shelf
from artifacts.schema import FrameFit, Sampling
from artifacts.store import FolderStore
from flows.config import DEMO_MODEL, CaptionConfig
from flows.launch import Launcher, StageCall, run_to_end
from flows.precision import BYTES, HalfSettings, lighter, settle
from stages.models.card import RECIPE as DESCRIBE_RECIPE
from stages.models.card import ModelCard
from stages.models.hub.checkpoint import SMALL, Checkpoint
from stages.models.hub.resolve import find_model, refuse_revision
from stages.models.hub.transfer import Announce

if TYPE_CHECKING:  # it imports torch
    from stages.models.halves.boundary import Half

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
FPS = 1.0
"""Frames a second where neither the user nor the checkpoint says."""
MAX_FRAMES = 32
"""Frames a chunk at the most where neither the user nor the checkpoint says."""
TEXT_ONLY = ("generation_config", "chat_template", "readme", "license", ".gitattributes")
"""Files whose name begins so say nothing to the vision half: changing them keeps the features."""


class Undescribed(UsageError):
    """A checkpoint that cannot be run: no class captions with it, or its code may not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A checkpoint as a run sees it."""

    name: str
    """As the user gave it."""
    checkpoint: Checkpoint
    """Its files."""
    card: ModelCard
    """What its headers and its processor say."""
    vision_digest: str
    """Of all that decides the features: configuration, processor and the shards of that half."""
    language_digest: str
    """Of all that decides the text besides the features."""
    vision: HalfSettings
    language: HalfSettings
    read: bool = True
    """Whether the digests of its weights are known; else nothing that they made is found."""
    lighter: "Mapping[Half, tuple[HalfSettings, ...]]" = field(default_factory=dict)
    """Of each half, what `auto` may go down to, the best first."""

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    def shards(self, halves: "Iterable[Half]") -> list[str]:
        """Names of the files that hold the weights of these halves."""
        held = {"vision": self.card.vision.shards, "language": self.card.language.shards}
        return sorted({shard for half in halves for shard in held[half]})

    def precision(self) -> dict[str, str]:
        """The best that the run may make things in."""
        return {"vision": self.vision.label, "language": self.language.label}

    def settings(self, half: "Half") -> tuple[HalfSettings, ...]:
        """All that a half may be run in, the best first."""
        first = self.vision if half == "vision" else self.language
        return (first, *self.lighter.get(half, ()))

    def sampling(self, config: CaptionConfig) -> Sampling:
        """What the user asked for, and for the rest what the checkpoint's processor states."""
        if only := 1 if self.one_frame else self.card.frames_a_video:
            return Sampling(
                chunk_seconds=config.chunk, shots=config.shots, frames=only, max_frames=only
            )
        stated = self.card.sampling
        fps, frames = config.fps, config.frames
        if fps is None and frames is None:
            fps = stated.fps
            frames = stated.frames if fps is None else None
        maximum = config.max_frames or stated.max_frames or stated.frames or MAX_FRAMES
        if frames is not None:
            most = config.max_frames or frames
            return Sampling(
                chunk_seconds=config.chunk,
                shots=config.shots,
                frames=min(frames, most),
                max_frames=most,
            )
        return Sampling(
            chunk_seconds=config.chunk,
            shots=config.shots,
            fps=fps or FPS,
            min_frames=min(stated.min_frames or 1, maximum),
            max_frames=maximum,
        )

    @property
    def one_frame(self) -> bool:
        """Whether only one frame of a video's chunk can be shown to it."""
        return self.card.images_a_prompt == 1 and "video" not in self.card.modalities

    def prompt_for(self, config: CaptionConfig, kind: str) -> str:
        """What it is asked about a medium of this kind when the file's own line asks nothing."""
        asked = config.prompt is not None or not self.card.goes_on
        return config.prompt_for(kind) if asked else ""

    def fit(self, kind: str) -> FrameFit:
        """The size at which the processor keeps frames of videos, or images."""
        return self.card.fit_image if kind == "image" else self.card.fit_video

    def feature_bytes(self, kind: str) -> int:
        """Bytes that the features of one frame are expected to take; of a model that cannot be cut,
        its pixels."""
        card = self.card
        if card.route == "joint":
            return card.image_pixel_bytes if kind == "image" else card.frame_pixel_bytes
        tokens = self.card.image_tokens if kind == "image" else self.card.frame_tokens
        return tokens * self.card.feature_width * BYTES.get(self.vision.dtype, 4)


def find_checkpoint(config: CaptionConfig, announce: Announce | None = None) -> Checkpoint:
    """The files of the checkpoint that a run asks for; `announce` is told of what is downloaded for
    that, which is no weights. Raises UsageError or EnvironmentFault."""
    if config.model == DEMO_MODEL:
        from demo import CHECKPOINT

        refuse_revision("the demo model", config.revision)
        return Checkpoint(name=DEMO_MODEL, folder=CHECKPOINT)
    return find_model(config.model, config.revision, announce)


def open_model(
    config: CaptionConfig,
    *,
    store: FolderStore,
    digests: ContentDigests,
    launcher: Launcher,
    device: str,
    announce: Announce | None = None,
    read_weights: bool = True,
) -> Model:
    """The checkpoint that a run asks for, with its card from the store or from a describing
    process; its weights need not be here. Without `read_weights`, those that were never read are
    not read for their digest either: its keys are then of nothing that is stored. Raises
    Undescribed."""
    checkpoint = find_checkpoint(config, announce)
    folder = checkpoint.folder
    with readable(config.model):
        small = {p.name: digests.of(p) for p in small_files(checkpoint)}
    try:
        card = read_card(checkpoint, small, config, store=store, launcher=launcher)
    except UsageError as error:
        raise Undescribed(error.message, hint=error.hint) from error
    digest = digests.of if read_weights else digests.known
    halves = {"vision": card.vision.shards, "language": card.language.shards}
    names = sorted({shard for shards in halves.values() for shard in shards})
    with readable(config.model):
        weights = {s: checkpoint.digest(s) or digest(folder / s) for s in names}
    text = () if card.prompted else TEXT_ONLY
    seen = {n: d for n, d in small.items() if not n.lower().startswith(text)}
    with readable(config.model):
        code = own_code(folder, trusted=config.trust_remote_code)
    return Model(
        name=config.model,
        checkpoint=checkpoint,
        card=card,
        vision_digest=digest_of([seen, {s: weights[s] for s in halves["vision"]}, *code]),
        language_digest=digest_of([small, {s: weights[s] for s in halves["language"]}, *code]),
        **settle(config, card, device),
        read=all(weights.values()),
        lighter=lighter(config, card, device),
    )


def read_card(
    checkpoint: Checkpoint,
    small: Mapping[str, str],
    config: CaptionConfig,
    *,
    store: FolderStore,
    launcher: Launcher,
) -> ModelCard:
    """The checkpoint's card; a child process writes it the first time, because it needs
    transformers. `small` are the digests of all files but the weights."""
    with readable(config.model):
        key = digest_of([small, _stated(checkpoint), config.trust_remote_code])
    shelf = Shelf(store, "cards", digest_of(["cards", DESCRIBE_RECIPE, version("transformers")]))
    if key in shelf:
        return ModelCard.from_json(shelf.meta(key))
    of_hub = checkpoint.commit is not None
    arguments = {
        "model": checkpoint.name if of_hub else str(checkpoint.folder),
        "revision": checkpoint.commit,
        "trust_remote_code": config.trust_remote_code,
    }
    # Beside the store, because a plan has no folder of outputs.
    log = store.root / "logs" / "describe.log"
    call = StageCall(name="describe", arguments=arguments, device="cpu", log=log)
    card: dict[str, Any] = run_to_end(launcher, call).notes["card"]
    shelf.publish([Record(key=key, meta=card)])
    return ModelCard.from_json(card)


def _stated(checkpoint: Checkpoint) -> list[Any]:
    """What can be known of files of weights without reading them: what the hub states of them, or
    their sizes and dates."""
    if checkpoint.weights:
        return [[file.name, file.size, file.digest] for file in checkpoint.weights]
    files = weight_files(checkpoint.folder)
    return [(p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in files]


@contextlib.contextmanager
def readable(model: str) -> Iterator[None]:
    """Turns a file that cannot be read, such as a link that leads nowhere, into an
    EnvironmentFault."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename} of model {model} cannot be read ({error.strerror})",
            hint="Check the folder, or fetch the model again",
        ) from error


def small_files(checkpoint: Checkpoint) -> Iterable[Path]:
    """Everything of a checkpoint but its weights: configuration, tokenizer, processor, template.
    What other programs brought from the hub besides decides nothing."""
    taken = SMALL if checkpoint.commit is not None else ("*",)
    return sorted(
        p
        for p in checkpoint.folder.iterdir()
        if p.is_file()
        and p.suffix.lower() not in WEIGHT_SUFFIXES
        and any(fnmatch.fnmatch(p.name, pattern) for pattern in taken)
    )


def own_code(folder: Path, *, trusted: bool) -> list[str]:
    """What to key of code that a checkpoint names, which may lie in another repository: trusted, it
    is run even where transformers has a class for the model, and gives other bytes."""
    if not trusted:
        return []
    named = any(b'"auto_map"' in path.read_bytes() for path in folder.glob("*config.json"))
    return ["its own code"] if named else []


def weight_files(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in WEIGHT_SUFFIXES)
