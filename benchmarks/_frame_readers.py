"""Who takes frames of a clip: this program, torchcodec, OpenCV, decord and the ffmpeg command;
measures nothing."""

import importlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.schema import FrameFit, Sampling
from stages.frames.video import Video

Frames = NDArray[np.uint8] | list[NDArray[np.uint8]]
"""RGB [frames, height, width, 3], or several of those one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One clip and the frames to take from it."""

    name: str
    path: Path
    sampling: Sampling
    sparse: bool
    """Whether the frames lie so far apart that one would seek to each."""
    seconds: list[float]
    """Presentation times from the first frame."""
    positions: list[int]
    """Which frames those are, counted from 0."""
    wanted: NDArray[np.uint8]
    """The frames as a plain decode gives them, [frames, height, width, 3]."""
    neighbours: list[list[NDArray[np.uint8]]]
    """The frames before and after each, as far as there are any."""


def ours(case: Case) -> Frames:
    with Video(case.path) as video:
        chunks = video.chunks(video.plan(case.sampling), FrameFit())
        return [chunk.pixels for chunk in chunks]


def torchcodec(case: Case) -> Frames:
    decoders: Any = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(
        str(case.path), dimension_order="NHWC", num_ffmpeg_threads=THREADS, seek_mode="exact"
    )
    result: Frames = decoder.get_frames_at(indices=case.positions).data.numpy()
    return result


def opencv(case: Case) -> Frames:
    cv2: Any = importlib.import_module("cv2")
    capture = cv2.VideoCapture(str(case.path), cv2.CAP_FFMPEG)
    found, wanted = [], set(case.positions)
    for position in range(case.positions[-1] + 1):
        if not capture.grab():
            break
        if position in wanted:
            found.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return [np.stack(found)]


def decord(case: Case) -> Frames:
    library: Any = importlib.import_module("decord")
    reader = library.VideoReader(str(case.path), ctx=library.cpu(0), num_threads=THREADS)
    result: Frames = reader.get_batch(case.positions).asnumpy()
    return result


def ffmpeg(case: Case) -> Frames:
    """One pass that selects, or a process a frame where frames lie far apart, as one would do."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    if case.sparse:
        data = b"".join(
            _run(
                ["-ss", f"{max(0.0, t - 0.004):.6f}", "-i", str(case.path), "-frames:v", "1", *raw]
            )
            for t in case.seconds
        )
    else:
        # ffmpeg's parser goes no deeper than 100 terms, but that in brackets counts as one.
        terms = [f"eq(n\\,{position})" for position in case.positions]
        groups = ["(" + "+".join(terms[at : at + 50]) + ")" for at in range(0, len(terms), 50)]
        passed = ["-vf", f"select={'+'.join(groups)}", "-vsync", "passthrough"]
        data = _run(["-i", str(case.path), *passed, "-frames:v", str(len(case.positions)), *raw])
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, *case.wanted.shape[1:])


def _run(arguments: list[str]) -> bytes:
    command = ["ffmpeg", "-v", "error", "-nostdin", *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


THREADS = 0
"""All cores, for everyone who can be told."""


CONTENDERS: dict[str, Callable[[Case], Frames]] = {
    "ours": ours,
    "torchcodec": torchcodec,
    "opencv": opencv,
    "decord": decord,
    "ffmpeg": ffmpeg,
}
