"""What clips of data sets cost: exact ones beside copied packets, and the encoder's options; prints
tables.

Without arguments, a video of 4 minutes in 1080p is made and cut into 40 clips of 6 seconds, `exact`
and `original`, by one and by four processes. With `--quality`, seconds of five clips are encoded
with each preset and CRF. PSNR is that of all planes, against the frames that were encoded. CPU time
is the trustworthy one where other processes share the cores. Needs the `ffmpeg` program.

    python -m benchmarks.clips [--clips 40] [--seconds 6] [--rounds 1] [--source VIDEO]
    python -m benchmarks.clips --quality [CLIP …] [--rounds 3]
"""

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np

from benchmarks._common import cells, heads, unheard
from stages.frames import cut
from stages.frames.job import CutItem, CutJob
from stages.process.fork_client import child_environment
from stages.process.job import job_fields

PROCESSES = (1, 4)
MADE_SECONDS = 48
"""Of the made video, which is repeated."""
PRESETS, CRFS = ("ultrafast", "superfast", "veryfast", "faster"), (12, 16, 20)
LOSSLESS = {"crf": "0", "preset": "ultrafast"}
CLIPS = Path(os.environ.get("PENSTOCK_TEST_CLIPS", "../shared/clips"))
FIVE = ("intel_person.mp4", "intel_car.mp4", "mei_sea.mp4", "gr_world.mp4", "v2d_test.mp4")
FROM, SPAN = 0.5, 4.0
"""Start and length of what is encoded of each clip, in seconds."""
PEAK = 255.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What some work took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all processes."""


def costs(work: Callable[[], None]) -> Cost:
    """Return what a call and the processes that it waits for took."""

    def used() -> float:
        kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))

    began, before = time.perf_counter(), used()
    work()
    return Cost(wall=time.perf_counter() - began, cpu=used() - before)


def median(rounds: Sequence[Cost]) -> Cost:
    return Cost(
        wall=statistics.median(each.wall for each in rounds),
        cpu=statistics.median(each.cpu for each in rounds),
    )


def long_video(folder: Path, seconds: float) -> Path:
    """Write a video in 1080p with grain, of at least so many seconds."""
    part, whole = folder / "part.mp4", folder / "video.mp4"
    scene = f"testsrc2=s=1920x1080:r=25:d={MADE_SECONDS},noise=alls=4:allf=t"
    encoding = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p")
    repeats = ("-stream_loop", str(int(seconds // MADE_SECONDS)))
    start = ("ffmpeg", "-v", "error", "-y")
    subprocess.run([*start, "-f", "lavfi", "-i", scene, *encoding, part], check=True)
    subprocess.run([*start, *repeats, "-i", part, "-c", "copy", whole], check=True)
    return whole


def _cut(job: dict[str, Any]) -> None:
    cut.run(job, unheard())


def cut_all(video: Path, folder: Path, count: int, seconds: float, exact: bool, many: int) -> None:
    """Cut a video into clips, as a run does, in so many processes."""
    spans = [(at * seconds, (at + 1) * seconds) for at in range(count)]
    items = [CutItem(str(video), f"clip-{at}", *span) for at, span in enumerate(spans)]
    size = -(-count // many)
    folder.mkdir()
    jobs = [
        job_fields(CutJob(folder=str(folder), cuts=items[at : at + size], exact=exact))
        for at in range(0, count, size)
    ]
    with (
        patch.dict(os.environ, child_environment()),
        ProcessPoolExecutor(many, get_context("spawn")) as pool,
    ):
        for done in [pool.submit(_cut, job) for job in jobs]:
            done.result()
    made = [*folder.glob("clip-*")]
    assert len(made) == count, f"{len(made)} of {count} clips"


def modes(video: Path, folder: Path, count: int, seconds: float, rounds: int) -> None:
    """Print the time of both modes, with one process and with four."""
    print(f"{count} clips of {seconds:g} s; {os.cpu_count()} cores; medians of {rounds}")
    print(heads("mode | processes | s | CPU s | MB | wall, original is 1 | CPU, original is 1"))
    for many in PROCESSES:
        found: dict[str, list[Cost]] = {"original": [], "exact": []}
        sizes = {}
        for at in range(rounds):
            for mode in found:
                to = folder / f"{mode}-{many}-{at}"
                exact = mode == "exact"
                found[mode].append(
                    costs(lambda: cut_all(video, to, count, seconds, exact, many))  # noqa: B023
                )
                sizes[mode] = sum(each.stat().st_size for each in to.iterdir()) / 1e6
        base = median(found["original"])
        for mode, rows in found.items():
            own = median(rows)
            ratios = f"{own.wall / base.wall:.1f}", f"{own.cpu / base.cpu:.1f}"
            row = (mode, many, f"{own.wall:.1f}", f"{own.cpu:.1f}", f"{sizes[mode]:.0f}")
            print(cells([*row, *ratios]), flush=True)


def encoded(path: Path, folder: Path, options: dict[str, str]) -> tuple[Path, float]:
    """Encode the start of a clip with other options. Return the clip and the CPU seconds."""
    with (
        patch.object(cut, "OPTIONS", {**cut.OPTIONS, **options}),
        closing(cut.ExactCutter(path, [(FROM, FROM + SPAN)], copies=False)) as cutter,
    ):
        began = time.process_time()
        made = cutter.cut(0, folder / f"{path.stem}-{'-'.join(options.values())}")
        return folder / made["file"], time.process_time() - began


def planes(path: Path) -> Iterator[np.ndarray]:
    """Yield the bytes of all planes of each frame."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray().astype(np.int16)


def psnr(made: Path, reference: Path) -> float:
    """Return the PSNR of a clip in dB."""
    squares = [
        float(np.square(a - b, dtype=np.float64).mean())
        for a, b in zip(planes(made), planes(reference), strict=True)
    ]
    return float(10 * np.log10(PEAK**2 / np.mean(squares)))


def qualities(paths: Sequence[Path], folder: Path, rounds: int) -> None:
    """Print time, bytes and PSNR of each preset and CRF; the medians of all clips."""
    chosen = (cut.OPTIONS["preset"], int(cut.OPTIONS["crf"]))
    settings = [(preset, crf) for preset in PRESETS for crf in CRFS]
    times: dict[tuple[str, int], list[list[float]]] = {each: [] for each in settings}
    sizes: dict[tuple[str, int], list[int]] = {each: [] for each in settings}
    levels: dict[tuple[str, int], list[float]] = {each: [] for each in settings}
    for path in paths:
        reference, _ = encoded(path, folder, LOSSLESS)
        for setting in settings:
            options = {"preset": setting[0], "crf": str(setting[1])}
            tries = [encoded(path, folder, options) for _ in range(rounds)]
            times[setting].append([seconds for _, seconds in tries])
            sizes[setting].append(tries[0][0].stat().st_size)
            levels[setting].append(psnr(tries[0][0], reference))
    print(f"{len(paths)} clips: {', '.join(path.name for path in paths)}")
    print(heads("preset | CRF | CPU time | bytes | PSNR dB | least PSNR dB"))

    def ratio(of: Sequence[float], to: Sequence[float]) -> str:
        return f"{statistics.median(a / b for a, b in zip(of, to, strict=True)):.2f}"

    for setting in settings:
        spent, usual = (
            [statistics.median(each) for each in times[one]] for one in (setting, chosen)
        )
        levels_dB = f"{statistics.median(levels[setting]):.1f}", f"{min(levels[setting]):.1f}"
        shares = ratio(spent, usual), ratio(sizes[setting], sizes[chosen])
        name = f"**{setting[0]}**" if setting == chosen else setting[0]
        print(cells([name, setting[1], *shares, *levels_dB]), flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="clips of --quality")
    parser.add_argument("--quality", action="store_true", help="compare options of the encoder")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--source", type=Path, help="a video that is long enough")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if given.quality:
            paths = given.paths or [CLIPS / name for name in FIVE]
            qualities(paths, folder, given.rounds or 3)
            return 0
        video = given.source or long_video(folder, given.clips * given.seconds)
        modes(video, folder, given.clips, given.seconds, given.rounds or 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
