"""Holds what a caption run is asked to do, the same for the command line and for Prefect. It knows
nothing of how it is done."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from artifacts.errors import UsageError
from artifacts.schema import Part
from artifacts.tiles import OFF, check_tiles
from artifacts.user_folders import user_cache
from flows.job.formats import KEEP, REPLACE, check_existing, check_formats
from flows.job.speaking_config import SpeakingConfig
from stages.decode.engines import AUTO, OFFERED, choice_for
from stages.decode.structure import check_room
from stages.models.graphs.providers import BACKENDS

DEFAULT_MODEL = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
DEMO_MODEL = "demo"
VIDEO_PROMPT = "Describe this video in detail."
IMAGE_PROMPT = "Describe this image in detail."
INDEX = "penstock-index"
"""Folder of an index where none is named."""
PICTURES_A_BATCH = 32
"""Pictures that `embed` gives the encoder at once, where they fit."""
PRECISIONS = ("native", "auto", "fp32", "bf16", "fp16", "int8", "nf4")
"""The values of `--precision`; `auto` is native, and less when that does not fit. int8 and nf4
quantize the vision half only when its own option says so."""
TORCH = "torch"
VISION_BACKENDS = (TORCH, *BACKENDS, AUTO)
"""The values of `--vision-backend`."""
ABOVE_ZERO = (
    "chunk",
    "fps",
    "frames",
    "max_frames",
    "max_pixels",
    "max_video_pixels",
    "batch_size",
    "max_new_tokens",
    "limit",
    "memory",
)
"""Options that are numbers above 0."""


def default_store() -> str:
    """Return `$PENSTOCK_STORE`, or a folder in the user's cache."""
    return os.environ.get("PENSTOCK_STORE") or str(user_cache())


def check_above_zero(asked: object, names: Iterable[str]) -> None:
    """Raise UsageError when an option of these is a number, and none above 0."""
    for name in names:
        value = getattr(asked, name)
        if value is not None and not 0 < value < float("inf"):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is {value}", hint="Give a number above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionConfig(SpeakingConfig):
    """One caption run. Fields have the names of the command line's options."""

    sources: tuple[str, ...]
    """Files, folders, globs, or lists of them (`.txt`, `.jsonl`, `@list`). A plan of a model alone
    has none."""
    model: str = DEFAULT_MODEL
    """Hub id, folder, or `demo`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; None: its default branch."""
    out: str = "penstock-out"
    """Folder of the captions."""
    store: str = ""
    """Folder or bucket of the store; empty: `$PENSTOCK_STORE` or the user's cache."""
    chunk: float | None = None
    """Seconds a chunk; with `shots`, of the longest one. None: 30, or what the
    checkpoint's processor says that it sees, if that is less."""
    shots: bool = False
    """Cut where the picture changes at once instead of at equal lengths."""
    whole: bool = False
    """Make one chunk of each file, however long; its frames are spread evenly over it."""
    fps: float | None = None
    """Frames a second; None: what the checkpoint's processor states."""
    frames: int | None = None
    """Frames a chunk, evenly; excludes `fps`."""
    max_frames: int | None = None
    """At most so many frames a chunk; None: what the checkpoint's processor states."""
    sampling_as_card: bool = False
    """Take frames and the system turn from what the model's authors state, unless named here."""
    max_pixels: int | None = None
    """At most so many pixels of a picture or a frame, before it is cut in patches; None: what the
    checkpoint's processor states."""
    max_video_pixels: int | None = None
    """At most so many pixels of all frames of a chunk together; None: what the checkpoint's
    processor states."""
    precision: str = "native"
    """Precision of both halves; `native` is the checkpoint's own, `auto` the same as long as it
    fits. `int8` and `nf4` mean the language half alone."""
    vision_precision: str | None = None
    """Precision of the vision half, if not the same."""
    language_precision: str | None = None
    """Precision of the language half, if not the same."""
    vision_backend: str = TORCH
    """What computes the vision half: `torch`, or graphs of the checkpoint by `onnx` or `tensorrt`;
    `auto`: those where they passed and are faster here."""
    adapter: str = ""
    """Folder of a LoRA adapter (PEFT) with which the language half runs; empty: none."""
    memory: int | None = None
    """Bytes that a stage may take, of the GPU or else of the host, above what its imports take;
    None: what is free, but for a reserve."""
    batch_size: int = 8
    """Chunks a batch; encode takes fewer when they hold many frames."""
    engine: str = AUTO
    """What makes the captions: `inflight`, `transformers`, or `auto`, the first where a trial shows
    that it says the same; or `inflight-compiled`."""
    max_new_tokens: int = 256
    """Longest caption in tokens."""
    tiles: str = OFF
    """Squares that pictures are cut in before vectors are made of them: `off`, `auto`, or how many
    fit the short side."""
    prefix: str = ""
    """Put before every caption."""
    suffix: str = ""
    """Put after every caption."""
    recursive: bool = False
    """Look into the folders of a folder."""
    extensions: tuple[str, ...] = ()
    """Only files with these suffixes are taken from folders and globs; empty: all known ones."""
    limit: int | None = None
    """At most so many media files."""
    format: tuple[str, ...] = ()
    """Formats beside jsonl."""
    beside: bool = False
    """Put txt, vtt and srt next to the media file instead of into `out`."""
    overwrite: bool = False
    """The same as `existing` with `replace`."""
    existing: str | None = None
    """What becomes of a file that people wrote or edited: `keep`, `replace`, and of a txt also
    `append` or `prepend`, which put the caption after or before their words. None: `keep`."""
    retry_failed: bool = False
    """Try media again that failed before."""
    keep_frames: bool = False
    """Keep the stored frames after encoding."""
    as_published: bool | None = None
    """Run the model as its authors published it where that is known to be otherwise; False: as the
    installed transformers runs it, or a native as its formulas say. None: as an adapter or an
    export was made, else as published where an older transformers wrote its config.json."""
    trust_remote_code: bool = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""

    def __post_init__(self) -> None:
        if not all(self.sources):
            raise UsageError("a source is empty", hint="Name files or folders; . is this folder")
        if self.fps is not None and self.frames is not None:
            raise UsageError("--fps and --frames exclude each other", hint="Leave one of them out")
        if self.whole and (self.shots or self.chunk is not None):
            other = "--shots" if self.shots else "--chunk"
            raise UsageError(
                f"--whole and {other} exclude each other", hint="Leave one of them out"
            )
        check_above_zero(self, ABOVE_ZERO)
        for name in ("precision", "vision_precision", "language_precision"):
            value = getattr(self, name)
            if value is not None and value not in PRECISIONS:
                raise UsageError(
                    f"--{name.replace('_', '-')} {value} is not known",
                    hint=f"Choose from {', '.join(PRECISIONS)}",
                )
        if self.vision_backend not in VISION_BACKENDS:
            raise UsageError(
                f"--vision-backend {self.vision_backend} is not known",
                hint=f"Choose from {', '.join(VISION_BACKENDS)}",
            )
        if self.engine not in OFFERED:
            raise UsageError(
                f"--engine {self.engine} is not known", hint=f"Choose from {', '.join(OFFERED)}"
            )
        _ = self.speakers
        check_tiles(self.tiles)
        check_formats(self.format, beside=self.beside)
        check_existing(self.existing, self.overwrite, self.format)
        if not self.out:
            raise UsageError("--out is empty", hint="Give a folder, or leave it out: penstock-out")
        if not self.model:
            raise UsageError("--model is empty", hint="Give a folder, a hub id, or demo")
        self.check_speaking()
        if self.schema:
            check_room(self.schema, self.max_new_tokens)

    @property
    def rule(self) -> str:
        """Return what becomes of files that people wrote or edited."""
        return REPLACE if self.overwrite else self.existing or KEEP

    @property
    def replaces(self) -> bool:
        """Return whether files that people wrote or edited are replaced."""
        return self.rule == REPLACE

    def check_sources(self) -> None:
        """Raise UsageError when there is nothing to look at."""
        if not self.sources:
            raise UsageError(
                "no source is given", hint="Name files or folders: penstock caption VIDEOS/"
            )

    @property
    def store_url(self) -> str:
        return self.store or default_store()

    def names(self, part: Part) -> bool:
        """Return whether a precision is asked of this part by its name."""
        return getattr(self, f"{part}_precision", None) is not None

    def precision_of(self, part: Part) -> str:
        """Return the precision asked of a part: by its name, else of all."""
        return getattr(self, f"{part}_precision", None) or self.precision

    def is_free(self, part: Part) -> bool:
        """Return whether a part may be run in whatever fits."""
        return self.precision_of(part) == "auto"

    def prompt_for(self, kind: str) -> str:
        """Return the prompt for a medium of this kind."""
        asked = IMAGE_PROMPT if kind == "image" else VIDEO_PROMPT
        return self.in_length(asked if self.prompt is None else self.prompt)

    @property
    def speakers(self) -> str:
        """Return the choice of what makes the captions. Raises UsageError where the one that is
        asked for cannot."""
        return choice_for(self.engine, beams=self.beams, prompts=len(self.prompts))
