"""The squares that a picture is cut in."""

import itertools

import pytest

from artifacts.errors import UsageError
from artifacts.tiles import boxes_of, check_tiles


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
