"""A clip has the sound of its span at its time, as trainers read it; its pictures stay exact."""

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from stages.frames.clip_sound import SoundPart, part_of, sound_of
from stages.frames.cut import ExactCutter
from stages.frames.reader import Reader
from tests.support.media import picture, write_video
from tests.support.trainers import SOUND_RATE, musubi_lacks, musubi_sound

CLICKS = (0.5, 1.0, 1.7, 2.1, 3.1, 3.31, 4.0)
"""Seconds since the first picture."""
SPANS = ((0.0, 2.0), (1.5, 3.5), (2.0, 4.48), (3.0, 5.0))
"""Spans of clips, in seconds since the first picture."""
LOUD = 0.25
LATER = 1105 / 48_000


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video of 125 pictures and 5 s, with clicks in its sound."""

    name: str
    codec: str
    made: str = "aac"
    """Codec of the sound of clips."""
    video: str = "libx264"
    rate: int = 48_000
    layout: str = "stereo"
    begin: float = 0.0
    """Start of the sound, in seconds since the first picture."""
    end: float = 5.0
    gap: tuple[float, float] = (0.0, 0.0)
    """Sound between these seconds is left out."""
    delay: float = 0.0
    """Seconds by which players play it late, because the container does not state the encoder's
    delay."""


SOURCES = {
    "aac": Source(name="a.mp4", codec="aac"),
    "aac in Matroska": Source(name="a.mkv", codec="aac"),
    "aac at 44.1 kHz in Matroska": Source(name="a.mkv", codec="aac", rate=44_100),
    "aac in MPEG-TS": Source(name="a.ts", codec="aac"),
    "aac in FLV": Source(name="a.flv", codec="aac", rate=44_100),
    "mono at 8 kHz": Source(name="a.mp4", codec="aac", rate=8000, layout="mono"),
    "5.1": Source(name="a.mp4", codec="aac", layout="5.1"),
    "mp3": Source(name="a.mp4", codec="libmp3lame", made="mp3"),
    "mp3 in AVI": Source(name="a.avi", codec="libmp3lame", video="mpeg4", made="mp3", delay=LATER),
    "ac3": Source(name="a.mp4", codec="ac3", made="ac3"),
    "eac3": Source(name="a.mkv", codec="eac3", made="eac3"),
    "alac": Source(name="a.mov", codec="alac", made="alac"),
    "flac": Source(name="a.mkv", codec="flac", made="flac"),
    "opus": Source(name="a.mkv", codec="libopus", made="opus"),
    "opus in WebM": Source(name="a.webm", codec="libopus", video="libvpx", made="opus"),
    "vorbis": Source(name="a.webm", codec="vorbis", video="libvpx"),
    "pcm": Source(name="a.mov", codec="pcm_s16le"),
    "pcm at 192 kHz": Source(name="a.mkv", codec="pcm_s16le", rate=192_000),
    "pcm of 8 kHz": Source(name="a.mov", codec="pcm_alaw", rate=8000, layout="mono"),
    "pcm of 5.1": Source(name="a.mkv", codec="pcm_s24le", layout="5.1"),
    "mp2": Source(name="a.mpg", codec="mp2", video="mpeg2video"),
    "wma": Source(name="a.wmv", codec="wmav2", video="wmv2"),
    "late": Source(name="a.mp4", codec="aac", begin=1.42),
    "late in MPEG-TS": Source(name="a.ts", codec="aac", begin=0.7),
    "early": Source(name="a.mkv", codec="aac", begin=-0.84),
    "early in MP4": Source(name="a.mp4", codec="aac", begin=-2.0),
    "short": Source(name="a.mp4", codec="aac", end=2.4),
    "short in Matroska": Source(name="a.mkv", codec="libopus", end=1.9),
    "gap": Source(name="a.mkv", codec="aac", gap=(2.2, 2.8)),
}
ENCODED = {"late": (0, 1), "late in MPEG-TS": (0,), "short": (1, 2, 3), "gap": (1, 2)}
"""Sources whose clips need encoding in part, though MP4 holds their codec."""


def clicks(source: Source) -> NDArray[np.float32]:
    count = round((source.end - source.begin) * source.rate)
    channels = av.AudioLayout(source.layout).nb_channels
    sound = np.zeros((channels, count), np.float32)
    for seconds in CLICKS:
        at = round((seconds - source.begin) * source.rate)
        if 0 <= at < count:
            sound[:, at : at + source.rate // 8000] = 0.9
    return sound


def write(folder: Path, source: Source) -> Path:
    """Write a source, its sound in pieces so that a gap can be left out."""
    path = folder / source.name
    base = Fraction(1, source.rate)
    # A file cannot begin before 0, so that pictures begin later instead.
    late = max(0.0, -source.begin)
    with av.open(str(path), "w") as container:
        video = container.add_stream(source.video, rate=25)
        audio = container.add_stream(
            source.codec, rate=source.rate, layout=source.layout, options={"strict": "experimental"}
        )
        assert isinstance(video, av.VideoStream) and isinstance(audio, av.AudioStream)
        video.height, video.width, video.pix_fmt = 64, 64, "yuv420p"
        video.codec_context.gop_size, video.codec_context.max_b_frames = 25, 0
        if source.codec == "wmav2":
            audio.codec_context.bit_rate = 128_000
        if source.codec == "alac":
            audio.codec_context.format = "s16p"
        packets: list[Any] = []
        for index in range(125):
            frame = av.VideoFrame.from_ndarray(picture(index, 64, 64), format="rgb24")
            frame.pts, frame.time_base = index + round(late * 25), Fraction(1, 25)
            packets += video.encode(frame)
        packets += video.encode(None)
        sound = clicks(source)
        for at in range(0, sound.shape[1], 4096):
            piece = np.ascontiguousarray(sound[:, at : at + 4096])
            part = av.AudioFrame.from_ndarray(piece, format="fltp", layout=source.layout)
            part.sample_rate, part.time_base = source.rate, base
            part.pts = at + round((source.begin + late) * source.rate)
            packets += audio.encode(part)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda each: (each.dts or 0) * each.time_base):
            seconds = float((packet.pts or 0) * packet.time_base)
            if packet.stream is video or not source.gap[0] <= seconds < source.gap[1]:
                container.mux_one(packet)
    return path


def pictures_of(path: Path) -> list[Fraction]:
    """Return the times of pictures since the start of the file, as a plain decode gives them."""
    with av.open(str(path)) as container:
        zero = min((s.start_time or 0) * Fraction(s.time_base or 0) for s in container.streams)
        shown = [(f.pts or 0, Fraction(f.time_base or 0)) for f in container.decode(video=0)]
        return [pts * base - zero for pts, base in shown]


def expected_clicks(source: Source, zero: Fraction, seconds: float) -> list[float]:
    """Return the times of clicks in a clip that begins so long after the first picture."""
    there = [at for at in CLICKS if source.begin <= at < source.end]
    return within([at + source.delay for at in there], float(zero), seconds)


def clicks_in(times: NDArray[np.float64], levels: NDArray[np.float64]) -> list[float]:
    """Return the times of the loudest samples, one of each tenth of a second."""
    found: list[float] = []
    for at in np.argsort(-levels, kind="stable"):
        if levels[at] < max(0.05, LOUD * levels.max()):
            break
        if all(abs(times[at] - other) > 0.05 for other in found):
            found.append(float(times[at]))
    return sorted(found)


def heard(path: Path) -> list[float]:
    """Times of clicks as musubi reads them."""
    levels = np.abs(musubi_sound(path, 1)[0].astype(np.float64))
    return clicks_in(np.arange(len(levels)) / SOUND_RATE, levels)


def within(times: Sequence[float], zero: float, seconds: float) -> list[float]:
    """Return the times since `zero` in a part. One at its very ends may be in it or not."""
    return [at - zero for at in times if 0.002 <= at - zero < seconds - 0.002]


def packets(path: Path) -> list[tuple[bytes, int | None, int | None, int | None]]:
    with av.open(str(path)) as container:
        found = container.demux(container.streams.video[0])
        return [(bytes(p), p.pts, p.dts, p.duration) for p in found if p.size]


def spans_of(pictures: Sequence[Fraction]) -> list[tuple[float, float]]:
    return [(float(pictures[0]) + start, float(pictures[0]) + end) for start, end in SPANS]


def cut(
    path: Path, folder: Path, spans: Sequence[tuple[float, float]], **more: Any
) -> list[dict[str, Any]]:
    folder.mkdir()
    cutter = ExactCutter(path, spans, **more)
    made = [cutter.cut(at, folder / f"{at}") for at in range(len(spans))]
    cutter.close()
    return made


def sounding(path: Path, start: float = 0.0, end: float = 2.0, **more: Any) -> Path:
    """A clip with sound, in a folder beside the file."""
    folder = path.parent / "clips"
    (made,) = cut(path, folder, [(start, end)], sound=True, **more)
    return folder / str(made["file"])


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", SOURCES)
def test_a_clip_has_the_sound_of_its_span_at_its_time(tmp_path: Path, kind: str) -> None:
    source = SOURCES[kind]
    path = write(tmp_path, source)
    pictures = pictures_of(path)
    spans = spans_of(pictures)
    cut(path, tmp_path / "silent", spans)
    for at, made in enumerate(cut(path, tmp_path / "clips", spans, sound=True)):
        clip, (start, end) = tmp_path / "clips" / made["file"], spans[at]
        shown = [t for t in pictures if start - 1e-6 <= t < end - 1e-6]
        seconds = seconds_of(clip)
        expected = expected_clicks(source, shown[0] - pictures[0], seconds)
        found = within(heard(clip), 0.0, seconds)
        assert found == pytest.approx(expected, abs=1e-3), (at, made)
        assert not musubi_lacks(musubi_sound(clip, 1), seconds)
        with av.open(str(clip)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert [stream.type for stream in container.streams] == ["video", "audio"]
            is_encoded = at in ENCODED.get(kind, ())
            codec = audio.codec_context.codec.canonical_name
            assert codec == ("aac" if is_encoded else source.made)
            assert video.frames == len(shown) == sum(1 for _ in container.decode(video))
            (audio_seconds,) = edits(clip)
            assert audio_seconds == pytest.approx(seconds, abs=0.0021)
        with av.open(str(clip)) as container:
            assert next(container.decode(audio=0)).pts == 0
        assert packets(clip) == packets(tmp_path / "silent" / made["file"])


def seconds_of(path: Path) -> float:
    """Return the length of a clip's pictures."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return float((stream.duration or 0) * Fraction(stream.time_base or 0))


def edits(path: Path) -> list[float]:
    """Return how many seconds each edit list of an MP4 file shows: ISO/IEC 14496-12, 8.6.6."""
    content = path.read_bytes()
    at = content.index(b"mvhd")
    scale = struct.unpack_from(">I", content, at + 4 + 12)[0]
    found = []
    for match in re.finditer(b"elst\0\0\0\0", content):
        count = struct.unpack_from(">I", content, match.end())[0]
        places = [match.end() + 4 + 12 * at for at in range(count)]
        entries = [struct.unpack_from(">Ii", content, place) for place in places]
        assert all(media >= 0 for _, media in entries), "the sound begins with the clip"
        found.append(sum(duration for duration, _ in entries) / scale)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg program")
@pytest.mark.parametrize("kind", ["aac", "opus", "mp3", "pcm", "late", "early"])
def test_ffmpeg_plays_the_same(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, SOURCES[kind])
    pictures = pictures_of(path)
    spans = spans_of(pictures)
    for at, made in enumerate(cut(path, tmp_path / "clips", spans, sound=True)):
        (start, end), clip = spans[at], tmp_path / "clips" / made["file"]
        first = next(t for t in pictures if t >= start - 1e-6)
        # With `async` its times count.
        mono = ["-vn", "-af", "aresample=48000:async=1", "-ac", "1", "-f", "f32le", "-"]
        played = subprocess.check_output(["ffmpeg", "-v", "error", "-i", clip, *mono])
        levels = np.abs(np.frombuffer(played, np.float32).astype(np.float64))
        found = clicks_in(np.arange(len(levels)) / 48_000, levels)
        expected = expected_clicks(SOURCES[kind], first - pictures[0], end - start - 0.03)
        assert within(found, 0.0, end - start - 0.03) == pytest.approx(expected, abs=1e-3)


def test_a_clip_of_a_silent_video_has_the_bytes_of_one_without_the_option(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", ticks=range(150), gop=30)
    silent = cut(path, tmp_path / "silent", SPANS)
    assert cut(path, tmp_path / "clips", SPANS, sound=True) == silent
    for made in silent:
        both = [tmp_path / name / made["file"] for name in ("silent", "clips")]
        assert both[0].read_bytes() == both[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "ac3", "flac"])
def test_a_clip_whose_sound_is_damaged_has_none_and_the_others_keep_theirs(
    tmp_path: Path, codec: str
) -> None:
    source = Source(name="whole.mkv", codec=codec)
    whole = write(tmp_path, source)
    path, data = tmp_path / "a.mkv", bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        for packet in container.demux(audio=0):
            if packet.pos is not None and 2.5 <= (packet.pts or 0) * packet.time_base < 2.6:
                head = bytes(packet)[:16]
                at = data.index(head, packet.pos)
                data[at : at + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    pictures = pictures_of(whole)
    spans = spans_of(pictures)
    for at, made in enumerate(cut(path, tmp_path / "clips", spans, sound=True)):
        clip, (start, end) = tmp_path / "clips" / made["file"], spans[at]
        with av.open(str(clip)) as container:
            assert container.streams.video[0].frames == pytest.approx((end - start) * 25, abs=1)
            has_sound = bool(container.streams.audio)
        assert has_sound == (start >= 2.6 or end <= 2.5)
        assert made.get("silent", "") == ("" if has_sound else "its sound is damaged")
        if has_sound:
            first = next(t for t in pictures if t >= start - 1e-6)
            expected = expected_clicks(source, first - pictures[0], end - start)
            assert within(heard(clip), 0.0, end - start) == pytest.approx(expected, abs=1e-3)


def test_a_file_that_ends_within_its_sound_gets_silence_for_the_rest(tmp_path: Path) -> None:
    whole = write(tmp_path, Source(name="whole.ts", codec="aac"))
    path = tmp_path / "a.ts"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 5])
    assert heard(sounding(path))[:2] == pytest.approx([0.5, 1.0], abs=1e-3)


def test_a_clock_that_was_reset_gives_no_sound(tmp_path: Path) -> None:
    path = write(tmp_path, SOURCES["aac in MPEG-TS"])
    reader = Reader(path, threads=1)
    container, timeline = reader.decoder.container, reader.timeline
    for other in (replace(timeline, jumps=((40, 90_000),)), replace(timeline, offset=17.0)):
        part = part_of(sound_of(path, container, other), 0.0, Fraction(2))
        assert part == (None, {"silent": "the clock of the file is reset or wrong"})
    reader.close()


def test_a_clip_of_a_clip_hears_nothing_that_its_edit_list_hides(tmp_path: Path) -> None:
    source = SOURCES["aac"]
    again = sounding(sounding(write(tmp_path, source), 1.52, 3.52), 0.0, 1.2)
    found = within(heard(again), 0.0, 1.2)
    assert found == pytest.approx(expected_clicks(source, Fraction(38, 25), 1.2), abs=1e-3)


@pytest.mark.in_turn
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg program")
@pytest.mark.parametrize(
    ("default", "track", "count"),
    [("0", 0, 3), ("1", 0, 0), ("none", 0, 3), ("1", 1, 3), ("0", 2, 0)],
)
def test_of_several_tracks_the_default_one_is_taken_or_the_requested_one(
    tmp_path: Path, default: str, track: int, count: int
) -> None:
    clicks, path = write(tmp_path, SOURCES["aac"]), tmp_path / "two.mkv"
    silence = ["-f", "lavfi", "-t", "5", "-i", "anullsrc=r=48000:cl=mono"]
    maps = ["-map", "0:v", "-map", "0:a", "-map", "1:a", "-c:v", "copy", "-c:a", "aac"]
    for at in "01":
        maps += [f"-disposition:a:{at}", "default" if at == default else "0"]
    command = ["ffmpeg", "-v", "error", "-i", str(clicks), *silence, *maps, str(path)]
    subprocess.run(command, check=True)
    assert len(heard(sounding(path, track=track))) == count


@pytest.mark.parametrize("layout", ["3.0", "quad", "2.1"])
def test_odd_layouts_become_stereo(tmp_path: Path, layout: str) -> None:
    clip = sounding(write(tmp_path, Source(name="a.mkv", codec="pcm_s16le", layout=layout)))
    with av.open(str(clip)) as container:
        assert container.streams.audio[0].layout.name == "stereo"
    assert len(heard(clip)) == 3


def test_sound_that_no_filter_takes_leaves_a_clip_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such layout")

    path = write(tmp_path, SOURCES["pcm"])
    monkeypatch.setattr(SoundPart, "_silence", refuse)
    (made,) = cut(path, tmp_path / "clips", [(0.0, 2.0)], sound=True)
    assert made["silent"] == "its sound cannot be decoded and encoded (no such layout)"
    with av.open(str(tmp_path / "clips" / made["file"])) as container:
        assert [(stream.type, stream.frames) for stream in container.streams] == [("video", 50)]
