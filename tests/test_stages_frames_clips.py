"""Real files, awkward ones among them: covered to their end, with the file's own times."""

from functools import cache
from pathlib import Path

import av
import pytest

from artifacts.schema import FrameFit, MediaIndex, Sampling
from stages.frames.image import read_image
from stages.frames.video import Video
from tests.support.pipeline import Place

VIDEOS = [
    "intel_person.mp4",
    "intel_bottle.mp4",
    "intel_car.mp4",
    "intel_asl_book.mkv",
    "v2d_test.mp4",
    "tc_nasa.mp4",
    "tc_h264_10.mp4",
    "mpy_nodur.webm",
    "mpy_fire2.mp4",
    "gr_world.mp4",
    "gr_badcont.mkv",
    "decord_rot90.mov",
    "psd_delayed.mp4",
    "mei_flir.mp4",
    "mei_road.avi",
    "mei_sea.mp4",
    "awkward/odd_427x239.webm",
    "awkward/vfr_30_to_4.mp4",
    "awkward/editlist_copycut.mp4",
    "awkward/geese.ts",
    "awkward/trunc_faststart.mp4",
    "awkward/bitflip.mp4",
    "awkward/oneframe.mp4",
]
QUICK = {
    "intel_asl_book.mkv",
    "mpy_nodur.webm",
    "psd_delayed.mp4",
    "awkward/vfr_30_to_4.mp4",
    "awkward/geese.ts",
    "awkward/trunc_faststart.mp4",
}
DAMAGED = {
    "awkward/trunc_faststart.mp4": "of the stated 24.02 s",
    "awkward/bitflip.mp4": "decoded frames are damaged",
}
UNUSABLE = {
    "tc_audio.mp3": "no-video",
    "awkward/trunc_no_moov.mp4": "no-moov",
    "awkward/empty.mp4": "empty",
    "awkward/text.mp4": "not-media",
}
PHOTOS = {
    "photos/mei_heic_IMG_2929.HEIC": (4032, 3024),  # upright
    "photos/exs_corrupted.jpg": (2736, 3648),
    "photos/mei_jpg_Issue_266.jpg": (3840, 5760),
    "photos/rec_Landscape_6.jpg": (1200, 1800),
    "photos/ski_chelsea.png": (300, 451),
    "photos/ski_coffee.png": (400, 600),
}
EVERY_SECOND = Sampling(chunk_seconds=10, fps=1, max_frames=32)
SMALL = FrameFit(long_edges=((1.0, 128),))


LARGE_BYTES = 4_000_000
"""A file larger than this is asked by its packets, as decoding all of it takes too long."""


@cache
def own_times(path: Path) -> list[float]:
    """Seconds of every frame of the file since its first, by a plain decode
    of the whole."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        assert stream.time_base is not None
        stream.thread_type = "AUTO"
        if path.stat().st_size > LARGE_BYTES:
            found = [packet.pts for packet in container.demux(stream) if packet.size]
        else:
            found = [frame.pts for frame in container.decode(stream)]
        ticks = sorted(at for at in found if at is not None)
        base = stream.time_base
    return [(at - ticks[0]) * base.numerator / base.denominator for at in ticks]


def index_of(path: Path) -> MediaIndex:
    with Video(path) as video:
        chunks = [c.index for c in video.chunks(video.plan(EVERY_SECOND), SMALL)]
        return video.media_index(chunks)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in VIDEOS]
)
def test_a_real_video_is_covered_to_its_end_with_its_own_times(
    shared_clips: Path, name: str
) -> None:
    index, own = index_of(shared_clips / name), own_times(shared_clips / name)
    assert index.chunks[0].start == 0
    for one, other in zip(index.chunks, index.chunks[1:], strict=False):
        assert one.end == other.start
    assert index.chunks[-1].end == index.duration >= own[-1]
    # Frames that a cut leaves without the ones they refer to are announced, yet cannot be seen.
    assert index.duration - own[-1] < 0.5
    times = [seconds for chunk in index.chunks for seconds in chunk.times]
    assert set(times) <= set(own)
    assert times == sorted(set(times))
    assert max(b - a for a, b in zip(times, [*times[1:], own[-1]], strict=True)) < 2.5
    assert len(index.warnings) == (name in DAMAGED)
    assert DAMAGED.get(name, "") in "".join(index.warnings)


@pytest.mark.parametrize(("name", "size"), PHOTOS.items())
def test_a_real_photo_is_read(shared_clips: Path, name: str, size: tuple[int, int]) -> None:
    media, chunk = read_image(shared_clips / name)
    assert (media.height, media.width) == size
    assert chunk.pixels.shape == (1, *size, 3) and chunk.pixels.std() > 10


@pytest.mark.slow
def test_one_run_over_all_real_files_captions_or_names_each(
    shared_clips: Path, tmp_path: Path
) -> None:
    place = Place(clips=shared_clips, out=tmp_path / "out", store=tmp_path / "store")
    sound = str(shared_clips / "tc_audio.mp3")  # which a folder does not bring in
    options = ("--recursive", "--chunk", "10", "--fps", "0.5", "--max-new-tokens", "4")
    assert place.run(*options, sound).returncode == 1
    rows = {row["media_path"]: row for row in place.captions()}  # the last of each
    assert rows.keys() == {*VIDEOS, *PHOTOS}
    assert {name for name, row in rows.items() if row["warnings"]} == DAMAGED.keys()
    for name in VIDEOS:
        assert -0.001 < rows[name]["end"] - own_times(shared_clips / name)[-1] < 0.5
    failures = {failure["media_path"]: failure["error"] for failure in place.failures()}
    assert failures == UNUSABLE
