"""Samplings, sizes of frames, and the squares that a picture is cut in."""

import itertools
import json
from typing import Any

import pytest

from artifacts.disk.json_records import read_record
from artifacts.errors import UsageError
from artifacts.frame_fit import FrameFit
from artifacts.schema import ChunkIndex, MediaIndex, Sampling
from artifacts.tiles import boxes_of, check_tiles


def test_an_index_survives_json() -> None:
    chunk = ChunkIndex(index=0, start=0.0, end=3.0, times=(0.0, 1.04), height=64, width=96)
    more: Any = {"height": 480, "width": 640, "warnings": ("cut short",)}
    index = MediaIndex(kind="video", duration=3.0, chunks=(chunk,), **more)
    assert read_record(MediaIndex, json.loads(json.dumps(index.to_json()))) == index


@pytest.mark.parametrize(
    "fields",
    [
        *({"fps": 1.0, "frames": 8}, {}, {"fps": 0.0}, {"fps": float("nan")}),
        {"frames": 8, "chunk_seconds": -1.0},
    ],
)
def test_a_sampling_that_means_nothing_fails(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**{"chunk_seconds": 30.0, "max_frames": 32, **fields})  # type: ignore[arg-type]


THREE = ((0.5, 1000), (1.0, 800), (2.0, 1000))
WIDE = ((0.5, 1000), (2.0, 600))


@pytest.mark.parametrize(
    ("edges", "size", "fits"),
    [
        (THREE, (100, 200), (100, 200)),  # never enlarged
        (THREE, (2000, 2000), (800, 800)),
        (THREE, (4000, 2000), (1000, 500)),
        (THREE, (1500, 2000), (675, 900)),  # between two aspects
        (WIDE, (100, 2000), (50, 1000)),  # beyond the known aspects
        (WIDE, (2000, 100), (600, 30)),
        ((), (4320, 7680), (4320, 7680)),
    ],
)
def test_a_frame_fits(
    edges: tuple[tuple[float, int], ...], size: tuple[int, int], fits: tuple[int, int]
) -> None:
    assert FrameFit(long_edges=edges).size(*size) == fits


def test_four_k_is_cut_in_two_levels_beside_the_whole() -> None:
    found = boxes_of(2160, 3840, "auto", 224)
    assert found[0][1:] == (0, 0, 3840, 2160)
    counts = {level: sum(box.level == level for box in found) for level in (0, 2, 4)}
    assert counts == {0: 1, 2: 15, 4: 50}
    assert {box.right - box.left for box in found if box.level == 4} == {540}


@pytest.mark.parametrize("tiles", ["auto", "2", "3", "64"])
@pytest.mark.parametrize("size", [(2160, 3840), (900, 7000), (3000, 3000), (64, 65), (1000, 1)])
def test_squares_cover_the_picture_and_nothing_beside_it(tiles: str, size: tuple[int, int]) -> None:
    high, wide = size
    found = boxes_of(high, wide, tiles, 8)
    for level in {box.level for box in found} - {0}:
        some = [box for box in found if box.level == level]
        assert min(box.left for box in some) == min(box.top for box in some) == 0
        assert max(box.right for box in some) == wide and max(box.bottom for box in some) == high
        for first, last in ((1, 3), (2, 4)):
            starts = sorted({(box[first], box[last]) for box in some})
            assert all(a[1] >= b[0] for a, b in itertools.pairwise(starts))


def test_a_picture_hardly_larger_than_the_input_is_left_whole() -> None:
    assert len(boxes_of(800, 1200, "auto", 224)) == 1
    assert len(boxes_of(896, 1200, "auto", 224)) > 1
    assert len(boxes_of(800, 1200, "off", 224)) == 1


@pytest.mark.parametrize("tiles", ["", "1", "65", "on", "-2", "2.5"])
def test_a_setting_that_is_none_is_refused(tiles: str) -> None:
    with pytest.raises(UsageError, match="unknown --tiles"):
        check_tiles(tiles)
