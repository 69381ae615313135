"""Pictures that readers show otherwise than the model saw them: the rule of each trainer shows what
its data set has of them upright, on white, in sRGB and whole."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows.console.display import Display
from flows.options.commands import CaptionConfig
from flows.options.formats import TRAINER_FORMATS
from flows.running.run import caption
from stages.frames.image import read_image
from tests.support.stand_ins import Stages, config_in
from tests.support.trainers import READERS, SHOWN
from tests.test_flows_results_trainers_suffixes import LEVELS, listed
from tests.test_stages_frames_profiles import PRIMARIES, by_lcms, profile, saved

pytestmark = pytest.mark.slow
Pixels = NDArray[np.uint8]
SIZE = (90, 120)
ORIENTATION = 274
"""The tag of Exif and TIFF."""
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, 3),
}
"""Orientation → what is stored of an upright picture, by Exif 2.32, 4.6.4: row 0 and column 0 are
its top and left (1), top and right (2), … left and bottom (8)."""
QUALITY: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95},
    "png": {},
    "tif": {},
}


def shades() -> Pixels:
    """A picture without a sharp edge, whose four sides differ."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    parts = 2 * x, 2.5 * y, 40 + x / 2 + y
    return np.stack(parts, -1).clip(0, 255).astype(np.uint8)


def turned(path: Path, number: int, suffix: str) -> Pixels:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    stored = np.ascontiguousarray(STORED[number](shades()))
    Image.fromarray(stored).save(path, exif=exif, **QUALITY[suffix])
    return shades()


def transparent(path: Path) -> Pixels:
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    alpha = (60 + x + y).clip(0, 255).astype(np.uint8)
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(np.dstack([shades(), alpha])).save(path, **options)
    share = alpha[..., None] / 255
    shown: Pixels = np.rint(shades() * share + 255 * (1 - share)).astype(np.uint8)
    return shown


def in_display_p3(path: Path) -> Pixels:
    icc = profile(PRIMARIES["Display P3"])
    return by_lcms(saved(path, Image.fromarray(shades()), icc), icc).astype(np.uint8)


def in_cmyk(path: Path) -> Pixels:
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    inks = np.stack([x, 2 * y, (x + y) / 2, y / 3], -1).astype(np.uint8)
    Image.fromarray(inks, "CMYK").save(path, **QUALITY[path.suffix[1:]])
    light = 1 - inks / 255
    return np.rint(255 * light[..., :3] * light[..., 3:]).astype(np.uint8)


def in_16_bits(path: Path) -> Pixels:
    grey = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)
    Image.fromarray(grey).save(path)
    return np.repeat(np.rint(grey / 257).astype(np.uint8)[..., None], 3, axis=-1)


def in_48_bits(path: Path) -> Pixels:
    command = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb48le", "-s"]
    command += [
        f"{SIZE[1]}x{SIZE[0]}",
        "-i",
        "-",
        "-pix_fmt",
        "rgb48be",
        "-frames:v",
        "1",
        str(path),
    ]
    deep = shades().astype("<u2") * 257 + 100
    subprocess.run(command, input=deep.clip(0, 65535).tobytes(), check=True)
    return shades()


def in_heic(path: Path, number: int) -> Pixels:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    stored = Image.fromarray(np.ascontiguousarray(STORED[number](shades())))
    stored.save(path, "HEIF", quality=95, exif=exif.tobytes())  # written as irot and imir
    return shades()


def sources() -> Iterator[tuple[str, Callable[[Path], Pixels]]]:
    """Name → what writes such a file, and returns what a person sees in it."""
    for suffix in QUALITY:
        for number in STORED:
            yield (
                f"turned-{suffix}-{number}.{suffix}",
                partial(turned, number=number, suffix=suffix),
            )
    for suffix in ("png", "webp", "tif"):
        yield f"alpha-{suffix}.{suffix}", transparent
    for suffix in ("jpg", "png", "webp", "tif", "heic"):
        yield f"p3-{suffix}.{suffix}", in_display_p3
    for suffix in ("jpg", "tif"):
        yield f"cmyk-{suffix}.{suffix}", in_cmyk
    for suffix in ("png", "tif"):
        yield f"grey16-{suffix}.{suffix}", in_16_bits
    if shutil.which("ffmpeg"):
        yield "rgb48.png", in_48_bits
        yield "rgb48-tif.tif", in_48_bits
    for number in STORED:
        yield f"heic-{number}.heic", partial(in_heic, number=number)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[CaptionConfig, dict[str, Pixels]]:
    """A run over all of these, and what a person sees of each."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    root = tmp_path_factory.mktemp("pictures")
    (media := root / "media").mkdir()
    expected = {Path(name).stem: save(media / name) for name, save in sources()}
    config = config_in(root, media, format=(*TRAINER_FORMATS, "webdataset"))
    result = caption(config, Display(quiet=True), Stages().launcher)
    assert result.failures == []
    return config, expected


def unlike(found: Pixels, expected: Pixels) -> str:
    """Why a picture is not the wanted one; empty if it is."""
    if found.shape != expected.shape:
        return f"has the shape {found.shape}, not {expected.shape}"
    mean = float(np.abs(found.astype(int) - expected.astype(int)).mean())
    return f"is {mean:.1f} levels off" if mean > LEVELS else ""


def test_the_model_sees_what_a_person_does(
    seen: tuple[CaptionConfig, dict[str, Pixels]],
) -> None:
    config, expected = seen
    paths = sorted(Path(config.sources[0]).iterdir())
    found = {
        path.name: unlike(read_image(path)[1].pixels[0], expected[path.stem]) for path in paths
    }
    assert not (wrong := {name: why for name, why in found.items() if why}), wrong


@pytest.mark.parametrize("name", SHOWN)
def test_a_trainer_is_shown_what_the_model_saw(
    seen: tuple[CaptionConfig, dict[str, Pixels]], name: str
) -> None:
    config, expected = seen
    wrong, missing = {}, {*expected}
    for stem, path in listed(config, name):
        missing.remove(stem)
        (shown,) = SHOWN[name](path, "image")
        if why := unlike(shown, expected[stem]):
            wrong[stem] = why
    assert not wrong, wrong
    assert not missing, f"{name} has none of {missing}; it reads by {READERS.get(name)}"
