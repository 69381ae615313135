"""Times count from the start of the file, as a player counts them, and are those of the packets."""

import re
import shutil
import struct
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from artifacts.frame_fit import FrameFit
from artifacts.schema import ChunkIndex, Sampling
from flows.outputs.thumbnails import shown_at
from stages.frames.video import Video
from stages.sift.run import SampledVideo
from tests.support.media import decode_plainly, digest_of_pixels, picture, rgb, write_video

LATE: dict[str, Any] = {"ticks": range(150, 210), "audio": True}
"""A second of silence from 0 s on, and pictures from 5 s to 7 s."""
EVERY_FRAME = Sampling(chunk_seconds=1, fps=60, max_frames=128)
CONTAINERS = ("mp4", "mov", "mkv", "ts", "flv", "nut")


def indexes(path: Path) -> tuple[list[ChunkIndex], tuple[str, ...]]:
    with Video(path) as video:
        chunks = [chunk.index for chunk in video.chunks(video.plan(EVERY_FRAME), FrameFit())]
        return chunks, video.warnings()


def times_of(path: Path) -> list[float]:
    return [seconds for chunk in indexes(path)[0] for seconds in chunk.times]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_track_that_begins_after_the_sound_keeps_its_times(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"a.{suffix}", **LATE)
    chunks, warnings = indexes(path)
    # The sound may begin earlier by what its encoder puts before it, 64 ms at 16 kHz.
    assert chunks[0].times[0] == chunks[0].start == pytest.approx(5.0, abs=0.065)
    offset = chunks[0].start
    found = [(chunk.start - offset, chunk.end - offset) for chunk in chunks]
    assert found == pytest.approx(np.array([(0, 1), (1, 2)]), abs=1e-9)
    times = [seconds - offset for chunk in chunks for seconds in chunk.times]
    assert times == pytest.approx([at / 30 for at in range(60)], abs=0.001)
    assert warnings == ()


def test_sound_that_begins_after_the_pictures_moves_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", ticks=range(30))
    late = tmp_path / "late.mkv"
    with av.open(str(path)) as read, av.open(str(late), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        sound = write.add_stream("aac", rate=16000)
        for packet in read.demux(read.streams.video[0]):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
        assert isinstance(sound, av.AudioStream)
        silence = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 160_000
        write.mux([*sound.encode(frame), *sound.encode(None)])
    assert times_of(late) == pytest.approx([at / 30 for at in range(30)], abs=0.001)


def test_data_that_begins_before_the_pictures_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as made:
        stream = made.add_stream("libx264", rate=30, options={"bf": "0"})
        data = made.add_data_stream("klv")
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packet = av.Packet(b"data")
        packet.stream, packet.time_base, packet.pts = data, Fraction(1, 90000), 9000 * 45
        packet.dts = packet.pts
        made.mux(packet)
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = 150 + index, Fraction(1, 30)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.start_time == 4_500_000  # FFmpeg counts it
    assert times_of(path) == pytest.approx([at / 30 for at in range(10)], abs=0.001)


def test_a_first_frame_behind_the_end_of_the_file_is_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", ticks=range(3000, 3030), audio=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # RFC 9559, 5.1.2.10: Duration, of eight bytes
    data[at : at + 8] = struct.pack(">d", 3000.0)
    path.write_bytes(data)
    chunks, warnings = indexes(path)
    assert (chunks[0].start, chunks[-1].end) == pytest.approx((0.0, 1.0), abs=0.04)
    assert warnings[0].startswith("its first frame is stated at 100.00 s, behind the end")


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_a_whole_file_with_late_pictures_is_not_called_truncated(
    tmp_path: Path, suffix: str
) -> None:
    codec = {"mkv": "libx264", "webm": "libvpx"}[suffix]
    path = write_video(tmp_path / f"a.{suffix}", ticks=range(150, 210), codec=codec)
    assert indexes(path)[1] == ()
    if suffix == "mkv":
        assert indexes(write_video(tmp_path / "b.mkv", **LATE))[1] == ()


GAP = [*range(0, 40, 2), *range(120, 160, 2)]


@pytest.mark.parametrize(
    ("ticks", "options"),
    [(range(0, 120, 2), {"bf": "3"}), *((GAP, how) for how in ({"bf": "3"}, {"bf": "0"}, None))],
    ids=["reordered", "reordered with a gap", "in order with a gap", "MPEG-4 with a gap"],
)
def test_empty_slots_of_avi_take_their_time(
    tmp_path: Path, ticks: Any, options: dict[str, str] | None
) -> None:
    codec: Any = {"codec": "libx264" if options else "mpeg4", "options": options or {"bf": "2"}}
    path = write_video(tmp_path / "a.avi", ticks=ticks, time_base=Fraction(1, 20), **codec)
    with Video(path) as video:
        chunks = list(video.chunks(video.plan(EVERY_FRAME), FrameFit()))
        assert video.warnings() == ()
    # A chunk in which no frame begins has the one on display again.
    found = {t: p for c in chunks for t, p in zip(c.index.times, c.pixels, strict=True)}
    *times, last = [at / 20 for at in ticks]
    assert [*found][:-1] == pytest.approx(times, abs=0.001)
    # FFmpeg takes the last frame of MPEG-4 to be one slot after the packet before it.
    assert [*found][-1] == pytest.approx(last, abs=0.001 if options else 0.051)
    assert chunks[-1].index.end == pytest.approx(last + 0.1, abs=0.101)
    for index, pixels in enumerate(found.values()):
        assert np.abs(pixels.astype(int) - picture(index)).mean() < 15


@pytest.mark.parametrize("reordered", ["0", "2"])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_pictures_that_stand_for_hours_keep_their_times(
    tmp_path: Path, suffix: str, reordered: str
) -> None:
    seconds = [0, 1, 4000, 9000, 9001, 14000]
    path = write_video(
        tmp_path / f"a.{suffix}", ticks=seconds, time_base=Fraction(1), options={"bf": reordered}
    )
    hourly = Sampling(chunk_seconds=20000, fps=1, max_frames=20000)
    with Video(path) as video:
        (chunk,) = video.chunks(video.plan(hourly), FrameFit())
        assert chunk.index.times == pytest.approx(seconds)
        assert video.warnings() == ()


def test_one_picture_that_stands_for_hours_after_a_film_is_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", ticks=[*range(60), 60 + 5 * 3600 * 30])
    with Video(path) as video:
        assert video.duration == pytest.approx(5 * 3600 + 2, abs=0.1)
        assert video.warnings() == ()


def test_shots_of_a_late_track_have_its_times_also_when_resumed(tmp_path: Path) -> None:
    def draw(index: int, height: int, width: int) -> Any:
        return np.full((height, width, 3), 250 if index >= 30 else 20, np.uint8)

    path = write_video(tmp_path / "a.mp4", **LATE, draw=draw)
    shots = Sampling(shots=True, chunk_seconds=30, frames=2, max_frames=2)
    with Video(path) as video:
        whole = [chunk.index for chunk in video.shots(shots, FrameFit())]
    assert [(c.start, c.end) for c in whole] == pytest.approx(np.array([(5, 6), (6, 7)]), abs=0.01)
    with Video(path) as video:
        (rest,) = video.shots(shots, FrameFit(), after=whole[:1])
    assert rest.index == whole[1]


def test_samples_of_a_late_track_count_from_its_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", **LATE)
    with SampledVideo(path, threads=1) as video:
        (((_, part)),) = video.sampled([0])
        meta = video.meta()
    assert (meta["start"], meta["seconds"]) == (5.0, 2.0)
    assert part.column("time").tolist() == pytest.approx([0.0, 0.5, 1.0, 1.5])


REORDERED: dict[str, tuple[str, dict[str, str] | None]] = {
    "a.avi": ("mpeg4", {"bf": "2"}),
    "b.avi": ("libx264", None),
    "a.h264": ("libx264", None),
    "a.mpg": ("mpeg1video", {"bf": "2", "qmin": "1", "qmax": "1"}),
    "b.mpg": ("mpeg2video", {"bf": "2", "qmin": "1", "qmax": "1"}),
    "a.wmv": ("wmv2", {}),
    "a.gif": ("gif", {}),
}
"""Files whose packets have no times, no seeks, or wrong ones → codec and its options."""


@pytest.mark.in_turn
@pytest.mark.parametrize("name", REORDERED)
def test_a_thumbnail_shows_the_frame_that_was_captioned(tmp_path: Path, name: str) -> None:
    codec, options = REORDERED[name]
    pixel_format = {"gif": "rgb8"}.get(codec, "yuv420p")
    how: dict[str, Any] = {"options": options, "pixel_format": pixel_format}
    path = write_video(tmp_path / name, ticks=range(80), codec=codec, **how)
    assert_thumbnails(path, count=80)


def test_a_thumbnail_of_joined_recordings_shows_the_frame_that_was_captioned(
    tmp_path: Path,
) -> None:
    path = write_video(tmp_path / "a.ts", ticks=range(40))
    path.write_bytes(path.read_bytes() * 2)
    assert_thumbnails(path, count=80, repeats=40)


def assert_thumbnails(path: Path, *, count: int, repeats: int = 1000) -> None:
    """Compare thumbnails at the times of all frames with the pictures drawn in that order."""
    times = times_of(path)
    assert len(times) == count
    shown = []
    for at in range(0, count, 3):
        pixels = shown_at(path, times[at])[0].to_ndarray(format="rgb24")
        away = [np.abs(pixels.astype(int) - picture(other)).mean() for other in range(count)]
        shown.append((at % repeats, int(np.argmin(away))))
    assert [seen for _, seen in shown] == [drawn for drawn, _ in shown]


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_times_of_a_file_that_was_cut_within_an_open_group_begin_at_its_first_shown_frame(
    tmp_path: Path, suffix: str
) -> None:
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("the program `ffmpeg` is missing: apt-get install ffmpeg")
    group = {"bf": "2", "x264-params": "open-gop=1:keyint=12:b-pyramid=0:scenecut=0:b-adapt=0"}
    whole = tmp_path / "whole.ts"
    write_video(whole, ticks=range(100), time_base=Fraction(1, 5), options=group)
    path = tmp_path / f"cut.{suffix}"
    command = [program, "-v", "error", "-ss", "6.5", "-i", str(whole), "-c", "copy", str(path)]
    subprocess.run(command, check=True)
    shown = [program, "-hide_banner", "-i", str(path), "-map", "0:v:0", "-vf", "showinfo"]
    shown += ["-fps_mode", "passthrough", "-f", "null", "-"]
    done = subprocess.run(shown, capture_output=True)
    seconds = [float(each) for each in re.findall(rb"pts_time:(\S+)", done.stderr)]
    times = times_of(path)
    assert times[0] == seconds[0] == 0.0
    assert times == pytest.approx(seconds, abs=0.001)
    first = decode_plainly(path)[0].digest
    assert digest_of_pixels(rgb(shown_at(path, 0.0)[0])) == first


PROGRAM_STREAMS = ("mpeg2video -f vob", "mpeg2video -b:v 50k -f vob", "mpeg4 -bf 2 -f dvd")
"""Words for the program `ffmpeg`: a part of such a file may hold several small frames and the time
of one of them, which FFmpeg then gives to two."""


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg program")
def test_frames_that_a_program_stream_gives_one_time_are_all_taken_at_their_own(
    tmp_path: Path,
) -> None:
    drawn, y, x = [], *np.mgrid[0:144, 0:176]
    for at in range(55):
        parts = 20 + x / 2 + 14 * (at % 8), 30 + y + 6 * (at % 9), 60 + (x + y) / 2
        drawn.append(np.stack(parts, -1).clip(0, 255).astype(np.uint8))
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "176x144", "-r", "25", "-i", "-"]
    given = ["ffmpeg", "-v", "error", *raw, "-c:v"]
    alike = 0
    for number, words in enumerate(PROGRAM_STREAMS):
        path = tmp_path / f"{number}.mpg"
        frames = b"".join(each.tobytes() for each in drawn)
        subprocess.run([*given, *words.split(), str(path)], input=frames, check=True)
        with av.open(str(path)) as container:
            times = [packet.pts for packet in container.demux(video=0) if packet.size]
        alike += len(times) - len(set(times))
        assert times_of(path) == pytest.approx([at / 25 for at in range(55)], abs=0.001), words
        with Video(path) as video:
            chunks = video.chunks(video.plan(EVERY_FRAME), FrameFit())
            shown = [each for chunk in chunks for each in chunk.pixels.astype(int)]
        assert len(shown) == 55
        assert max(np.abs(a - b).mean() for a, b in zip(shown, drawn, strict=True)) < 6
    if not alike:
        pytest.skip("this ffmpeg gives each frame its own time")


def test_chunks_follow_one_another_from_the_first_frame_on(tmp_path: Path) -> None:
    chunks, _ = indexes(write_video(tmp_path / "a.mkv", **LATE))
    assert all(one.end == other.start for one, other in pairwise(chunks))
