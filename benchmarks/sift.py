"""What `penstock sift` finds of planted copies, blur, black and frozen stretches and letterboxes,
and what marking costs; prints a table.

Photos and frames of real clips are among the originals if there is a folder of them. The files go
through the command line as anyone's would.

    python benchmarks/sift.py [--seed 7] [--scale 1.0] [--clips ../shared/clips]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations, count, pairwise
from pathlib import Path
from typing import Any

from artifacts.digests import digest_of
from artifacts.frame_fit import FrameFit
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.schema import Sampling
from flows.interfaces.cli.main import main as penstock
from tests.support.builders.common import Figure, cpu_seconds, in_fresh_process
from tests.support.builders.planted import (
    APART,
    BLURS,
    KINDS,
    STRETCH,
    Plan,
    Planted,
    frames,
    real_clips,
    write_clips,
    write_pictures,
)

Rows = Mapping[str, Mapping[str, Any]]
"""Name of a file → its marks."""
FIT = FrameFit(long_edges=((1.0, 768),))
"""Size at which frames are cut: between those of SmolVLM2 and Qwen2.5-VL."""
MOVING = ("gr_world.mp4", "mei_flir.mp4", "tc_nasa.mp4")
"""Clips that move: two frames 2 s apart never show the same picture."""
figure = partial(Figure, form="9.4f")
"""Makes a line of the table: a share, with four decimals."""


def sifted(folder: Path, store: Path, *options: str) -> Rows:
    """Marks of all files of a folder, as the command gives them."""
    out = folder.with_name(f"{folder.name}-marks{len(options)}")
    words = ["sift", str(folder), "--quiet", "--out", str(out), "--store", str(store), *options]
    if code := penstock(words):
        sys.exit(f"penstock sift ended with {code}")
    lines = (out / "marks.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["media_path"]: row for row in map(json.loads, lines)}


def copies(truth: Sequence[Planted], rows: Rows, title: str, kinds: Sequence[str]) -> list[Figure]:
    """Recall per kind of copy, and the precision of all pairs in a group."""
    of_name = {one.name: one for one in truth}
    original = {one.group: one.name for one in truth if one.kind == "original"}
    found = []
    goals = {"reencoded": 0.98, "scaled": 0.98, "cropped": 0.9, "subtitled": 0.9}
    for kind in kinds:
        these = [one for one in truth if one.kind == kind]
        pairs = [(rows[one.name]["group"], rows[original[one.group]]["group"]) for one in these]
        hits = sum(own is not None and own == other for own, other in pairs)
        goal = goals.get(kind, 0.98)
        found.append(figure(name=f"{title}: recall of {kind}", value=hits / len(these), goal=goal))
    members: dict[int, list[str]] = {}
    for name, row in rows.items():
        if row["group"] is not None:
            members.setdefault(row["group"], []).append(name)
    pairs_ = [pair for several in members.values() for pair in combinations(several, 2)]
    right = sum(of_name[one].group == of_name[other].group for one, other in pairs_)
    precision = right / max(1, len(pairs_))
    return [*found, figure(name=f"{title}: precision of pairs", value=precision, goal=0.98)]


def flagged(truth: Sequence[Planted], rows: Rows, kind: str, mark: str, title: str) -> list[Figure]:
    """Recall and precision of a mark above zero for the files of a kind."""
    flags = {one.name: bool(rows[one.name][mark]) for one in truth}
    these = [one for one in truth if one.kind == kind]
    hits = sum(flags[one.name] for one in these)
    wrong = sum(flags[one.name] for one in truth if one.kind != kind)
    photos = sum(flags[one.name] for one in truth if one.photo and one.kind == "single")
    name = f"{title}: {kind}"
    return [
        figure(name=f"{name}, recall", value=hits / len(these), goal=0.98),
        figure(name=f"{name}, precision", value=hits / max(1, hits + wrong), goal=0.98),
        figure(name=f"{name}, held-out real ones marked", value=-photos, goal=0),
    ]


def blurs(truth: Sequence[Planted], rows: Rows) -> list[Figure]:
    """Recall of each blur, and the share of sharp pictures that are not marked."""
    blurred = [one for one in truth if one.kind == "blur"]
    found = []
    for number, share in enumerate(BLURS):
        these = blurred[number :: len(BLURS)]
        hits = sum(bool(rows[one.name]["blurred"]) for one in these)
        found.append(
            figure(name=f"blur of {share:.1%}, recall", value=hits / len(these), goal=0.98)
        )
    sharp = [one for one in truth if one.kind not in ("blur", "black")]
    right = sum(not rows[one.name]["blurred"] for one in sharp)
    return [*found, figure(name="sharp pictures not marked", value=right / len(sharp), goal=0.98)]


def neighbours(folder: Path, clips: Path, store: Path) -> list[Figure]:
    """Frames 2 s apart that are grouped."""
    folder.mkdir()
    for path in real_clips(clips):
        if path.name in MOVING:
            for number, picture in enumerate(frames(path, APART)):
                picture.save(folder / f"{path.stem}-{number:03d}.jpg", quality=88)
    rows = sifted(folder, store)
    names = sorted(rows)
    grouped = sum(
        one[:-8] == other[:-8] and rows[one]["group"] == rows[other]["group"] is not None
        for one, other in pairwise(names)
    )
    return [figure(name=f"{len(rows)} frames 2 s apart: pairs grouped", value=-grouped, goal=0)]


def costs_of(clip: Path, folder: Path) -> dict[str, float]:
    """CPU seconds of cutting a clip, and of marking it."""
    from stages.frames.video import Video
    from stages.sift.run import SampledVideo

    sampling = Sampling(chunk_seconds=30.0, fps=1.0, max_frames=32)
    numbers, stored = count(), RecordSet(open_store(str(folder)), "frames", "0" * 64)

    def cut() -> None:
        with Video(clip, threads=1) as video:
            for chunk in video.chunks(video.plan(sampling), FIT):
                key = digest_of(next(numbers))
                stored.publish([Record(key=key, payload=chunk.pixels.reshape(-1).data)])
                stored.drop([key])

    def mark() -> None:
        with SampledVideo(clip, threads=1) as video:
            for _ in video.sampled(range(video.parts)):
                pass

    cutting, marking = (min(cpu_seconds(work) for _ in range(3)) for work in (cut, mark))
    return {"cutting": cutting, "marking": marking}


def cost(clips: Sequence[Path], folder: Path) -> list[Figure]:
    """Time of marking as a share of cutting frames. Measured in processes of one thread of NumPy's,
    as the stage is."""
    each = [in_fresh_process(costs_of, clip, folder) for clip in clips]
    cutting, marking = (sum(one[name] for one in each) for name in ("cutting", "marking"))
    return [figure(name="all of marking / cutting frames", value=marking / cutting)]


def main() -> int:
    """Print the table; the exit code says whether a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 2,000 and 300 files")
    parser.add_argument("--clips", type=Path, default=Path(__file__).parents[2] / "shared/clips")
    given = parser.parse_args()
    clips = given.clips if given.clips.is_dir() else None
    plan = Plan(**{name: max(2, round(n * given.scale)) for name, n in asdict(Plan()).items()})
    with tempfile.TemporaryDirectory() as place:
        folder, store = Path(place), Path(place) / "store"
        pictures = write_pictures(folder / "pictures", plan, clips, given.seed)
        rows = sifted(folder / "pictures", store)
        found = copies(pictures, rows, "pictures", KINDS[:-1])
        mirrored = sifted(folder / "pictures", store, "--mirrored")
        found += copies(pictures, mirrored, "pictures, --mirrored", KINDS[-1:])
        found += blurs(pictures, rows)
        found += flagged(pictures, rows, "black", "black", "pictures")
        found += flagged(pictures, rows, "letterbox", "letterbox", "pictures")
        videos = write_clips(folder / "videos", plan, clips, given.seed)
        rows = sifted(folder / "videos", store)
        found += copies(videos, rows, "clips", KINDS[:-1])
        rows_ = sifted(folder / "videos", store, "--mirrored")
        found += copies(videos, rows_, "clips, --mirrored", KINDS[-1:])
        for kind, mark in (("black", "black"), ("frozen", "frozen"), ("letterbox", "letterbox")):
            found += flagged(videos, rows, kind, mark, "clips")
        for kind in ("black", "frozen"):
            these = [rows[one.name][f"{kind}_seconds"] for one in videos if one.kind == kind]
            off = max(abs(seconds - (STRETCH[1] - STRETCH[0])) for seconds in these)
            found.append(figure(name=f"clips: {kind} seconds, largest error", value=off))
        if clips is not None:
            found += neighbours(folder / "neighbours", clips, store)
            found += cost(real_clips(clips), folder / "cut")
        counted = f"{len(pictures)} pictures and {len(videos)} clips"
        real = sum(one.photo for one in (*pictures, *videos))
    print(f"{counted}, {real} of them real; seed {given.seed}")
    print("\n".join(map(str, found)))
    return int(any(line.missed for line in found))


if __name__ == "__main__":
    sys.exit(main())
