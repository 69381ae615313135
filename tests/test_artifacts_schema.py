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
