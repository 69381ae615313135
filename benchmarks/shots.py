"""Finding shots: this program against PySceneDetect, and what it adds to decoding.

Accuracy is against cuts that are known, because the videos are made here: out of generated scenes,
and of photographs and clips where those are at hand. The second table gives CPU seconds: of
decoding alone, of ours with one frame a shot taken, and of PySceneDetect's detectors, all over the
whole video, round by round; ratios are medians of the rounds' own. `python -m benchmarks.shots`
"""

import importlib
import statistics
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from artifacts.schema import FrameFit, Sampling
from benchmarks._common import cpu_seconds
from benchmarks._shot_videos import (
    CALM,
    MOVES,
    RATE,
    WILD,
    Made,
    Picture,
    clip_pictures,
    enlarged,
    joined,
    shot,
    texture,
)
from stages.frames.reader import Reader
from stages.frames.video import Video

ROUNDS = 3
SHOTS = 60
"""In each generated video."""
CLIPS = Path(__file__).resolve().parents[2] / "shared" / "clips"
PHOTOS = ("ski_chelsea.png", "ski_coffee.png", "mei_jpg_Issue_266.jpg", "rec_Landscape_6.jpg")
STRETCHES: dict[str, tuple[float, ...]] = {
    "intel_person.mp4": (5.0, 60.0, 100.0),
    "intel_bottle.mp4": (2.0, 20.0, 33.0),
    "intel_car.mp4": (1.0, 10.0, 22.0),
    "tc_nasa.mp4": (0.0, 2.5, 9.0),
    "gr_world.mp4": (0.0, 12.0, 25.0),
    "mpy_fire2.mp4": (0.0,),
    "mei_flir.mp4": (0.0, 4.0, 8.0),
    "mei_road.avi": (0.0,),
    "intel_asl_book.mkv": (0.0, 1.5),
}
"""Where shots of real clips begin; none of them has a cut of its own in the two seconds after."""

ONE_A_SHOT = Sampling(chunk_seconds=1e6, shots=True, frames=1, max_frames=1)
Finder = Callable[[Path], list[float]]


def ours(path: Path) -> list[float]:
    with Video(path) as video:
        return [c.index.start for c in video.shots(ONE_A_SHOT, FrameFit(long_edges=((1.0, 512),)))][
            1:
        ]


def scenedetect(detector: str, backend: str, path: Path) -> list[float]:
    library: Any = importlib.import_module("scenedetect")
    video = library.open_video(str(path), backend=backend)
    av.logging.set_level(None)  # which it turns on
    manager = library.SceneManager()
    manager.add_detector(getattr(library, detector)())
    manager.detect_scenes(video)
    return [start.seconds for start, _ in manager.get_scene_list()][1:]


def decode(path: Path) -> list[float]:
    """Every frame decoded as this program does it, and nothing else."""
    reader = Reader(path)
    ticks = reader.timeline.pts.tolist()
    reader.request(array("q", ticks))
    for at in ticks:
        reader.at(at, at, at + 1)
    reader.close()
    return []


FINDERS: dict[str, Finder] = {
    "ours": ours,
    "content": partial(scenedetect, "ContentDetector", "pyav"),
    "adaptive": partial(scenedetect, "AdaptiveDetector", "pyav"),
}
"""PySceneDetect reads by the same FFmpeg, and faster so than by OpenCV."""


def scores(
    truth: Sequence[float], found: Sequence[float], tolerance: float
) -> tuple[int, int, int]:
    """(cuts found, cuts missed, others found); each cut is found once at the most."""
    left, hits = sorted(found), 0
    for cut in truth:
        near = [at for at in left if abs(at - cut) <= tolerance]
        if near:
            hits += 1
            left.remove(min(near, key=lambda at: abs(at - cut)))
    return hits, len(truth) - hits, len(left)


def rates(hits: int, missed: int, extra: int) -> tuple[float, float, float]:
    """Precision, recall and F1; 1 where there was nothing to get wrong."""
    precision = hits / (hits + extra) if hits + extra else 1.0
    recall = hits / (hits + missed) if hits + missed else 1.0
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


def videos(folder: Path, clips: Path) -> Iterator[Made]:
    """The videos to find cuts in, one at a time."""
    photos = [
        enlarged(_opened(clips / "photos" / n)) for n in PHOTOS if (clips / "photos" / n).is_file()
    ]
    cases = (("calm", CALM, "cut", 1), ("wild", WILD, "cut", 2))
    soft = (("dissolves", CALM, "dissolve", 3), ("fades", CALM, "fade", 4))
    for name, moves, between, seed in (*cases, *soft):
        rng = np.random.default_rng(seed)
        scenes = (texture(rng) for _ in range(SHOTS))
        yield joined(f"generated {name}", folder, _shots(scenes, moves, rng), between=between)
    if photos:
        rng = np.random.default_rng(5)
        scenes = (photos[at % len(photos)] for at in range(SHOTS))
        yield joined("photographs", folder, _shots(scenes, MOVES, rng))
    real = [(clips / n, starts) for n, starts in STRETCHES.items() if (clips / n).is_file()]
    if real:
        rng = np.random.default_rng(6)
        turns = [(path, starts[turn % len(starts)]) for turn in range(6) for path, starts in real]
        yield joined(
            "clips", folder, [clip_pictures(*turn, int(rng.integers(20, 50))) for turn in turns]
        )


def _opened(path: Path) -> Image.Image:
    image = Image.open(path)
    image.draft("RGB", (2000, 2000))
    return image


def _shots(
    scenes: Iterator[Picture], moves: Sequence[str], rng: np.random.Generator
) -> list[Iterator[Picture]]:
    """One shot of each scene, of 1.4 to 3 seconds; what happens in it goes in turn."""
    return [
        shot(scene, moves[at % len(moves)], int(rng.integers(36, 3 * RATE)), rng)
        for at, scene in enumerate(scenes)
    ]


def accuracy(made: Made) -> None:
    for name, finder in FINDERS.items():
        counted = scores(made.cuts, finder(made.path), made.tolerance)
        precision, recall, f1 = rates(*counted)
        print(
            f"{made.name:20} {len(made.cuts):5} {name:10} {precision:9.3f} {recall:7.3f} {f1:6.3f}"
            f" {counted[1]:7} {counted[2]:6}",
            flush=True,
        )


def cost(name: str, path: Path) -> None:
    """CPU seconds of each, as a multiple of decoding alone and of ours."""
    spent: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for who, finder in {"decoding": decode, **FINDERS}.items():
            spent.setdefault(who, []).append(cpu_seconds(partial(finder, path)))
    for who, seconds in spent.items():
        over = [
            statistics.median(s / b for s, b in zip(seconds, spent[base], strict=True))
            for base in ("decoding", "ours")
        ]
        print(
            f"{name:20} {who:10} {statistics.median(seconds):8.2f} {over[0]:12.2f} {over[1]:8.2f}",
            flush=True,
        )


def main() -> None:
    timed = [Path(argument) for argument in sys.argv[1:]] or [CLIPS / "v2d_test.mp4"]
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'video':20} {'cuts':>5} {'by':10} {'precision':>9} {'recall':>7} {'F1':>6}"
            f" {'missed':>7} {'others':>6}"
        )
        for made in videos(Path(folder), CLIPS):
            accuracy(made)
        print(f"\n{'video':20} {'by':10} {'CPU s':>8} {'of decoding':>12} {'of ours':>8}")
        for path in (*timed, *Path(folder).glob("generated-calm.mp4")):
            if path.is_file():
                cost(path.stem[:20], path)


if __name__ == "__main__":
    main()
