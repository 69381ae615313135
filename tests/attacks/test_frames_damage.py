"""Damaged files are cut as far as they can be read, and say so; unusable ones say why."""

import os
import struct
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from artifacts.errors import MediaError
from artifacts.frame_fit import FrameFit
from artifacts.schema import Sampling
from stages.frames.chunk import Chunk
from stages.frames.reader import MAX_BAD_PACKETS
from stages.frames.video import Video
from stages.process.memory import Sampler
from tests.support.media import (
    decode_plainly,
    decoded_packets,
    digest_of_pixels,
    flip_bits,
    flip_time,
    spoil,
    write_audio,
    write_video,
)

EVERY_SECOND = Sampling(chunk_seconds=2, fps=1, max_frames=32)
FAST_START = {"movflags": "faststart"}


def cut(path: Path) -> tuple[list[Chunk], tuple[str, ...]]:
    with Video(path) as video:
        chunks = list(video.chunks(video.plan(EVERY_SECOND), FrameFit()))
        return chunks, (*video.warnings(), *video.damage())


def refusal_of(path: Path) -> MediaError:
    """What is said of a file that cannot be used."""
    with pytest.raises(MediaError) as caught:
        Video(path)
    return caught.value


def test_a_file_cut_short_is_cut_up_to_the_damage_with_a_warning(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4", ticks=range(300), container_options=FAST_START)
    (short := tmp_path / "short.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    chunks, warnings = cut(short)
    last = decode_plainly(short)[-1].seconds
    assert 2 < last < 8
    assert chunks[-1].index.start <= last <= chunks[-1].index.end
    assert len(warnings) == 1
    assert "of the stated 10.00 s" in warnings[0]


def test_packets_that_cannot_be_decoded_are_passed_over(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", ticks=range(300))
    spoilt = spoil(whole, tmp_path / "spoilt.mp4", which=lambda at: 80 <= at < 100)
    chunks, warnings = cut(spoilt)
    assert [c.index.index for c in chunks] == [0, 1, 2, 3, 4]
    assert "1 of the requested frames could not be decoded, the first at 3.00 s" in warnings
    assert any("packets could not be decoded and were skipped" in text for text in warnings)
    plain = {frame.seconds for frame in decode_plainly(spoilt)}
    assert {seconds for chunk in chunks for seconds in chunk.index.times} <= plain


def test_a_stretch_without_a_readable_frame_is_left_out_with_a_warning(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mov", ticks=range(300), codec="mjpeg")
    chunks, warnings = cut(spoil(whole, tmp_path / "spoilt.mov", which=lambda at: 50 <= at < 130))
    assert [c.index.index for c in chunks] == [0, 2, 3, 4]
    assert any("without a decodable frame: 1 chunk," in text for text in warnings)
    assert all(c.index.start <= t < c.index.end for c in chunks for t in c.index.times)


@pytest.fixture(scope="module", params=["libx264", "libx265", "mpeg4"])
def damaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 8 s with damage in several groups of pictures, where a decoder conceals it."""
    folder, codec = tmp_path_factory.mktemp("damaged"), request.param
    quiet = {"options": {"x265-params": "log-level=none"}} if codec == "libx265" else {}
    shape: dict[str, Any] = {"size": (96, 128), "gop": 30, **quiet}
    whole = write_video(folder / "a.mp4", ticks=range(240), codec=codec, **shape)
    if codec == "libx265":  # FFmpeg does not notice every bit error in HEVC
        return spoil(whole, folder / "b.mp4", which=range(40, 200, 23).__contains__)
    return flip_bits(whole, folder / "b.mp4", packets=range(40, 200, 23))


@pytest.mark.slow
def test_what_refers_to_a_damaged_frame_is_damaged_up_to_the_next_keyframe(tmp_path: Path) -> None:
    """Whether a reader's frames differ from those of the undamaged file."""
    options = {"bf": "0", "sc_threshold": "0"}
    whole = write_video(tmp_path / "a.mp4", ticks=range(360), gop=150, options=options)
    spoilt = flip_bits(whole, tmp_path / "b.mp4", packets=range(200, 206))  # none of them is seen
    sound = {frame.seconds: frame.digest for frame in decode_plainly(whole)}
    found = {frame.seconds: frame.digest for frame in decode_plainly(spoilt)}
    chunks, warnings = cut(spoilt)
    wrong = {seconds for seconds, digest in sound.items() if found.get(seconds) != digest}
    differ = [chunk.index.start for chunk in chunks if wrong.intersection(chunk.index.times)]
    assert differ == [6.0, 8.0]
    assert [chunk.index.start for chunk in chunks if chunk.index.warnings] == differ
    assert warnings == ("3 decoded frames damaged, the first at 7.00 s",)


THREE_A_SECOND = Sampling(chunk_seconds=2, fps=3, max_frames=32)


def cut_by(
    path: Path, threads: int, *, only: Collection[int] = range(99)
) -> tuple[dict[int, str], tuple[str, ...]]:
    """Digests of the chunks, by their numbers, and the warnings."""
    with Video(path, threads=threads) as video:
        plans = [plan for plan in video.plan(THREE_A_SECOND) if plan.index in only]
        chunks = video.chunks(plans, FrameFit())
        digests = {chunk.index.index: digest_of_pixels(chunk.pixels) for chunk in chunks}
        return digests, (*video.warnings(), *video.damage())


@pytest.mark.in_turn
def test_frames_of_a_damaged_file_depend_on_no_threads_nor_where_it_resumes(damaged: Path) -> None:
    alone, warnings = cut_by(damaged, 1)
    assert len(alone) == 4 and warnings
    for threads in (2, 4, 8):
        assert cut_by(damaged, threads) == (alone, warnings)
    for only in ((1, 2, 3), (2, 3), (3,), (0, 2), (1,)):
        assert cut_by(damaged, 2, only=only)[0] == {at: alone[at] for at in only}


def test_frames_of_a_damaged_vp8_file_do_not_depend_on_threads(tmp_path: Path) -> None:
    """Its decoder reports no damage at all."""
    fast = {"deadline": "realtime", "cpu-used": "8"}
    shape: dict[str, Any] = {"ticks": range(120), "size": (96, 128), "gop": 30}
    whole = write_video(tmp_path / "a.webm", codec="libvpx", options=fast, **shape)
    damaged = flip_bits(whole, tmp_path / "b.webm", packets=range(40, 100, 23))
    alone = cut_by(damaged, 1)
    assert [cut_by(damaged, threads) for threads in (2, 4, 8)] == [alone] * 3


@pytest.mark.slow
def test_shots_of_a_damaged_file_do_not_depend_on_threads(damaged: Path) -> None:
    found = []
    for threads in (1, 2, 4):
        with Video(damaged, threads=threads) as video:
            shots = list(video.shots(replace(THREE_A_SECOND, shots=True), FrameFit()))
            found.append([(shot.index, digest_of_pixels(shot.pixels)) for shot in shots])
    assert found[1] == found[0] and found[2] == found[0]


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_open_groups_of_pictures_are_not_taken_for_damage(tmp_path: Path, codec: str) -> None:
    """The frames before a keyframe that the decoder seeks to cannot be decoded; nobody needs
    them."""
    options = {
        "libx264": {"bf": "3", "x264-params": "open-gop=1:scenecut=0"},
        "libx265": {"x265-params": "log-level=none:open-gop=1:scenecut=0:bframes=3"},
        "mpeg2video": {"bf": "2"},
    }[codec]
    name = "a.ts" if codec == "mpeg2video" else "a.mkv"
    path = write_video(tmp_path / name, ticks=range(600), codec=codec, options=options, gop=30)
    sampling = Sampling(chunk_seconds=5, fps=0.4, max_frames=8)
    for threads in (1, 4):
        with Video(path, threads=threads) as video:
            for _ in video.chunks(video.plan(sampling), FrameFit()):
                assert video._reader.decoder.strict
            assert video._reader._returns == 0


@pytest.mark.parametrize("packet", [0, 101, 299])
def test_one_wrong_time_does_not_make_a_video_longer(tmp_path: Path, packet: int) -> None:
    whole = write_video(tmp_path / "whole.ts", ticks=range(300))
    chunks, _ = cut(whole)
    for bit in (20, 29, 32):
        found, warnings = cut(flip_time(whole, tmp_path / "flipped.ts", packet=packet, bit=bit))
        assert [c.index.index for c in found] == [c.index.index for c in chunks]
        assert found[-1].index.end == pytest.approx(chunks[-1].index.end, abs=0.1)
        # Where it is the very first, frames are counted instead, and none is lost.
        message = "because of a wrong time: 1 frame"
        assert [message in text for text in warnings] == ([True] if packet else [])
        times = [[t for c in cut_ for t in c.index.times] for cut_ in (chunks, found)]
        assert times[1] == pytest.approx(times[0], abs=0.05)


@pytest.mark.parametrize("index", [0, 59])
def test_one_absurd_time_of_display_makes_no_video_of_weeks(tmp_path: Path, index: int) -> None:
    data = bytearray(write_video(tmp_path / "a.flv", ticks=range(60)).read_bytes())
    with av.open(str(tmp_path / "a.flv")) as container:
        found = [p.pos for p in container.demux(container.streams.video[0]) if p.size]
    # Adobe FLV 10.1, E.4.3.1: 13 bytes on, by how much a frame is shown later than decoded.
    data[(found[index] or 0) + 13] ^= 0x80
    (tmp_path / "b.flv").write_bytes(data)
    chunks, _ = cut(tmp_path / "b.flv")
    assert chunks[-1].index.end == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("options", [{"bf": "2"}, {"bf": "0"}])
def test_a_clock_of_weeks_a_frame_is_not_believed(tmp_path: Path, options: dict[str, str]) -> None:
    path = write_video(tmp_path / "a.avi", ticks=range(60), codec="mpeg4", options=options)
    data = bytearray(path.read_bytes())
    at = data.index(b"vids") + 4 + 16  # of the header of the stream: a tick, as a fraction
    data[at : at + 4] = struct.pack("<I", 1 << 30)
    path.write_bytes(data)
    chunks, warnings = cut(path)
    assert chunks[-1].index.end == pytest.approx(60 / 25, abs=0.1)
    assert any("its clock is wrong" in text for text in warnings)


@pytest.mark.parametrize(("name", "last"), [("a.ts", 10), ("a.mp4", 1), ("a.mkv", 1)])
def test_a_picture_that_stands_for_minutes_does_so(tmp_path: Path, name: str, last: int) -> None:
    ticks = [*range(60), *range(9000, 9060), *range(30000, 30000 + last)]
    chunks, warnings = cut(write_video(tmp_path / name, ticks=ticks))
    assert warnings == ()
    assert chunks[-1].index.times[-1] >= 1000 - 0.1


@pytest.mark.slow
def test_endless_rubbish_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = MAX_BAD_PACKETS + 500
    whole = write_video(tmp_path / "whole.mov", ticks=range(count), codec="mjpeg", size=(16, 16))
    spoilt = spoil(whole, tmp_path / "spoilt.mov", which=lambda at: at >= 30)
    tried = decoded_packets(monkeypatch)
    with Video(spoilt) as video:
        plans = video.plan(Sampling(chunk_seconds=1000, fps=30, max_frames=5000))
        (chunk,) = video.chunks(plans, FrameFit())
    assert len(chunk.index.times) == 30
    # Each frame behind is tried from its own keyframe, but not up to the end of the file.
    assert 30 <= len(tried) <= 40 * count


def test_an_unusable_file_says_what_and_where_and_what_to_do(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", ticks=range(90)).read_bytes()
    files = {kind: tmp_path / f"{kind}.mp4" for kind in ("empty", "not-media", "no-moov", "folder")}
    files["missing"] = tmp_path / "gone.mp4"
    files["unreadable"] = tmp_path / ("a" * 300)
    files["no-video"] = write_audio(tmp_path / "sound.mp4")
    whole_mov = write_video(tmp_path / "a.mov", codec="mjpeg")
    files["no-frames"] = spoil(whole_mov, tmp_path / "b.mov", which=lambda at: True)
    files["empty"].touch()
    files["folder"].mkdir()
    files["not-media"].write_text("Dear diary, today I renamed myself to .mp4.\n" * 30)
    files["no-moov"].write_bytes(whole[: len(whole) // 2])
    for kind, path in files.items():
        refusal = refusal_of(path)
        assert refusal.kind == kind and refusal.hint
        assert str(path) in refusal.message and "\n" not in refusal.message


def test_a_cover_picture_in_a_sound_file_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        assert isinstance(cover, av.VideoStream)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        container.mux(cover.encode(None))
    assert refusal_of(path).kind == "no-video"


URL = "http://127.0.0.1:9/a.ts"
PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {0}\n",
    "dash": '<?xml version="1.0"?>\n<MPD type="static" profiles="urn:mpeg:dash:profile:full:2011">'
    "<Period><AdaptationSet><Representation id='0' bandwidth='1'><BaseURL>{0}</BaseURL>"
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("form", PLAYLISTS)
def test_a_file_that_names_others_is_refused_as_a_playlist(tmp_path: Path, form: str) -> None:
    write_video(tmp_path / "real.ts")
    for name, target in (("list.mp4", "{0}/real.ts"), ("list", "real.ts"), ("list.m3u8", URL)):
        (path := tmp_path / name).write_text(PLAYLISTS[form].format(target.format(tmp_path)))
        assert refusal_of(path).kind == "playlist"
    (tmp_path / "list.mp4").write_text("# a comment\n" + PLAYLISTS[form].format("real.ts"))
    refusal_of(tmp_path / "list.mp4")


def test_a_name_like_a_series_is_the_file_itself(tmp_path: Path) -> None:
    for name in ("frame%d.exr", "frame1.exr"):
        with av.open(str(tmp_path / "x.png"), "w", format="image2") as container:
            stream = container.add_stream("png", rate=1)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
            container.mux(stream.encode(av.VideoFrame(16, 16, "rgb24")))
        (tmp_path / "x.png").rename(tmp_path / name.replace("exr", "png"))
    chunks, _ = cut(tmp_path / "frame%d.png")
    assert len(chunks) == 1


def test_a_name_that_is_not_unicode_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9 \xff.mp4")
    write_video(tmp_path / "plain.mp4").rename(path)
    assert len(cut(path)[0]) == 1


def test_an_index_of_absurd_size_is_damage_and_not_a_lack_of_memory(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "a.mp4", ticks=range(90)).read_bytes())
    at = data.index(b"stss") + 8
    data[at : at + 4] = struct.pack(">I", 1 << 29)  # how many keyframes there are
    (tmp_path / "b.mp4").write_bytes(data)
    assert refusal_of(tmp_path / "b.mp4").kind == "damaged"


def test_a_stream_that_begins_late_in_a_broadcast_does_not_end_it(tmp_path: Path) -> None:
    silent = write_video(tmp_path / "a.ts", ticks=range(60))
    loud = write_video(tmp_path / "b.ts", ticks=range(60, 120), audio=True)
    (joined := tmp_path / "joined.ts").write_bytes(silent.read_bytes() * 40 + loud.read_bytes())
    chunks, warnings = cut(joined)
    assert chunks[-1].index.end == pytest.approx(41 * 2, abs=0.5)
    assert any("its clock is reset" in text for text in warnings)


@pytest.mark.parametrize(("stated", "kind"), [(True, "too-large"), (False, "no-frames")])
def test_absurd_sizes_are_refused_undecoded(tmp_path: Path, stated: bool, kind: str) -> None:
    data = bytearray(write_video(tmp_path / "a.avi", codec="mjpeg").read_bytes())
    edge = 14000  # FFmpeg itself refuses 16384
    if stated:
        at = data.index(b"strf") + 12
        data[at : at + 8] = struct.pack("<II", edge, edge)
    at = -1
    while (at := data.find(b"\xff\xc0\x00\x11\x08", at + 1)) >= 0:
        data[at + 5 : at + 9] = struct.pack(">HH", edge, edge)
    (tmp_path / "b.avi").write_bytes(data)
    with Sampler("cpu") as memory:
        before = memory.peak_host_bytes
        assert refusal_of(tmp_path / "b.avi").kind == kind
    assert memory.peak_host_bytes - before < 100 << 20
