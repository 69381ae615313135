"""Every suffix that a folder is read for, in every data set: listed and shown by its reader's rule
as the model saw it, or left out with a note."""

import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows.core.console.display import Display
from flows.core.media.media_file import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from flows.core.options.commands import CaptionConfig
from flows.core.options.formats import TRAINER_FORMATS
from flows.execution.run import caption
from tests.support.media import spoil
from tests.support.stand_ins import Stages, config_in
from tests.support.suffixes import frames_by_ffmpeg, write_moving, write_picture
from tests.support.trainers import READERS, RULES, SHOWN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed"),
]
RAW = "-f rawvideo -pix_fmt rgb24 -s 176x144 -r 25 -i -"
FRAMES = 55
"""More than the least that trainers take: 33 at 16 a second, or 49."""
LEVELS = 3
"""Most levels of 255 between what a reader shows and the model saw, in the mean."""
DAMAGED = ("cut.jpg", "torn.mp4")
"""Of these a data set has what could be decoded."""
LEFT_OUT = {"kohya": VIDEO_SUFFIXES}
"""Format → suffixes that its trainer reads in no form."""


def picture(index: int) -> NDArray[np.uint8]:
    """All colours, none of them sharp; every picture is far from the ones beside it."""
    y, x = np.mgrid[0:144, 0:176]
    parts = 20 + x / 2 + 14 * (index % 8), 30 + y + 6 * (index % 9), 60 + (x + y) / 2
    return np.stack(parts, -1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CaptionConfig:
    """A run over a file of each suffix, and two that are damaged."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    root = tmp_path_factory.mktemp("suffixes")
    (media := root / "media").mkdir()
    frames = b"".join(picture(index).tobytes() for index in range(FRAMES))
    for suffix in VIDEO_SUFFIXES:
        write_moving(media / f"s{suffix[1:]}{suffix}", RAW, frames)
    for suffix in IMAGE_SUFFIXES:
        write_picture(media / f"s{suffix[1:]}{suffix}", Image.fromarray(picture(3)))
    Image.open(media / "spng.png").save(media / "cut.jpg", quality=95)
    content = (media / "cut.jpg").read_bytes()
    (media / "cut.jpg").write_bytes(content[: len(content) // 2])
    spoil(media / "smp4.mp4", media / "torn.mp4", which=lambda at: 20 <= at < 24)
    config = config_in(root, media, whole=True, format=(*TRAINER_FORMATS, "webdataset"))
    result = caption(replace(config), Display(quiet=True), Stages().launcher)
    assert result.failures == []
    (root / "notes").write_text("\n".join(result.warnings), encoding="utf-8")
    return config


def listed(config: CaptionConfig, name: str) -> Iterator[tuple[str, Path]]:
    """The stem of a source and the medium that a data set has of it."""
    out = Path(config.out)
    if name == "webdataset":
        for shard in sorted((out / name).glob("*.tar")):
            with tarfile.open(shard) as tar:
                tar.extractall(out / "unpacked", filter="data")
        paths = [p for p in (out / "unpacked").iterdir() if p.suffix not in (".txt", ".json")]
    else:
        paths = [Path(path) for path in READERS[name](out)]
    for path in paths:
        yield re.sub(r"-[0-9a-f]{12}-\d+$", "", path.stem), path


def as_seen(path: Path, kind: str) -> tuple[list[NDArray[Any]], float]:
    """What another reader of the source shows, whichever data set has it."""
    if kind == "video":
        return frames_by_ffmpeg(path)
    with Image.open(path) as image:
        return [np.asarray(image.convert("RGB"))], 1


def halved(image: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int64]:
    """A frame in half the size: readers lose colours of single pixels themselves."""
    small = Image.fromarray(image).resize((size[0] // 2, size[1] // 2), Image.Resampling.BOX)
    return np.asarray(small).astype(np.int64)


def unlike(found: list[NDArray[Any]], expected: list[NDArray[Any]], aspect: float) -> str:
    """Why frames are not the wanted ones; empty if they are."""
    if len(found) != len(expected):
        return f"shows {len(found)} frames of {len(expected)}"
    for at, (one, other) in enumerate(zip(found, expected, strict=True)):
        (height, width), (high, wide) = one.shape[:2], other.shape[:2]
        if abs(width / height / (aspect * wide / high) - 1) > 0.02:
            return f"has {width} x {height} pixels, not {wide} x {high} of aspect {aspect:.3f}"
        size = (width, height)
        if (mean := float(np.abs(halved(one, size) - halved(other, size)).mean())) > LEVELS:
            return f"is {mean:.1f} levels off in frame {at}"
    return ""


@pytest.mark.parametrize("name", SHOWN)
def test_every_suffix_is_shown_as_seen_or_is_noted(config: CaptionConfig, name: str) -> None:
    wrong: dict[str, str] = {}
    sources = {path.stem: path for path in Path(config.sources[0]).iterdir() if path.suffix}
    for stem, path in listed(config, name):
        source = sources.pop(stem)
        kind = "image" if source.suffix in IMAGE_SUFFIXES else "video"
        try:
            shown = SHOWN[name](path, kind)
        except Exception as error:  # whatever a reader raises
            wrong[source.name] = f"{type(error).__name__}: {error}"
            continue
        if source.name in DAMAGED:
            wrong[source.name] = "" if shown else "shows nothing"
        else:
            wrong[source.name] = unlike(shown, *as_seen(source, kind))
        if kind == "video" and name in RULES:
            wrong[source.name] += RULES[name](path)
    wrong = {file: why for file, why in wrong.items() if why}
    assert not wrong, wrong
    assert {path.suffix for path in sources.values()} == LEFT_OUT.get(name, set())
    notes = (Path(config.out).parent / "notes").read_text(encoding="utf-8")
    assert not sources or f"not in {name}: {len(sources)} videos" in notes
