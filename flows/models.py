"""What a run needs to know of its checkpoint, without ever importing a model library."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import ContentDigests, digest_of
from artifacts.packs import Record, Shelf
from artifacts.schema import FrameFit, Sampling
from artifacts.store import Store
from flows.config import DEMO_MODEL, CaptionConfig
from flows.launch import Launcher, StageCall
from flows.precision import BYTES, HalfSettings, settle
from stages.models.card import RECIPE as DESCRIBE_RECIPE
from stages.models.card import ModelCard
from stages.models.resolve import Announce, resolve_model

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
FPS = 1.0
"""Frames a second where neither the user nor the checkpoint says."""
MAX_FRAMES = 32
"""Frames a chunk at the most where neither the user nor the checkpoint says."""
TEXT_ONLY = ("generation_config", "chat_template", "readme", "license", ".gitattributes")
"""Files whose name begins so say nothing to the vision half: changing them keeps the features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A checkpoint as a run sees it."""

    name: str
    """As the user gave it."""
    folder: Path
    card: ModelCard
    """What its headers and its processor say."""
    vision_digest: str
    """Of all that decides the features: configuration, processor and the shards of that half."""
    language_digest: str
    """Of all that decides the text besides the features."""
    vision: HalfSettings
    language: HalfSettings

    def precision(self) -> dict[str, str]:
        return {"vision": self.vision.precision, "language": self.language.precision}

    def sampling(self, config: CaptionConfig) -> Sampling:
        """What the user asked for, and for the rest what the checkpoint's processor states."""
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

    def fit(self, kind: str) -> FrameFit:
        """The size at which the processor keeps frames of videos, or images."""
        return self.card.fit_image if kind == "image" else self.card.fit_video

    def feature_bytes(self, kind: str) -> int:
        """Bytes that the features of one frame are expected to take."""
        tokens = self.card.image_tokens if kind == "image" else self.card.frame_tokens
        return tokens * self.card.feature_width * BYTES.get(self.vision.dtype, 4)


def model_folder(name: str, announce: Announce | None = None) -> Path:
    """Where a checkpoint lies on this machine, after a download if need be, which `announce` is
    told of. Raises UsageError or EnvironmentFault."""
    if name == DEMO_MODEL:
        from demo import CHECKPOINT

        return CHECKPOINT
    return resolve_model(name, announce=announce)


def open_model(
    config: CaptionConfig,
    *,
    store: Store,
    digests: ContentDigests,
    launcher: Launcher,
    device: str,
    log: Path,
    announce: Announce | None = None,
) -> Model:
    """The checkpoint that a run asks for, with its card from the store or from a describing
    process."""
    folder = model_folder(config.model, announce)
    card = read_card(folder, config, store=store, digests=digests, launcher=launcher, log=log)
    halves = {"vision": card.vision.shards, "language": card.language.shards}
    with readable(config.model):
        small = {p.name: digests.of(p) for p in small_files(folder)}
        weights = {s: digests.of(folder / s) for shards in halves.values() for s in shards}
    seen = {n: d for n, d in small.items() if not n.lower().startswith(TEXT_ONLY)}
    return Model(
        name=config.model,
        folder=folder,
        card=card,
        vision_digest=digest_of([seen, {s: weights[s] for s in halves["vision"]}]),
        language_digest=digest_of([small, {s: weights[s] for s in halves["language"]}]),
        **settle(config, card, device),
    )


def read_card(
    folder: Path,
    config: CaptionConfig,
    *,
    store: Store,
    digests: ContentDigests,
    launcher: Launcher,
    log: Path,
) -> ModelCard:
    """The checkpoint's card; a child process writes it the first time, because it needs
    transformers."""
    if not folder.is_dir():
        raise UsageError(
            f"no model at {folder}", hint="Give a hub id, a checkpoint's folder, or `demo`"
        )
    with readable(config.model):
        stats = [(p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in weight_files(folder)]
        small = {p.name: digests.of(p) for p in small_files(folder)}
    key = digest_of([small, stats, config.trust_remote_code])
    shelf = Shelf(store, "cards", digest_of(["cards", DESCRIBE_RECIPE, version("transformers")]))
    if key in shelf:
        return ModelCard.from_json(shelf.meta(key))
    arguments = {
        "model": str(folder),
        "revision": None,
        "trust_remote_code": config.trust_remote_code,
    }
    call = StageCall(name="describe", arguments=arguments, device="cpu", log=log)
    running = launcher.start(call)
    try:
        card: dict[str, Any] = running.wait().notes["card"]
    except BaseException:
        running.stop()
        raise
    shelf.publish([Record(key=key, meta=card)])
    return ModelCard.from_json(card)


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


def small_files(folder: Path) -> Iterable[Path]:
    """Everything of a checkpoint but its weights: configuration, tokenizer, processor, template."""
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix.lower() not in WEIGHT_SUFFIXES
    )


def weight_files(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in WEIGHT_SUFFIXES)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0))
