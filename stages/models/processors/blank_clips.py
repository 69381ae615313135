"""Clips without content, on which processors are tried."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.schema import MediaKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One chunk as read from disk."""

    frames: NDArray[np.uint8]
    """Shape (frames, height, width, 3), RGB."""
    times: tuple[float, ...]
    """Time of each frame in seconds from the chunk's start."""
    seconds: float
    """Length of the chunk in seconds; 0 for an image."""
    kind: MediaKind
    sound: NDArray[np.float32] | None = None
    """Mono samples from -1 to 1 at the processor's rate, shape (samples,); None: no sound."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or not len(self.frames):
            raise ValueError(f"frames of shape {self.frames.shape}, expected (T > 0, H, W, 3)")
        if len(self.times) != len(self.frames):
            raise ValueError(f"{len(self.times)} times for {len(self.frames)} frames")

    def middle(self) -> "Clip":
        at = len(self.frames) // 2
        return replace(self, frames=self.frames[at : at + 1], times=self.times[at : at + 1])

    def outline(self) -> dict[str, Any]:
        """Return all fields but the content of the frames, and the sound."""
        return {
            "shape": list(self.frames.shape[:3]),
            "times": list(self.times),
            "seconds": self.seconds,
            "kind": self.kind,
        }

    @classmethod
    def blank(cls, outline: dict[str, Any]) -> "Clip":
        """Make a clip with this outline and black frames."""
        size, times = outline["shape"][1:], outline["times"]
        return cls.black(size, times, outline["seconds"], outline["kind"])

    @classmethod
    def black(
        cls, size: Sequence[int], times: Sequence[float], seconds: float, kind: MediaKind
    ) -> "Clip":
        """Make a clip with black frames of a height and width."""
        frames = np.zeros((len(times), *size, 3), np.uint8)
        return cls(frames=frames, times=tuple(times), seconds=seconds, kind=kind)


def clip_of(kind: MediaKind, frames: NDArray[np.uint8]) -> Clip:
    """Make a clip of these frames, one per second."""
    times = tuple(float(second) for second in range(len(frames)))
    return Clip(frames=frames, times=times, seconds=float(len(frames)), kind=kind)


def black_clip(kind: MediaKind, count: int, height: int, width: int) -> Clip:
    """Make a clip of `count` black frames, one per second."""
    return clip_of(kind, np.zeros((count, height, width, 3), np.uint8))


def video_metadata(clip: Clip) -> dict[str, Any]:
    """Return the true frame times in the form that processors read.

    Processors compute a frame's time as index / fps, and the sampled rate as fps * indices /
    total. So fps is the rate of the given frames, and each index is a time in steps of it.
    """
    count, times = len(clip.times), [round(time, 6) for time in clip.times]
    step = (clip.times[-1] - clip.times[0]) / (count - 1) if count > 1 else clip.seconds
    # Nine digits of the rate, not of the step: a third of a second has no finite decimal form.
    fps = float(f"{1 / step:.9g}") if step >= 1e-6 else 1.0
    height, width = clip.frames.shape[1:3]
    return {
        "total_num_frames": count,
        "fps": fps,
        "duration": clip.seconds,
        "frames_indices": [_index(time, fps) for time in times],
        "height": height,
        "width": width,
    }


def _index(time: float, fps: float) -> float:
    """Return the index whose quotient by fps is not below `time`: processors round times down."""
    index = time * fps
    while index / fps < time:
        index = float(np.nextafter(index, np.inf))
    return int(index) if index == int(index) else index
