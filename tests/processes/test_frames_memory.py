"""The frames stage in a process of its own: what memory it takes of long, large and broken files,
and that none ends it."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.disk.json_records import read_record
from artifacts.errors import OutOfMemory
from artifacts.records.keys import hash_file
from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from artifacts.schema import MediaIndex
from stages.frames.job import FramesItem
from stages.process.events import Event
from stages.process.stage_process import ProcessSettings, StageProcess
from tests.support.builders.jobs import made_job
from tests.support.commands import completed
from tests.support.media import picture, repeat_video, write_video
from tests.support.mutations import write_mutations

NAMESPACE = "5c" * 32
MIB = 1 << 20
MUTATIONS = 300
MUTATIONS_BYTES = 500 * MIB
"""Above what the process takes before it opens a file."""
SECONDS = 240
"""For all of them, on a busy machine; measured: 9 s."""


def record_sets(folder: Path) -> tuple[RecordSet, RecordSet]:
    """Of media that were cut and of those that were refused."""
    store = open_store(str(folder / "store"))
    return RecordSet(store, "media", NAMESPACE), RecordSet(store, "failures", NAMESPACE)


def started(
    folder: Path,
    paths: list[Path],
    *,
    listen: Callable[[str, Event], None] = lambda *_: None,
    budget: int = 0,
    **sampling: Any,
) -> StageProcess:
    """The stage at these files, with so many bytes for all it does."""
    kinds = ("image" if path.suffix == ".jpg" else "video" for path in paths)
    media = [FramesItem(str(p), hash_file(p), k) for p, k in zip(paths, kinds, strict=True)]
    fit, sampling = {"long_edges": [[1.0, 64]]}, {"chunk_seconds": 30, "frames": None, **sampling}
    job: dict[str, Any] = {"store": str(folder / "store"), "namespace": NAMESPACE}
    job |= {"sampling": sampling, "fit_video": fit, "fit_image": fit, "media": media}
    job["workers"] = min(2, len(media))
    log, entry = folder / "frames.log", "stages.frames.run:run"
    settings = ProcessSettings(
        name="frames", job=made_job(**job), device="cpu", log=log, budget=budget
    )
    return StageProcess(settings, entry, listen)


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "cut"), [(700, True), (60, False)])
def test_a_large_video_is_cut_whole_or_not_at_all(budget: int, cut: bool, tmp_path: Path) -> None:
    """A file that needs more memory than the stage may take is no damaged file."""
    path = write_video(tmp_path / "large.mp4", ticks=range(12), size=(2160, 3840))
    stage = started(tmp_path, [path], budget=budget * MIB, fps=30, max_frames=12)
    if cut:
        stage.wait()
        whole, _ = record_sets(tmp_path)
        index = read_record(MediaIndex, whole.meta(hash_file(path)))
        assert not index.all_warnings
        assert sum(len(chunk.times) for chunk in index.chunks) == 12
        return
    with pytest.raises(OutOfMemory):
        stage.wait()
    assert not any(record_set.keys() for record_set in record_sets(tmp_path))
    assert stage.outcome.open_media == {hash_file(path)}


@pytest.mark.slow
def test_of_300_broken_files_each_is_cut_or_named(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    names = ("film.mp4", "broadcast.ts", "film.mkv")
    sources = [write_video(tmp_path / "whole" / name, ticks=range(90)) for name in names]
    sources.append(tmp_path / "whole" / "photo.jpg")
    Image.fromarray(picture(3, 96, 128)).save(sources[-1], quality=90)
    paths = [*write_mutations(sources, tmp_path / "broken", MUTATIONS)]
    opened: Counter[str] = Counter()

    def listen(_: str, event: Event) -> None:
        opened[type(event).__name__] += 1

    stage = started(tmp_path, paths, listen=listen, fps=1, max_frames=8)
    assert stage.wait_for_exit(SECONDS), f"hangs over one of {stage.outcome.open_media}"
    outcome = stage.wait()
    assert outcome.open_media == set()
    assert outcome.peak_host_bytes - outcome.notes["loaded_bytes"] < MUTATIONS_BYTES

    cut, refused = record_sets(tmp_path)
    digests = {hash_file(path) for path in paths}
    assert len(digests) > MUTATIONS * 0.9
    assert cut.keys() | refused.keys() == digests
    assert not cut.keys() & refused.keys()
    assert opened["MediumOpened"] == opened["MediumClosed"] == len(digests)
    indexes = [read_record(MediaIndex, cut.meta(digest)) for digest in sorted(cut.keys())]
    assert all(index.chunks for index in indexes)
    assert len(indexes) > MUTATIONS / 2
    assert sum(bool(index.all_warnings) for index in indexes) > MUTATIONS / 10
    kinds = Counter(refused.meta(digest)["kind"] for digest in sorted(refused.keys()))
    assert kinds["unexpected"] == 0, json.dumps(kinds)


PEAK = """
import sys
from pathlib import Path
from artifacts.frame_fit import FrameFit
from artifacts.schema import Sampling
from stages.frames.video import Video
from stages.process.memory import Sampler

with Sampler("cpu") as memory, Video(Path(sys.argv[1]), threads=1) as video:
    plans = video.plan(Sampling(chunk_seconds=30, fps=2, max_frames=32))
    count = sum(len(chunk.index.times) for chunk in video.chunks(plans, FrameFit()))
# Not the kernel's own high-water mark, in which a child begins with its parent's.
print(len(plans), count, memory.peak_host_bytes)
"""
BYTES_PER_FRAME = 90
"""FFmpeg's index of an mp4 takes 42 bytes a frame as soon as it is opened, our times of it the
rest: 8 MB for an hour at 25 frames a second."""
CHUNK_BYTES = 32 * 96 * 160 * 3
"""One chunk's frames; an hour has 120."""


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_than_two_minutes_but_for_the_index(tmp_path: Path) -> None:
    minute = write_video(tmp_path / "minute.mp4", ticks=range(0, 1800, 2), size=(96, 160), gop=4)
    peaks = []
    for minutes in (2, 60):
        path = repeat_video(minute, tmp_path / f"{minutes}.mp4", times=minutes)
        command = [sys.executable, "-c", PEAK, str(path)]
        done = completed(command, check=True)
        chunks, frames, peak = map(int, done.stdout.split())
        assert (chunks, frames) == (2 * minutes, 2 * minutes * 32)
        peaks.append(peak)
    # The peak moves by some hundred kilobytes from run to run, as memory is given back.
    assert peaks[1] - peaks[0] < BYTES_PER_FRAME * 60 * 900 + CHUNK_BYTES
