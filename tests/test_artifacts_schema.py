import json

import pytest

from artifacts.errors import UsageError
from artifacts.schema import ChunkIndex, FrameFit, MediaIndex, Sampling


def test_an_index_survives_json() -> None:
    chunk = ChunkIndex(index=0, start=0.0, end=3.0, times=(0.0, 1.04), height=64, width=96)
    index = MediaIndex(
        kind="video", height=480, width=640, duration=3.0, chunks=(chunk,), warnings=("cut short",)
    )
    assert MediaIndex.from_json(json.loads(json.dumps(index.to_json()))) == index


@pytest.mark.parametrize(
    "fields",
    [
        {"fps": 1.0, "frames": 8},
        {},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"frames": 8, "chunk_seconds": -1.0},
    ],
)
def test_a_sampling_that_means_nothing_fails(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**{"chunk_seconds": 30.0, "max_frames": 32, **fields})  # type: ignore[arg-type]


def test_a_frame_is_never_enlarged() -> None:
    fit = FrameFit(long_edges=((0.5, 1000), (1.0, 800), (2.0, 1000)))
    assert fit.size(100, 200) == (100, 200)
    assert fit.size(2000, 2000) == (800, 800)
    assert fit.size(4000, 2000) == (1000, 500)


def test_between_two_aspects_the_size_is_interpolated() -> None:
    fit = FrameFit(long_edges=((0.5, 1000), (1.0, 800)))
    assert fit.size(1500, 2000) == (675, 900)


def test_beyond_the_known_aspects_the_nearest_one_counts() -> None:
    fit = FrameFit(long_edges=((0.5, 1000), (2.0, 600)))
    assert fit.size(100, 2000) == (50, 1000)
    assert fit.size(2000, 100) == (600, 30)


def test_no_known_fit_keeps_the_frame() -> None:
    assert FrameFit().size(4320, 7680) == (4320, 7680)
