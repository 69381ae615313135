"""Sampling frames: this program against torchcodec, OpenCV, decord and the ffmpeg command.

Prints ratios of CPU seconds and of wall seconds, ours over theirs, so that below 1 is a win. All
give the same frames of the same clips as RGB at full size; each line says whether what came back
was exactly that, by a plain decode of the whole clip. `python -m benchmarks.frames [CLIP...]`
"""

import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from artifacts.schema import Sampling
from benchmarks._frame_readers import CONTENDERS, Case, Frames
from stages.frames.video import Video
from tests.support.media import plain_frames, repeat_video, rgb, write_video

ROUNDS = 5
SPARSE_FRAMES = 16
SAME = 4.0
"""Mean difference of two pictures, of 255, up to which they may be the same one decoded by another
FFmpeg with another conversion to RGB."""
CLIPS = Path(__file__).resolve().parents[2] / "shared" / "clips"


@dataclass(kw_only=True, slots=True)
class Score:
    """What one contender needed, round by round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    verdict: str = ""


def case_of(name: str, path: Path, sampling: Sampling, *, sparse: bool = False) -> Case:
    """What is to be taken, and what a plain decode of the whole file says it looks like."""
    with Video(path) as video:
        ticks = [at for plan in video.plan(sampling) for at in plan.ticks]
        timeline = video._reader.timeline
    start, base = timeline.start, timeline.time_base
    awaited, positions = set(ticks), []
    wanted: list[NDArray[np.uint8]] = []
    neighbours: list[list[NDArray[np.uint8]]] = []
    before: VideoFrame | None = None
    for position, frame in enumerate(plain_frames(path)):
        if before is not None and before.pts in awaited:
            neighbours[-1].append(rgb(frame))
        if frame.pts in awaited:
            positions.append(position)
            wanted.append(rgb(frame))
            neighbours.append([] if before is None else [rgb(before)])
        before = frame
    if len(positions) != len(ticks):
        raise SystemExit(f"{path}: a plain decode gives {len(positions)} of {len(ticks)} frames")
    return Case(
        name=name,
        path=path,
        sampling=sampling,
        sparse=sparse,
        seconds=[float((at - start) * base) for at in ticks],
        positions=positions,
        wanted=np.stack(wanted),
        neighbours=neighbours,
    )


def cases(paths: list[Path], folder: Path) -> Iterator[Case]:
    """Two frames a second of each clip, and 16 frames of the long ones."""
    options = {"preset": "medium", "bf": "3"}
    base = write_video(
        folder / "base.mp4", ticks=range(300), size=(360, 640), gop=250, options=options
    )
    paths = [repeat_video(base, folder / "generated.mp4", times=12), *paths]
    for path in paths:
        yield case_of(
            f"{path.name} 2 fps", path, Sampling(chunk_seconds=30, fps=2, max_frames=1000)
        )
        with Video(path) as video:
            if video.duration < 60:
                continue
        sparse = Sampling(chunk_seconds=1e6, frames=SPARSE_FRAMES, max_frames=SPARSE_FRAMES)
        yield case_of(f"{path.name} {SPARSE_FRAMES} frames", path, sparse, sparse=True)


def used() -> float:
    """CPU seconds of this process and of the children it has waited for."""
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def measure(case: Case) -> dict[str, Score]:
    """Every contender in turn, several rounds, so that a busy machine is busy for all of them."""
    scores = {name: Score() for name in CONTENDERS}
    for _ in range(ROUNDS):
        for name, contender in CONTENDERS.items():
            score = scores[name]
            if score.verdict.startswith("failed"):
                continue
            cpu, wall = used(), time.perf_counter()
            try:
                frames = contender(case)
            except Exception as error:
                score.verdict = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:90]}"
                continue
            score.cpu.append(used() - cpu)
            score.wall.append(time.perf_counter() - wall)
            score.verdict = verdict(case, frames)
    return scores


def verdict(case: Case, result: Frames) -> str:
    """Whether what came back is the frames that were asked for."""
    frames = np.concatenate(result) if isinstance(result, list) else result
    if frames.shape != case.wanted.shape:
        return f"NOT exact: {frames.shape} instead of {case.wanted.shape}"
    triples = zip(frames, case.wanted, case.neighbours, strict=True)
    wrong = sum(not is_that(*triple) for triple in triples)
    return f"NOT exact: {wrong} of {len(frames)} are others" if wrong else "exact"


def is_that(
    frame: NDArray[np.uint8], wanted: NDArray[np.uint8], neighbours: list[NDArray[np.uint8]]
) -> bool:
    """Whether a picture is the one wanted, and neither of those next to it that look different."""
    others = [other for other in neighbours if not np.array_equal(other, wanted)]
    # Squares, because another conversion shifts all pixels alike, and motion some of them a lot.
    nearest = apart(frame, wanted, 2)
    return apart(frame, wanted) <= SAME and all(nearest < apart(frame, o, 2) for o in others)


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8], power: int = 1) -> float:
    """Mean difference of two pictures, of 255, or mean of its squares."""
    return float((np.abs(one.astype(np.int32) - other) ** power).mean())


def main() -> None:
    named = [Path(argument) for argument in sys.argv[1:]]
    shared = ["v2d_test.mp4", "intel_person.mp4", "gr_world.mp4", "intel_bottle.mp4"]
    paths = named or [CLIPS / name for name in shared if (CLIPS / name).is_file()]
    if shutil.which("ffmpeg") is None:
        del CONTENDERS["ffmpeg"]
    print(f"{'case':32} {'of':11} {'CPU s':>8} {'ours/it':>8} {'wall s':>8} {'ours/it':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(paths, Path(folder)):
            scores = measure(case)
            us = scores["ours"]
            for name, score in scores.items():
                if not score.cpu:
                    print(f"{case.name:32} {name:11} {score.verdict}")
                    continue
                cpu, wall = statistics.median(score.cpu), statistics.median(score.wall)
                ratios = statistics.median(us.cpu) / cpu, statistics.median(us.wall) / wall
                print(
                    f"{case.name:32} {name:11} {cpu:8.2f} {ratios[0]:8.2f} {wall:8.2f} "
                    f"{ratios[1]:8.2f}  {score.verdict}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
