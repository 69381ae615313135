"""Every suffix that a folder is read for: whether the readers read such files, and which trainers
take them as they are."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from artifacts.texts.trainers import TRAINERS
from flows.core.media.media_file import IMAGE_SUFFIXES, UNREAD_SUFFIXES, VIDEO_SUFFIXES, kind_of
from stages.frames.image import read_image
from stages.frames.video import Video
from tests.support.suffixes import HEIF, WRITERS, write_moving, write_picture
from tests.support.trainers import IMAGEIO


def test_a_suffix_has_one_kind() -> None:
    assert not IMAGE_SUFFIXES & VIDEO_SUFFIXES
    assert not UNREAD_SUFFIXES & (IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    assert WRITERS.keys() == VIDEO_SUFFIXES


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_a_picture_of_each_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in HEIF:
        pytest.importorskip("pillow_heif")
    write_picture(path, Image.new("RGB", (24, 16), (200, 30, 30)))
    media, _ = read_image(path)
    assert (media.width, media.height) == (24, 16)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed")
@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_a_video_of_each_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_moving(path, "-f lavfi -i testsrc=s=176x144:r=25:d=0.4")
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
        assert [s for s in as_they_are if (s in IMAGEIO) != (kind_of(f"a{s}") == "video")] == []
