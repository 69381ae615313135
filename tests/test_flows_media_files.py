"""Every suffix that a folder is read for: whether the readers read such files, and which trainers
take them as they are."""

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from artifacts.trainers import TRAINERS
from flows.media.media_files import IMAGE_SUFFIXES, UNREAD_SUFFIXES, VIDEO_SUFFIXES, kind_of
from stages.frames.image import read_image
from stages.frames.video import Video

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
    ".gif": "gif",
    ".apng": "apng -f apng",
    ".mjpg .mjpeg": "mjpeg -f mjpeg",
    ".h264 .264": "libx264 -pix_fmt yuv420p -f h264",
    ".h265 .265 .hevc": "libx265 -x265-params log-level=none -pix_fmt yuv420p -f hevc",
    ".obu .av1": "libaom-av1 -cpu-used 8 -usage realtime -f obu",
}
"""Suffixes of videos → what has the `ffmpeg` program write such a file."""
WRITERS = {suffix: opts.split() for suffixes, opts in CODECS.items() for suffix in suffixes.split()}
IMAGEIO = frozenset([
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".gxf", ".h264",
    ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg",
    ".mjpg", ".mk3d", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu",
    ".ogv", ".rm", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m", ".j2k", ".mpo",
])  # fmt: skip
"""Of our suffixes those in `video_extensions` of imageio 2.38.1, by which diffusion-pipe tells
videos from pictures."""


def test_a_suffix_has_one_kind() -> None:
    assert not IMAGE_SUFFIXES & VIDEO_SUFFIXES
    assert not UNREAD_SUFFIXES & (IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    assert WRITERS.keys() == VIDEO_SUFFIXES


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_a_picture_of_each_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    image = Image.new("RGB", (24, 16), (200, 30, 30))
    if suffix in HEIF:
        pytest.importorskip("pillow_heif").from_pillow(image).save(path.with_suffix(".heic"))
        path.with_suffix(".heic").rename(path)
    else:
        kind = Image.registered_extensions()[suffix]
        image.convert("1" if suffix == ".pbm" else "RGB").save(path, kind)
    media, _ = read_image(path)
    assert (media.width, media.height) == (24, 16)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed")
@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_a_video_of_each_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    source = ["-f", "lavfi", "-i", "testsrc=s=176x144:r=25:d=0.4"]
    command = ["ffmpeg", "-v", "error", *source, "-c:v", *WRITERS[suffix], str(path)]
    subprocess.run(command, check=True)
    with Video(path) as video:
        assert video.width >= 176 and video.duration > 0.3


@pytest.mark.parametrize("name", sorted(TRAINERS))
def test_a_trainer_is_given_no_file_that_it_takes_for_another_kind(name: str) -> None:
    form = TRAINERS[name]
    every = sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    as_they_are = [s for s in every if form.takes(kind_of(f"a{s}"), s.lstrip("."))]
    pictures = {s for s in as_they_are if kind_of(f"a{s}") == "image"}
    assert pictures <= Image.registered_extensions().keys() - HEIF  # without plugins
    if name == "diffusion-pipe":
        wrong = [s for s in as_they_are if (s in IMAGEIO) != (kind_of(f"a{s}") == "video")]
        assert wrong == []
