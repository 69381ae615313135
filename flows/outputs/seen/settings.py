"""The settings of a data set as its `dataset.toml` has them, and what a trainer makes of media by
them: the size at which it trains a picture, and the frames that it takes of a video.

The rules are those of the trainers' own sources, which each class names.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

from artifacts.texts.trainer_models import TrainerModel

Size = tuple[int, int]
"""Width and height in pixels."""


class TakenSpan(NamedTuple):
    """A part of a video that is taken."""

    start: float
    end: float
    """In seconds from the beginning of the video."""
    frames: int
    """Number of frames of it."""


def span(first: int, frames: int, rate: float) -> TakenSpan:
    """Return the span of so many frames of a video that is read at `rate`."""
    return TakenSpan(first / rate, (first + frames) / rate, frames)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSettings(ABC):
    """What a trainer makes of the media of one data set."""

    num_repeats: int = 1
    """How often each medium is trained in a pass; 0: never."""

    @property
    def first_line(self) -> bool:
        """Return whether only the first line of a caption is read."""
        return False

    @property
    def fixed_words(self) -> int | None:
        """Return how many parts of a caption, divided by commas, keep their place while the others
        are shuffled; None: all do."""
        return None

    def read_as(self, caption: str) -> str:
        """Return what the trainer makes of a caption before it is tokenized."""
        return caption

    @abstractmethod
    def bucket(self, size: Size, kind: str, frames: int) -> Size | None:
        """Return the size at which media of this size are trained; None: they are left out."""

    @abstractmethod
    def largest(self, kind: str) -> int:
        """Return the pixels of its largest bucket."""

    def spans(self, frames: int, rate: float, model: TrainerModel) -> list[TakenSpan]:
        """Return the seconds that it takes of a video; none: it leaves the video out."""
        return []


SIDE = 1 << 14
"""Largest side of a bucket in pixels, and largest number of frames."""


def _check(name: str, value: float, least: float, most: float = SIDE) -> None:
    """Raise ValueError for a value that a trainer cannot use."""
    if not least <= value <= most:  # also for NaN
        raise ValueError(f"{name} is {value:g}, not from {least:g} to {most:g}")


def _check_sides(name: str, resolution: int | list[int], most: int = 2) -> None:
    sides_of = resolution if isinstance(resolution, list) else [resolution]
    if not 1 <= len(sides_of) <= most:
        raise ValueError(f"{name} has {len(sides_of)} numbers")
    for side in sides_of:
        _check(name, side, 16)


def nearest(shapes: dict[Size, float], shape: float) -> Size:
    """Return the size whose shape is nearest, the first one if several are."""
    return min(shapes, key=lambda size: abs(shapes[size] - shape))


def area(sizes: dict[Size, float]) -> int:
    """Return the pixels of the largest size."""
    return max(width * height for width, height in sizes)


def sides(resolution: int | list[int]) -> Size:
    """Return width and height of a `resolution`, which one number states for both."""
    of = resolution if isinstance(resolution, list) else [resolution]
    return of[0], of[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class KohyaSettings(TrainerSettings):
    """Source: `BucketManager` and `make_bucket_resolutions` in sd-scripts `library/train_util.py`
    and `model_util.py`."""

    resolution: int | list[int] = 512
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    shuffle_caption: bool = False
    keep_tokens: int = 0
    metadata_file: str = ""
    enable_wildcard: bool = False
    caption_prefix: str = ""
    caption_suffix: str = ""

    def __post_init__(self) -> None:
        _check_sides("resolution", self.resolution)
        _check("bucket_reso_steps", self.bucket_reso_steps, 1, 1024)
        if self.enable_bucket:
            _check("min_bucket_reso", self.min_bucket_reso, 1, min(sides(self.resolution)))
            _check("max_bucket_reso", self.max_bucket_reso, max(sides(self.resolution)))

    @property
    def first_line(self) -> bool:
        return not self.enable_wildcard

    def read_as(self, caption: str) -> str:
        line = caption if self.enable_wildcard else caption.partition("\n")[0]
        return " ".join(filter(None, (self.caption_prefix, line, self.caption_suffix)))

    @property
    def fixed_words(self) -> int | None:
        return self.keep_tokens if self.shuffle_caption else None

    def bucket(self, size: Size, kind: str, frames: int) -> Size | None:
        width, height = size
        side, other = sides(self.resolution)
        if self.enable_bucket and self.bucket_no_upscale:
            most, step = side * other, self.bucket_reso_steps
            if width * height > most:
                width, height = self._made_smaller(width, height, most)
            return width // step * step, height // step * step
        shapes = self._shapes()
        return size if size in shapes else nearest(shapes, width / height)

    def _made_smaller(self, width: int, height: int, most: int) -> Size:
        """Return the size to which an image is scaled that is never enlarged: the side that, in
        whole steps, keeps its shape better, and the other one by its shape."""
        shape = width / height
        exact = math.sqrt(most * shape)
        by_width, by_height = self._steps(exact), self._steps(most / exact)
        of_width = by_width / max(1, self._steps(by_width / shape))
        of_height = self._steps(by_height * shape) / max(1, by_height)
        if abs(of_width - shape) < abs(of_height - shape):
            return by_width, int(by_width / shape + 0.5)
        return int(by_height * shape + 0.5), by_height

    def _steps(self, exact: float) -> int:
        return int(exact + 0.5) // self.bucket_reso_steps * self.bucket_reso_steps

    def largest(self, kind: str) -> int:
        return area(self._shapes())

    def _shapes(self) -> dict[Size, float]:
        """Return size → shape of the buckets."""
        width, height = sides(self.resolution)
        if not self.enable_bucket:
            return {(width, height): width / height}
        step, most = self.bucket_reso_steps, width * height
        square = int(math.sqrt(most) // step) * step
        sizes = {(square, square)}
        for side in range(self.min_bucket_reso, self.max_bucket_reso + 1, step):
            other = min(self.max_bucket_reso, most // side // step * step)
            if other >= self.min_bucket_reso:
                sizes |= {(side, other), (other, side)}
        return {(w, h): w / h for w, h in sorted(sizes)}


EXTRACTIONS = ("head", "chunk", "slide", "uniform", "full")
"""Values of musubi-tuner's `frame_extraction`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MusubiSettings(TrainerSettings):
    """Source: `BucketSelector` in musubi-tuner `src/musubi_tuner/dataset/bucket.py`, `VideoDataset`
    in its `image_video_dataset.py`, and `load_video` in its `media_utils.py`."""

    resolution: int | list[int] = field(default_factory=lambda: [960, 544])
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    image_jsonl_file: str = ""
    video_jsonl_file: str = ""
    source_fps: float = 0.0
    target_frames: list[int] = field(default_factory=lambda: [1])
    frame_extraction: str = "head"
    frame_stride: int = 1
    frame_sample: int = 1
    max_frames: int = 129

    STEP = 16

    def __post_init__(self) -> None:
        _check_sides("resolution", self.resolution)
        if not self.target_frames or self.frame_extraction not in EXTRACTIONS:
            ways = ", ".join(EXTRACTIONS)
            raise ValueError(f"target_frames is empty, or frame_extraction is none of {ways}")
        _check("source_fps", self.source_fps, 0, 1000)
        for name in ("frame_stride", "frame_sample", "max_frames"):
            _check(name, getattr(self, name), 1)
        for count in self.target_frames:
            _check("target_frames", count, 1)

    def bucket(self, size: Size, kind: str, frames: int) -> Size | None:
        width, height = size
        most = math.prod(sides(self.resolution))
        if kind == "image" and self.bucket_no_upscale and width * height <= most:
            return width - width % self.STEP, height - height % self.STEP
        return nearest(self._shapes(kind), width / height)

    def largest(self, kind: str) -> int:
        return area(self._shapes(kind))

    def _shapes(self, kind: str) -> dict[Size, float]:
        """Return size → shape of the buckets. Those of videos are on in any case."""
        width, height = sides(self.resolution)
        if kind == "image" and not self.enable_bucket:
            return {(width, height): width / height}
        square, step = int(math.sqrt(width * height)), self.STEP
        first, last = square // 2 // step * step, square + step
        sizes = [(a, width * height // a // step * step) for a in range(first, last, step)]
        return {(w, h): w / h for w, h in sorted({*sizes, *((h, w) for w, h in sizes)})}

    def spans(self, frames: int, rate: float, model: TrainerModel) -> list[TakenSpan]:
        share = min(1.0, model.fps / self.source_fps) if self.source_fps and model.fps else 1.0
        loaded, rate = int((frames - 1) * share) + 1, rate * share
        if self.frame_extraction == "full":
            return [span(0, _fitting(min(loaded, self.max_frames), model), rate)]
        spans = list[TakenSpan]()
        for count in sorted({_fitting(count, model) for count in self.target_frames}):
            if count <= loaded:
                spans += [span(first, count, rate) for first in self._starts(loaded, count)]
        return spans

    def _starts(self, loaded: int, count: int) -> list[int]:
        """Return the first frames of the parts of `count` frames that are taken."""
        last, parts = loaded - count, self.frame_sample
        if self.frame_extraction == "chunk":
            return [*range(0, last + 1, count)]
        if self.frame_extraction == "slide":
            return [*range(0, last + 1, self.frame_stride)]
        if self.frame_extraction == "uniform":
            return [int(last * at / max(1, parts - 1)) for at in range(parts)]
        return [0]


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionPipeSettings(TrainerSettings):
    """Source: `DirectoryDataset` in diffusion-pipe `utils/dataset.py`."""

    path: str = ""
    resolutions: list[int] = field(default_factory=lambda: [512])
    enable_ar_bucket: bool = False
    ar_buckets: list[float] = field(default_factory=list)
    min_ar: float = 0.5
    max_ar: float = 2.0
    num_ar_buckets: int = 1
    frame_buckets: list[int] = field(default_factory=lambda: [1])
    size_buckets: list[tuple[int, int, int]] = field(default_factory=list)
    """Width, height and frames of each; they stand for all that is above."""
    caption_prefix: str = ""

    STEP = 16

    def __post_init__(self) -> None:
        for width, height, count in self.size_buckets:
            _check_sides("size_buckets", [width, height])
            _check("size_buckets", count, 1)
        _check_sides("resolutions", self.resolutions, 16)
        _check("num_ar_buckets", self.num_ar_buckets, 1, 1000)
        _check("min_ar", self.min_ar, 0.01, 100)
        _check("max_ar", self.max_ar, self.min_ar, 100)
        for shape in self.ar_buckets:
            _check("ar_buckets", shape, 0.01, 100)
        for count in self.frame_buckets:
            _check("frame_buckets", count, 1)

    def read_as(self, caption: str) -> str:
        return self.caption_prefix + caption

    def bucket(self, size: Size, kind: str, frames: int) -> Size | None:
        return nearest(self._shapes(), math.log(size[0] / size[1]))

    def largest(self, kind: str) -> int:
        return area(self._shapes())

    def _shapes(self) -> dict[Size, float]:
        """Return size → logarithm of the shape of the buckets of its largest resolution: each
        medium is trained at all of them."""
        if self.size_buckets:
            return {(w, h): math.log(w / h) for w, h, _ in self.size_buckets}
        side, shapes = max(self.resolutions), [1.0]
        if self.enable_ar_bucket:
            first, steps = math.log(self.min_ar), max(1, self.num_ar_buckets - 1)
            step = (math.log(self.max_ar) - first) / steps
            spread = [math.exp(first + at * step) for at in range(self.num_ar_buckets)]
            shapes = self.ar_buckets or spread
        return {
            (self._side(side * math.sqrt(s)), self._side(side / math.sqrt(s))): math.log(s)
            for s in shapes
        }

    def _side(self, exact: float) -> int:
        return max(self.STEP, round(exact / self.STEP) * self.STEP)

    def spans(self, frames: int, rate: float, model: TrainerModel) -> list[TakenSpan]:
        counted = int(frames * model.fps / rate) if model.fps else frames
        counts = [count for *_, count in self.size_buckets] or self.frame_buckets
        taken = max((count for count in counts if count <= counted), default=0)
        return [span(0, taken, model.fps or rate)] if taken > 1 else []


@dataclass(frozen=True, kw_only=True, slots=True)
class LtxSettings(TrainerSettings):
    """Source: `_select_bucket` in ltx-trainer `scripts/process_videos.py`. No file of the data set
    states the buckets: they are given to that script."""

    buckets: tuple[tuple[int, int, int], ...]
    """Width, height and frames of each."""

    def bucket(self, size: Size, kind: str, frames: int) -> Size | None:
        fitting = [b for b in self.buckets if b[2] <= frames or kind == "image"]
        shape = math.log(size[0] / size[1])
        if not fitting:
            return None
        width, height, _ = min(
            fitting, key=lambda b: (abs(shape - math.log(b[0] / b[1])), -b[2], -b[0] * b[1])
        )
        return width, height

    def largest(self, kind: str) -> int:
        return max(width * height for width, height, _ in self.buckets)

    def spans(self, frames: int, rate: float, model: TrainerModel) -> list[TakenSpan]:
        taken = max((count for *_, count in self.buckets if count <= frames), default=0)
        return [span(0, taken, rate)] if taken else []


def _fitting(count: int, model: TrainerModel) -> int:
    """Return the number of frames that a model takes of so many."""
    return (max(1, count) - 1) // model.step * model.step + 1
