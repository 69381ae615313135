"""A file of each suffix that folders are read for, written by the `ffmpeg` program or Pillow, and
what these say is in it."""

import json
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIF = frozenset((".heic", ".heif", ".hif"))
CODECS = {
    ".dv": "dvvideo -s 720x576 -pix_fmt yuv420p",
    ".gxf": "mpeg2video -s 720x576",
    ".mxf": "mpeg2video",
    ".3gp .3gpp .3g2": "mpeg4 -f 3gp",
    ".mov .qt .f4v .insv .mp4 .m4v": "mpeg4 -f mov",
    ".mkv .mk3d": "mpeg4 -f matroska",
    ".nut": "mpeg4",
    ".avi .divx .xvid": "mpeg4 -f avi",
    ".ts .mts .m2ts .m2t .trp .tp": "mpeg2video -f mpegts",
    ".mpg .mpeg .mpe .m2p .vob": "mpeg2video -f vob",
    ".m1v": "mpeg1video -f mpeg1video",
    ".m2v .mpv": "mpeg2video -f mpeg2video",
    ".wmv .asf": "wmv2 -f asf",
    ".wtv": "mpeg2video -f wtv",
    ".flv": "flv1",
    ".rm .rmvb": "rv20 -f rm",
    ".mj2": "jpeg2000 -f mp4",
    ".ogv .ogm": "libtheora -f ogg",
    ".webm .ivf": "libvpx",
    ".y4m": "wrapped_avframe -pix_fmt yuv420p",
    ".gif": "gif -vf split[a][b];[a]palettegen[p];[b][p]paletteuse",
    ".apng": "apng -f apng",
    ".mjpg .mjpeg": "mjpeg -f mjpeg",
    ".h264 .264": "libx264 -pix_fmt yuv420p -f h264",
    ".h265 .265 .hevc": "libx265 -x265-params log-level=none -pix_fmt yuv420p -f hevc",
    ".obu .av1": "libaom-av1 -cpu-used 8 -usage realtime -f obu",
}
"""Suffixes of videos → what has the `ffmpeg` program write such a file."""
WRITERS = {suffix: opts.split() for suffixes, opts in CODECS.items() for suffix in suffixes.split()}
FRAMES = ["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
"""What has the `ffmpeg` program show each frame once."""


def write_picture(path: Path, image: Image.Image) -> Path:
    """The picture in the format of the path's suffix."""
    suffix = path.suffix
    if suffix in HEIF:
        heif = path.with_suffix(".heic")
        import_module("pillow_heif").from_pillow(image).save(heif)
        return heif.rename(path)
    kind = Image.registered_extensions()[suffix]
    image.convert("1" if suffix == ".pbm" else "RGB").save(path, kind)
    return path


def write_moving(path: Path, source: str, frames: bytes | None = None) -> Path:
    """A video in the format of the path's suffix, by the words that name the source to ffmpeg, or
    of these frames."""
    command = ["ffmpeg", "-v", "error", *source.split(), "-c:v", *WRITERS[path.suffix], str(path)]
    subprocess.run(command, check=True, input=frames)
    return path


def frames_by_ffmpeg(path: Path) -> tuple[list[NDArray[Any]], float]:
    """The frames of a video as the `ffmpeg` program shows them, and how wide a pixel is for its
    height."""
    requests = ["-select_streams", "v:0", "-show_streams", "-of", "json"]
    message = subprocess.run(
        ["ffprobe", "-v", "error", *requests, path], capture_output=True, check=True
    )
    stream = json.loads(message.stdout)["streams"][0]
    across, down = map(int, stream.get("sample_aspect_ratio", "1:1").split(":"))
    shown = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", path, *FRAMES], capture_output=True, check=True
    )
    shape = stream["height"], stream["width"], 3
    return [*np.frombuffer(shown.stdout, np.uint8).reshape(-1, *shape)], across / (down or across)
