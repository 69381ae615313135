"""Videos of every container with late tracks, gaps, turns and transparency, and what others read in
them. Nothing of the program is used here."""

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from tests.support.media import picture

TICK = Fraction(1, 25)
SIZE = (48, 64)
"""Height and width before turning."""
EVEN = list(range(0, 50, 2))
"""Ticks of the frames: 12.5 per second, for 2 seconds."""
UNEVEN = [0, 1, 2, 5, 6, 10, 13, 14, 15, 20, 27, 28, 29, 36, 37, 45, 46, 47]
WITH_GAP = [*range(0, 24, 2), *range(74, 98, 2)]
LATE = 75
"""Ticks by which the later of the two tracks begins after the other."""
HIDDEN = 10
"""Frames before the first one that the edit list shows."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """What is special about a file."""

    ticks: Sequence[int] = tuple(EVEN)
    sound: int | None = None
    """Tick at which the sound begins; None: there is none."""
    rotation: int = 0
    reordered: bool = False
    hidden: int = 0
    alpha: bool = False


FEATURES = {
    "late video": Feature(ticks=[LATE + t for t in EVEN], sound=0, reordered=True),
    "late sound": Feature(sound=LATE),
    "edit list": Feature(hidden=HIDDEN, reordered=True),
    "B-frames": Feature(reordered=True),
    "gap": Feature(ticks=WITH_GAP, reordered=True),
    "variable rate": Feature(ticks=UNEVEN, reordered=True),
    "rotation 0": Feature(sound=0),
    "rotation 90": Feature(rotation=90),
    "rotation 180": Feature(rotation=180),
    "rotation 270": Feature(rotation=270),
    "alpha": Feature(alpha=True),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """How a container is written."""

    suffix: str
    video: str = "libx264"
    sound: str = "aac"
    alpha: str = ""
    """Encoder with transparency."""
    alpha_format: str = "rgba"
    fixed_rate: bool = False
    """Whether frames are numbered at one rate instead of timed."""
    only_decoding_times: bool = False
    """Whether packets have no time of display, so that the chosen times are the only true ones."""


CONTAINERS = {
    "mp4": Container(suffix="mp4"),
    "mov": Container(suffix="mov", alpha="qtrle", alpha_format="argb"),
    "mkv": Container(suffix="mkv", alpha="ffv1", alpha_format="yuva444p"),
    "webm": Container(
        suffix="webm", video="libvpx", sound="libopus", alpha="libvpx-vp9", alpha_format="yuva420p"
    ),
    "ts": Container(suffix="ts"),
    "mpg": Container(suffix="mpg", video="mpeg2video", sound="mp2", fixed_rate=True),
    "avi": Container(suffix="avi", sound="mp2", alpha="png", only_decoding_times=True),
    "flv": Container(suffix="flv"),
    "asf": Container(suffix="asf", video="mpeg4", sound="mp2"),
    "nut": Container(suffix="nut", alpha="png"),
    "ogg": Container(suffix="ogv", video="libvpx", sound="libopus", fixed_rate=True),
}
NO_EDITS = "only MP4 and MOV have edit lists"
NO_TURN = "the format stores no rotation"
NO_ALPHA = "FFmpeg writes no codec with transparency into it"
EMPTY = {
    **{(c, "edit list"): NO_EDITS for c in CONTAINERS if c not in ("mp4", "mov")},
    **{
        (c, f"rotation {turn}"): NO_TURN
        for c in ("ts", "mpg", "avi", "flv", "asf", "nut", "ogg")
        for turn in (90, 180, 270)
    },
    **{(name, "alpha"): NO_ALPHA for name, each in CONTAINERS.items() if not each.alpha},
    **{(c, "B-frames"): "VP8 does not reorder frames" for c in ("webm", "ogg")},
    **{
        (c, f): "its frames have one rate"
        for c, each in CONTAINERS.items()
        for f in ("gap", "variable rate")
        if each.fixed_rate
    },
    ("avi", "late video"): "FFmpeg puts the first packet into the first slot",
    ("avi", "late sound"): "sound in AVI has no times and begins with the file",
}
"""Cells that cannot be written, each with the reason."""
CELLS = [(c, f) for c in CONTAINERS for f in FEATURES if (c, f) not in EMPTY]


def write_cell(path: Path, container: str, feature: str) -> Path:
    """Write the file of a cell."""
    kind, about = CONTAINERS[container], FEATURES[feature]
    with av.open(str(path), "w") as made:
        video = _video_stream(made, kind, about)
        sound = None
        if about.sound is not None:
            sound = made.add_stream(kind.sound, rate=48000)
            assert isinstance(sound, av.AudioStream)
            sound.layout = "mono"
        packets = []
        for index, ticks in enumerate(ticks_of(container, feature)):
            frame = drawn(index, kind, about)
            frame.pts, frame.time_base = ticks, TICK
            packets += video.encode(frame)
        packets += video.encode(None)
        if sound is not None:
            seconds = float((max(about.ticks) + 10) * TICK)
            packets += _silence(sound, float((about.sound or 0) * TICK), seconds)
        for packet in sorted(packets, key=_decoding_seconds):
            made.mux(packet)
    if about.hidden:
        hide(path, about.hidden)
    return path


def drawn(index: int, kind: Container, about: Feature) -> VideoFrame:
    """The frame at a position; with transparency, its right half is a hidden colour."""
    if not about.alpha:
        return VideoFrame.from_ndarray(picture(index, *SIZE), format="rgb24")
    clear = np.dstack([picture(index, *SIZE), np.full(SIZE, 255, np.uint8)])
    clear[:, SIZE[1] // 2 :] = (0, 200, 0, 0)
    frame = VideoFrame.from_ndarray(clear, format="rgba")
    return frame.reformat(format=kind.alpha_format)


def _video_stream(made: Any, kind: Container, about: Feature) -> Any:
    codec = kind.alpha if about.alpha else kind.video
    options = {
        "libx264": {"preset": "ultrafast", "crf": "12", "bf": "3" if about.reordered else "0"},
        "mpeg2video": {"bf": "2" if about.reordered else "0", "q": "2"},
        "mpeg4": {"bf": "2" if about.reordered else "0"},
        "libvpx": {"lag-in-frames": "0", "deadline": "realtime", "cpu-used": "8"},
        "libvpx-vp9": {"lag-in-frames": "0", "deadline": "realtime", "cpu-used": "8"},
    }
    stream = made.add_stream(codec, rate=25, options=options.get(codec, {}))
    stream.height, stream.width = SIZE
    stream.pix_fmt = kind.alpha_format if about.alpha else "yuv420p"
    stream.time_base = stream.codec_context.time_base = TICK
    stream.codec_context.gop_size = 8
    if codec.startswith(("libvpx", "mpeg")):
        stream.bit_rate = 4_000_000
    if about.alpha and codec == "libvpx-vp9":
        stream.metadata["alpha_mode"] = "1"
    if about.rotation:
        stream.set_display_rotation(about.rotation)
    return stream


def _silence(stream: Any, start: float, end: float) -> list[Any]:
    packets = []
    step = stream.codec_context.frame_size or 960
    for at in range(round(start * 48000), round(end * 48000), step):
        form = stream.codec_context.format.name
        frame = av.AudioFrame(format=form, layout="mono", samples=step)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts, frame.time_base = 48000, at, Fraction(1, 48000)
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def _decoding_seconds(packet: Any) -> Fraction:
    ticks = packet.dts if packet.dts is not None else packet.pts
    return Fraction(ticks * packet.time_base)


def hide(path: Path, frames: int) -> None:
    """Let the only edit of a file begin so many frames later. Source: ISO/IEC 14496-12, 8.6.6."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        base = Fraction(container.streams.video[0].time_base or 0)
    later = 2 * frames * TICK
    at = data.index(b"elst") + 12
    length, first = struct.unpack_from(">Ii", data, at)
    # Lengths are in milliseconds, as FFmpeg writes the time scale of a film.
    struct.pack_into(">Ii", data, at, length - int(1000 * later), first + int(later / base))
    path.write_bytes(data)


def ticks_of(container: str, feature: str) -> list[int]:
    """Ticks of all frames of a cell, at its highest rate where that is the only one."""
    ticks = FEATURES[feature].ticks
    fixed = CONTAINERS[container].fixed_rate
    return [ticks[0] + at for at in range(len(ticks))] if fixed else [*ticks]


def chosen_times(container: str, feature: str) -> list[float]:
    """Seconds of the frames, as the file was meant: 0 is where its first track begins."""
    about = FEATURES[feature]
    ticks = ticks_of(container, feature)[about.hidden :]
    zero = min(ticks[0], ticks[0] if about.sound is None else about.sound)
    return [float((t - zero) * TICK) for t in ticks]


def packet_times(path: Path) -> list[float]:
    """Seconds of the frames by the times of their packets, since the start of the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start, base = Fraction(container.start_time or 0, av.time_base), stream.time_base
        assert base is not None
        found = [
            packet.pts * base - start
            for packet in container.demux(stream)
            if packet.size and packet.pts is not None and not packet.is_discard
        ]
    return [float(each) for each in sorted(found)]


def read_by_ffmpeg(path: Path, about: Feature) -> tuple[list[float], Pixels]:
    """Seconds and pixels [frames, height, width, 3] of all frames, as the program `ffmpeg` shows
    them by its accurate conversion: turned, and on white."""
    program = shutil.which("ffmpeg")
    assert program is not None
    alpha = about.alpha
    with av.open(str(path)) as container:
        is_vp9 = container.streams.video[0].codec_context.name == "vp9"
    # FFmpeg's own decoder of VP9 drops the transparency.
    decoder = ["-c:v", "libvpx-vp9"] if alpha and is_vp9 else []
    form, channels = ("rgba", 4) if alpha else ("rgb24", 3)
    command = [program, "-hide_banner", *decoder, "-i", str(path), "-map", "0:v:0"]
    # FFmpeg 5 ignores the stated location of chroma and assumes the centre. The files state the
    # left, which is on the right after FFmpeg has turned a frame by 180 degrees.
    across = {0: 0, 180: 256}.get(about.rotation % 360, 128)
    flags = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    scale = f"scale=flags={flags}:in_h_chr_pos={across}:in_v_chr_pos=128"
    command += ["-vf", f"{scale},format={form},showinfo", "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", form, "-"]
    if about.sound == 0:  # only streams that are read count for where a broadcast starts
        command += ["-map", "0:a", "-f", "null", "/dev/null"]
    done = subprocess.run(command, capture_output=True, check=True)
    shown = re.findall(r"pts_time:(\S+).*? s:(\d+)x(\d+)", done.stderr.decode())
    width, height = int(shown[0][1]), int(shown[0][2])
    pixels = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, channels)
    assert len(pixels) == len(shown)
    if alpha:
        share = pixels[..., 3:] / 255.0
        pixels = np.rint(pixels[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    return [float(seconds) for seconds, _, _ in shown], pixels
