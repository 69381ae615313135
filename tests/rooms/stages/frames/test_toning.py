"""Pictures of high dynamic range look as the chart that was encoded by the curves of ITU-R BT.2100,
as videos do; one converter per curve serves all sizes."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.video import reformatter
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from PIL import Image

from flows.outputs.thumbnails import thumbnail
from stages.frames import to_srgb
from stages.frames.image import read_image
from tests.support.file_classes import hdr_signal
from tests.support.media import picture
from tests.support.named_colours import write

CURVES = {"pq": 16, "hlg": 18}
SIZE = (60, 90)
AVERAGE = 10
"""Levels that a mapped picture may differ from the chart; the curves are approximated."""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".avif", ".heic"])
@pytest.mark.parametrize("curve", CURVES)
def test_a_picture_looks_as_its_chart(tmp_path: Path, suffix: str, curve: str) -> None:
    chart, path = picture(3, *SIZE), tmp_path / f"a{suffix}"
    signal = np.rint(np.clip(hdr_signal(chart, curve), 0, 1) * 255).astype(np.uint8)
    write(path, signal, CURVES[curve])
    index, chunk = read_image(path)
    off = np.abs(chunk.pixels[0].astype(int) - chart).mean()
    assert off < AVERAGE, f"{off:.1f} levels"
    assert index.warnings == ()
    shown = np.asarray(Image.open(io.BytesIO(thumbnail(path, None) or b"")).convert("RGB"))
    assert np.abs(shown.astype(int) - chart).mean() < AVERAGE + 5  # a JPEG


@pytest.mark.parametrize("suffix", [".png", ".avif", ".heic"])
def test_other_curves_change_nothing_and_bt2020_without_one_is_named(
    tmp_path: Path, suffix: str
) -> None:
    chart, path = picture(3, *SIZE), tmp_path / f"a{suffix}"
    write(path, chart, 13, 1)
    plain = read_image(path)
    write(path, chart, 2)
    index, chunk = read_image(path)
    assert plain[0].warnings == () and any("BT.2020" in each for each in index.warnings)
    for pixels in (plain[1].pixels[0], chunk.pixels[0]):
        assert np.abs(pixels.astype(int) - chart).mean() < 3


@pytest.mark.parametrize("damage", [b"cICP\x09", b"cICP" + bytes(9)])
def test_a_chunk_of_another_length_states_nothing(tmp_path: Path, damage: bytes) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(3, *SIZE)).save(file, "PNG")
    chunk = struct.pack(">I", len(damage) - 4) + damage + struct.pack(">I", zlib.crc32(damage))
    (tmp_path / "a.png").write_bytes(file.getvalue()[:33] + chunk + file.getvalue()[33:])
    assert np.array_equal(read_image(tmp_path / "a.png")[1].pixels[0], picture(3, *SIZE))


@pytest.mark.slow
def test_one_table_serves_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    shapes: set[tuple[int, int]] = set()

    class Noted:
        def __init__(self) -> None:
            self._real = VideoReformatter()
            made.append(self)

        def reformat(self, frame: VideoFrame, **named: Any) -> VideoFrame:
            shapes.add((frame.width, frame.height))
            return self._real.reformat(frame, **named)

    monkeypatch.setattr(reformatter, "VideoReformatter", Noted)
    to_srgb._toner.cache_clear()
    for height in (40, 60, 300):
        light = np.full((height, 333, 3), 30_000, np.uint16)
        values = to_srgb.toned(light, CURVES["pq"], 9)
        assert values.shape == light.shape and len(np.unique(values.reshape(-1, 3), axis=0)) == 1
    assert len(made) == len(shapes) == 1
    to_srgb._toner.cache_clear()
