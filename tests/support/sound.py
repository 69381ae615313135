"""Videos with sound, written by the `ffmpeg` program, and their sound as that program plays it."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.schema import Sampling
from stages.frames.video import Video

RATE = 16000
SOURCE_RATE = 48000
Sound = NDArray[np.float32]
"""[samples, channels], or [samples] of mono."""
NEEDS_FFMPEG = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg program")


def ffmpeg(*words: object, given: bytes = b"") -> bytes:
    """What the program writes to its output."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, words)]
    if given:
        command.remove("-nostdin")
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


def clicks(seconds: float, at: Iterable[float], channels: int = 1) -> Sound:
    """Silence with a click at each of these seconds."""
    made = np.zeros((round(seconds * SOURCE_RATE), channels), np.float32)
    for moment in at:
        made[round(moment * SOURCE_RATE)] = 0.9
    return made


def tones(seconds: float, *hertz: float, gain: float = 0.1, rate: int = SOURCE_RATE) -> Sound:
    """A tone in each channel."""
    at = np.arange(round(seconds * rate)) / rate
    return np.stack([gain * np.sin(2 * np.pi * each * at) for each in hertz], 1).astype(np.float32)


def noise(seconds: float, channels: int = 2) -> Sound:
    """Quiet noise that no stretch repeats."""
    made = np.random.default_rng(7).standard_normal((round(seconds * SOURCE_RATE), channels))
    return (0.1 * made).clip(-1, 1).astype(np.float32)


def write_sounding(
    path: Path,
    tracks: Sequence[Sound],
    codec: str,
    *more: str,
    seconds: float = 5,
    late: tuple[float, float] = (0, 0),
    rate: int = SOURCE_RATE,
) -> Path:
    """Write a video of `seconds` at 25 frames per second with these tracks, and return its path.
    ffmpeg encodes them with the options of `codec`. `late` delays its picture and its sound, in
    seconds."""
    words: list[object] = ["-itsoffset", late[0], "-f", "lavfi", "-i"]
    words.append(f"testsrc=size=64x64:rate=25:duration={seconds}")
    maps = ["-map", "0:v"]
    for number, track in enumerate(tracks, 1):
        raw = path.with_name(f"{path.name}.{number}.f32")
        raw.write_bytes(track.astype("<f4").tobytes())
        words += ["-itsoffset", late[1], "-f", "f32le", "-ar", rate, "-ac", track.shape[1]]
        words += ["-i", raw]
        maps += ["-map", f"{number}:a"]
    picture = ["-c:v", "libvpx", "-deadline", "realtime"] if path.suffix == ".webm" else []
    picture = picture or ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "12"]
    ffmpeg(*words, *maps, *picture, "-fps_mode", "passthrough", "-c:a", *codec.split(), *more, path)
    return path


def played(path: Path, track: int = 1, rate: int = RATE) -> Sound:
    """The mono sound of a track from time 0 on, as the program plays it. Its time 0 is that of its
    frames, also where the program takes another one than the library."""
    filters = f"aresample={rate}:async=1:first_pts=0"
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-i", str(path), "-map", f"0:a:{track - 1}"]
    command += ["-af", filters, "-f", "f32le", "-"]
    # Only streams that are read count for where a broadcast starts.
    command += ["-map", "0:v", "-vf", "showinfo", "-f", "null", "/dev/null"]
    done = subprocess.run(command, capture_output=True, check=True)
    shown = re.search(rb"pts_time:(\S+)", done.stderr)
    assert shown is not None
    later = round((float(shown[1]) - bounds(path, 1e9)[0][0]) * rate)
    probed = ["ffprobe", "-v", "error", "-select_streams", f"a:{track - 1}"]
    probed += ["-show_entries", "stream=channels", "-of", "csv=p=0", str(path)]
    channels = subprocess.run(probed, capture_output=True, check=True, text=True).stdout
    found = np.frombuffer(done.stdout, "<f4").reshape(-1, int(channels.split()[0])).mean(axis=1)
    return found[later:] if later > 0 else np.pad(found, (-later, 0))


def bounds(path: Path, chunk_seconds: float) -> list[tuple[float, float]]:
    """Start and end of the chunks that the frames stage cuts."""
    with Video(path) as video:
        plans = video.plan(Sampling(chunk_seconds=chunk_seconds, fps=1, max_frames=8))
    return [(plan.start, plan.end) for plan in plans]
