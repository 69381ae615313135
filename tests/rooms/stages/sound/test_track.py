"""The sound of a file, chunk by chunk: on the players' clock, mixed and resampled as by hand, and
what is wrong with a file is named."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.errors import MediaError
from stages.frames.media_opening import RESET
from stages.sound.track import NO_SOUND, SILENT, ChunkSound, notes_of, sound_of_chunks
from tests.support.media import flip_time, write_video
from tests.support.mutations import write_mutations
from tests.support.sound import (
    NEEDS_FFMPEG,
    RATE,
    bounds,
    clicks,
    noise,
    played,
    tones,
    write_sounding,
)

pytestmark = NEEDS_FFMPEG
CONTAINERS = {
    "aac.mp4": "aac",
    "mp3.mp4": "libmp3lame",
    "ac3.mp4": "ac3",
    "opus.mkv": "libopus",
    "flac.mkv": "flac",
    "aac.mkv": "aac",
    "pcm.mov": "pcm_s16le",
    "vorbis.webm": "libvorbis",
    "aac.ts": "aac",
}
"""Name of a file → encoder of its sound."""
LEADS = {"opus.mkv": 0.0065}
"""Seconds by which FFmpeg's muxer states the sound before the picture: Matroska's CodecDelay, which
it takes off twice."""
WHOLE = [(0.0, 3600.0)]
LEAST_STEP = 1 / (1 << 15)
"""Of the stored samples; rounding may take half of it."""


def heard(
    path: Path, chunks: Sequence[tuple[float, float]] = WHOLE, **how: Any
) -> list[ChunkSound]:
    return list(sound_of_chunks(path, chunks, RATE, **how))


def joined(sounds: Sequence[ChunkSound]) -> NDArray[np.int16]:
    return np.concatenate([sound.samples for sound in sounds])


def peaks(samples: NDArray[np.int16], moments: Sequence[float]) -> list[float]:
    """Seconds of the loudest sample near each of these moments."""
    found = []
    for moment in moments:
        first = round((moment - 0.2) * RATE)
        near = np.abs(samples[first : first + round(0.4 * RATE)].astype(int))
        assert near.max() > 1000, moment
        found.append((first + int(near.argmax())) / RATE)
    return found


def differs_by(samples: NDArray[np.int16], expected: NDArray[np.float32]) -> float:
    """The largest difference, but at both ends, where filters see what comes before and after."""
    count, edge = min(len(expected), len(samples)), round(0.05 * RATE)
    away = np.abs(samples[edge : count - edge] / (1 << 15) - expected[edge : count - edge])
    return float(away.max())


@pytest.mark.parametrize("name", CONTAINERS)
def test_clicks_are_heard_at_the_times_of_their_frames_in_nine_containers(
    tmp_path: Path, name: str
) -> None:
    path = write_sounding(tmp_path / name, [clicks(5, (1, 2, 3, 4), 2)], CONTAINERS[name])
    chunks = bounds(path, 1.7)
    moments = [chunks[0][0] - LEADS.get(name, 0) + second for second in (1, 2, 3, 4)]
    (whole,) = heard(path)
    assert peaks(whole.samples, moments) == pytest.approx(moments, abs=0.001)
    cut, first = heard(path, chunks), round(chunks[0][0] * RATE)
    assert [len(sound.samples) for sound in cut[:-1]] == [
        round(end * RATE) - round(start * RATE) for start, end in chunks[:-1]
    ]
    beyond = min(round(chunks[-1][1] * RATE), len(whole.samples))
    assert np.array_equal(joined(cut), whole.samples[first:beyond])
    assert notes_of([sound.meta for sound in cut]) == []


@pytest.mark.slow
@pytest.mark.parametrize("late", [(0, 1.42), (1.44, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("name", ["aac.mp4", "opus.mkv", "aac.ts", "pcm.mov"])
def test_sound_that_begins_before_or_after_the_picture_keeps_its_times(
    tmp_path: Path, name: str, late: tuple[float, float]
) -> None:
    made = noise(7) * 0.1 + clicks(7, (1, 2, 3), 2)
    path = write_sounding(tmp_path / name, [made], CONTAINERS[name], seconds=7, late=late)
    chunks = bounds(path, 2)
    # The file may begin with what an encoder puts before its sound.
    assert chunks[0][0] == pytest.approx(late[0], abs=0.05)
    (whole,) = heard(path)
    begin = chunks[0][0] - LEADS.get(name, 0) - late[0] + late[1]
    moments = [begin + second for second in (1, 2, 3)]
    assert peaks(whole.samples, moments) == pytest.approx(moments, abs=0.001)
    expected = played(path)
    assert abs(len(expected) - len(whole.samples)) <= 0.03 * RATE
    assert differs_by(whole.samples, expected) <= 0.6 * LEAST_STEP
    first, beyond = round(chunks[0][0] * RATE), round(chunks[-1][1] * RATE)
    assert np.array_equal(joined(heard(path, chunks)), whole.samples[first:beyond])


def test_a_chunk_that_begins_before_time_0_begins_with_silence(tmp_path: Path) -> None:
    path = write_sounding(tmp_path / "a.mp4", [clicks(3, (1,))], "aac", seconds=3)
    (chunk,) = heard(path, [(-0.5, 2)])
    assert len(chunk.samples) == 2.5 * RATE
    assert peaks(chunk.samples, (1.5,)) == pytest.approx([1.5], abs=0.001)


def test_some_chunks_have_the_bytes_that_they_have_among_all(tmp_path: Path) -> None:
    path = write_sounding(tmp_path / "a.mp4", [noise(5)], "aac -ar 44100")
    chunks = bounds(path, 1)
    every = heard(path, chunks)
    for at in range(len(chunks)):
        (alone,) = heard(path, chunks[at : at + 1])
        assert alone.meta == every[at].meta
        assert np.array_equal(alone.samples, every[at].samples)


def gains(samples: NDArray[np.int16], hertz: Sequence[int]) -> list[float]:
    """How loud each tone of 0.1 is in a second of sound."""
    spectrum = np.abs(np.fft.rfft(samples[RATE : 2 * RATE] / (1 << 15))) * 2 / RATE / 0.1
    return [float(spectrum[each]) for each in hertz]


HALF = 0.5**0.5
MIXES = {
    ("mono", "flac"): [1.0],
    ("stereo", "flac"): [0.5, 0.5],
    ("3.0", "flac"): [0.5 / (1 + HALF), 0.5 / (1 + HALF), HALF / (1 + HALF)],
    ("5.1", "flac"): [each / (1 + 2 * HALF) for each in (0.5, 0.5, HALF, 0, HALF / 2, HALF / 2)],
    ("7.1", "aac -b:a 1024k"): [
        each / (1 + 3 * HALF) for each in (0.5, 0.5, HALF, 0, *[HALF / 2] * 4)
    ],
}
"""Layout and encoder → gain of each channel: ITU-R BS.775, divided by the sum for one side."""


@pytest.mark.in_turn
@pytest.mark.parametrize(("layout", "codec"), MIXES)
def test_channels_are_mixed_with_gains_that_sum_to_one(
    tmp_path: Path, layout: str, codec: str
) -> None:
    expected = MIXES[layout, codec]
    hertz = [200 + 150 * at for at in range(len(expected))]
    flags = ("-af", f"channelmap=channel_layout={layout}")
    (whole,) = heard(write_sounding(tmp_path / "a.mkv", [tones(3, *hertz)], codec, *flags))
    found = gains(whole.samples, hertz)
    assert found == pytest.approx(expected, abs=0.01)
    assert sum(found) == pytest.approx(1, abs=0.02)


def test_loud_sound_in_both_channels_is_not_clipped(tmp_path: Path) -> None:
    path = write_sounding(tmp_path / "a.mov", [tones(2, 300, 300, gain=0.85)], "pcm_s16le")
    assert heard(path)[0].meta["peak"] / (1 << 15) == pytest.approx(0.85, abs=0.01)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s24le", "pcm_f32le", "pcm_f64le"])
def test_every_format_of_samples_is_read_at_its_scale(tmp_path: Path, codec: str) -> None:
    path = write_sounding(tmp_path / "a.mkv", [tones(2, 300)], codec, late=(0, 0.5))
    (whole,) = heard(path)
    assert gains(whole.samples, [300]) == pytest.approx([1], abs=0.02)
    assert np.abs(whole.samples[: round(0.49 * RATE)]).max() <= 1


def test_the_default_track_is_read_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    both = [tones(2, 300), tones(2, 700)]
    flags = ("-disposition:a:0", "0", "-disposition:a:1", "default")
    path = write_sounding(tmp_path / "a.mkv", both, "flac", *flags, seconds=2)
    none = write_sounding(tmp_path / "b.mkv", both, "flac", *flags[:3], "0", seconds=2)
    for file, track, number in ((path, 0, 2), (path, 1, 1), (path, 2, 2), (none, 0, 1)):
        (whole,) = heard(file, track=track)
        assert whole.track == number
        wanted = [float(at == number) for at in (1, 2)]
        assert gains(whole.samples, [300, 700]) == pytest.approx(wanted, abs=0.01)


def test_a_track_that_is_not_there_fails(tmp_path: Path) -> None:
    path = write_sounding(tmp_path / "a.mkv", [tones(1, 300)], "flac", seconds=1)
    with pytest.raises(MediaError) as raised:
        heard(path, track=2)
    assert raised.value.message == "sound of track 2 is not there (it has 1)"


def test_a_file_without_sound_has_no_samples_and_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    for track in (0, 2):
        sounds = heard(path, [(0, 0.5), (0.5, 1)], track=track)
        assert [(len(s.samples), s.track, s.note) for s in sounds] == [(0, 0, NO_SOUND)] * 2


def test_a_silent_track_is_read_and_named(tmp_path: Path) -> None:
    path = write_sounding(tmp_path / "a.mp4", [clicks(2, ())], "aac", seconds=2)
    (sound,) = heard(path, [(0, 2)])
    assert (len(sound.samples), sound.track) == (2 * RATE, 1)
    assert notes_of([sound.meta]) == [SILENT]


def test_chunks_behind_the_end_of_the_track_have_no_samples(tmp_path: Path) -> None:
    path = write_sounding(tmp_path / "a.mov", [tones(2.5, 300)], "pcm_s16le", seconds=6)
    found = [len(sound.samples) for sound in heard(path, bounds(path, 2))]
    assert found == [2 * RATE, round(0.5 * RATE), 0]


def test_a_codec_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = write_sounding(tmp_path / "a.mov", [tones(2, 300)], "pcm_s16le", seconds=2)
    path.write_bytes(path.read_bytes().replace(b"sowt", b"zzzz"))
    (sound,) = heard(path, [(0, 2)])
    assert (len(sound.samples), sound.track) == (0, 1)
    assert notes_of([sound.meta]) == ["its sound cannot be decoded"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("aac.mp4", 0.6), ("aac.ts", 0.6), ("opus.mkv", 0.6)])
def test_of_a_truncated_file_all_is_kept_that_ffmpeg_decodes(
    tmp_path: Path, name: str, share: float
) -> None:
    flags = ("-movflags", "faststart") if name.endswith("mp4") else ()
    path = write_sounding(tmp_path / name, [noise(8)], CONTAINERS[name], *flags, seconds=8)
    data = path.read_bytes()
    path.write_bytes(data[: round(share * len(data))])
    (whole,) = heard(path)
    expected = played(path)
    assert 3 < len(expected) / RATE < 7
    assert len(whole.samples) == pytest.approx(len(expected), abs=0.05 * RATE)
    assert differs_by(whole.samples, expected) <= 0.6 * LEAST_STEP
    if name.endswith("mp4"):
        assert "of the stated 8.0" in notes_of([whole.meta])[0]


def spoiled(path: Path, which: range, by: bytes = b"\xff") -> Path:
    """The same file with the packets of its sound that these numbers name filled with rubbish."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for at, packet in enumerate(container.demux(container.streams.audio[0])):
            if packet.size and packet.pos is not None and at in which:
                data[packet.pos : packet.pos + packet.size] = by * packet.size
    damaged = path.with_name(f"spoiled-{path.name}")
    damaged.write_bytes(data)
    return damaged


@pytest.mark.slow
def test_damaged_packets_become_silence_and_move_nothing_behind_them(tmp_path: Path) -> None:
    sound = noise(5) * 0.1 + clicks(5, (1, 2, 3, 4), 2)
    whole = write_sounding(tmp_path / "a.mp4", [sound], "aac")
    path = spoiled(whole, range(70, 80))  # from 1.47 to 1.68 s
    (found,) = heard(path)
    assert peaks(found.samples, (1, 2, 3, 4)) == pytest.approx((1, 2, 3, 4), abs=0.001)
    assert len(found.damaged) == 10
    assert found.damaged[0] == pytest.approx(69 * 1024 / 48000, abs=0.001)
    assert not found.samples[round(1.54 * RATE) : round(1.64 * RATE)].any()
    (note,) = notes_of([found.meta])
    assert note.startswith("damaged in its sound: 10 packets, the first at 1.47 s")
    assert [len(s.damaged) for s in heard(path, [(0, 1.5), (1.5, 5)])] == [2, 8]


def remuxed(path: Path, to: Path, keep: Callable[[float], bool]) -> Path:
    """The same streams with the packets of sound for which `keep` holds, by their seconds."""
    with av.open(str(path)) as source, av.open(str(to), "w") as made:
        copies = {s.index: made.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if not packet.size:
                continue
            of_sound = packet.stream.type == "audio"
            if of_sound and not keep(float((packet.pts or 0) * packet.time_base)):
                continue
            packet.stream = copies[packet.stream.index]
            made.mux(packet)
    return to


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_gap_in_the_track_becomes_silence_as_in_ffmpeg(tmp_path: Path, suffix: str) -> None:
    sound = noise(5) * 0.1 + clicks(5, (1, 3, 4), 2)
    whole = write_sounding(tmp_path / f"whole.{suffix}", [sound], "aac", "-bf", "0")
    path = remuxed(whole, tmp_path / f"a.{suffix}", lambda seconds: not 1.5 <= seconds < 2.5)
    (found,) = heard(path)
    start = bounds(path, 5)[0][0]
    moments = [start + at for at in (1, 3, 4)]
    assert peaks(found.samples, moments) == pytest.approx(moments, abs=0.001)
    assert not found.samples[round((start + 1.6) * RATE) : round((start + 2.4) * RATE)].any()
    assert differs_by(found.samples, played(path)) < 0.01
    assert notes_of([found.meta]) == []


def test_a_silence_of_an_hour_takes_seconds(tmp_path: Path) -> None:
    late = write_sounding(tmp_path / "a.mkv", [tones(1, 300)], "flac", seconds=1, late=(0, 3599.5))
    (found,) = heard(late, [(3599.0, 3601.0)])
    assert not found.samples[: round(0.49 * RATE)].any()
    loud = np.flatnonzero(np.abs(found.samples) > 1000)
    assert loud[0] / RATE == pytest.approx(0.5, abs=0.002)
    assert loud[-1] / RATE == pytest.approx(1.5, abs=0.002)


@pytest.mark.in_turn
@pytest.mark.parametrize("bit", [18, 24])
@pytest.mark.parametrize("at", [0, 3])
def test_a_wrong_time_of_several_frames_moves_no_sound(tmp_path: Path, at: int, bit: int) -> None:
    path = write_sounding(tmp_path / "a.ts", [noise(5) * 0.1 + clicks(5, (0.05, 1, 2), 2)], "aac")
    with av.open(str(path)) as container:
        sent = [n for n, p in enumerate(container.demux(audio=0)) if p.size and p.pos is not None]
    odd = flip_time(path, tmp_path / "odd.ts", packet=sent[at], bit=bit, kind="audio")
    times = []
    for each in (path, odd):
        with av.open(str(each)) as container:
            times.append([packet.pts for packet in container.demux(audio=0) if packet.size])
    assert sum(a != b for a, b in zip(*times, strict=True)) > 1
    (found,) = heard(odd)
    begin = bounds(odd, 5)[0][0]
    moments = [begin + second for second in (1, 2)]
    assert peaks(found.samples, moments) == pytest.approx(moments, abs=0.001)
    early = round((begin + 0.05) * RATE)
    assert np.abs(found.samples[early - 16 : early + 16]).max() > 5000


@pytest.mark.in_turn
@pytest.mark.parametrize("codec", ["ac3", "aac"])
@pytest.mark.parametrize("channels", [2, 6])
def test_joined_recordings_stay_in_step_with_their_frames(
    tmp_path: Path, codec: str, channels: int
) -> None:
    path = tmp_path / "both.ts"
    with path.open("wb") as both:
        for n in (2, channels):
            part = write_sounding(tmp_path / f"{n}.ts", [clicks(5, (1, 2, 3, 4), n)], codec)
            both.write(part.read_bytes())
    chunks = bounds(path, 5)
    assert chunks[-1][1] - chunks[0][0] == pytest.approx(10, abs=0.1)
    (whole,) = heard(path)
    moments = [chunks[0][0] + second for second in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert peaks(whole.samples, moments) == pytest.approx(moments, abs=0.002)
    assert "mpegts" in RESET


@pytest.mark.slow
@pytest.mark.parametrize("has_sound", [(True, False, True), (False, True), (False, False, True)])
def test_sound_behind_a_joined_recording_without_sound_stays_in_step(
    tmp_path: Path, has_sound: tuple[bool, ...]
) -> None:
    part = write_sounding(tmp_path / "a.ts", [clicks(5, (1, 2, 3, 4), 2)], "ac3").read_bytes()
    packets = [part[at : at + 188] for at in range(0, len(part), 188)]
    # FFmpeg's muxer numbers its streams from 256: pictures, then sound.
    mute = b"".join(p for p in packets if int.from_bytes(p[1:3]) & 0x1FFF != 257)
    assert 0 < len(mute) < len(part)
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part if sounds else mute for sounds in has_sound))
    chunks = bounds(path, 5)
    assert chunks[-1][1] - chunks[0][0] == pytest.approx(5 * len(has_sound), abs=0.1)
    (whole,) = heard(path)
    begins = [chunks[0][0] + 5 * at for at, sounds in enumerate(has_sound) if sounds]
    moments = [begin + second for begin in begins for second in (1, 2, 3, 4)]
    assert peaks(whole.samples, moments) == pytest.approx(moments, abs=0.005)


@pytest.mark.slow
def test_of_broken_files_each_is_read_or_named(tmp_path: Path) -> None:
    sources = [
        write_sounding(tmp_path / name, [noise(1)], CONTAINERS[name], seconds=1)
        for name in ("aac.mp4", "aac.ts", "opus.mkv", "flac.mkv")
    ]
    (tmp_path / "broken").mkdir()
    read = noted = 0
    for path in write_mutations(sources, tmp_path / "broken", 96):
        with contextlib.suppress(MediaError):
            sounds = heard(path, [(0, 0.5), (0.5, 1.1)])
            assert all(len(s.samples) <= round(0.6 * RATE) for s in sounds)
            read += 1
            noted += bool(notes_of([s.meta for s in sounds]))
    assert read > 48
    assert noted > 16


def test_a_video_in_avi_begins_with_its_sound(tmp_path: Path) -> None:
    path = write_sounding(tmp_path / "a.avi", [clicks(4, (1, 2, 3))], "pcm_s16le", seconds=4)
    (whole,) = heard(path)
    assert peaks(whole.samples, (1, 2, 3)) == pytest.approx((1, 2, 3), abs=0.001)


@pytest.mark.slow
def test_the_program_and_the_stage_hear_the_same_of_many_codecs(tmp_path: Path) -> None:
    for number, codec in enumerate(("aac", "libopus", "libvorbis", "libmp3lame", "ac3", "flac")):
        path = write_sounding(tmp_path / f"{number}.mkv", [noise(3)], codec, seconds=3)
        (whole,) = heard(path)
        assert differs_by(whole.samples, played(path)) <= 0.6 * LEAST_STEP, codec
