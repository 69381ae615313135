"""One test for each class of file: covered whole, up to the damage, or refused by name."""

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.errors import MediaError
from artifacts.schema import FrameFit, MediaIndex, Sampling
from stages.frames.video import Chunk, Video
from tests.support.file_classes import DAMAGED, FRAMES, UNUSABLE, WHOLE, FileClass
from tests.support.media import decode_plainly, picture

TWICE_A_SECOND = Sampling(chunk_seconds=1, fps=2, max_frames=32)


def cut(path: Path) -> tuple[MediaIndex, list[Chunk]]:
    with Video(path) as video:
        chunks = list(video.chunks(video.plan(TWICE_A_SECOND), FrameFit()))
        return video.media_index([chunk.index for chunk in chunks]), chunks


def made(kind: FileClass, folder: Path) -> Path:
    try:
        av.codec.Codec(kind.encoder, "w")
    except ValueError:
        pytest.skip(f"this FFmpeg cannot write {kind.encoder}")
    path = folder / f"a{kind.suffix}"
    kind.make(path)
    return path


@pytest.mark.parametrize("name", WHOLE)
def test_it_is_covered_to_its_end_and_each_picture_is_that_of_its_time(
    tmp_path: Path, name: str
) -> None:
    kind = WHOLE[name]
    index, chunks = cut(made(kind, tmp_path))
    assert index.warnings == ()
    assert (index.height, index.width) == kind.size
    assert index.duration == pytest.approx(kind.duration, abs=0.002)
    assert chunks[0].index.start == 0 and chunks[-1].index.end == index.duration
    assert all(a.index.end == b.index.start for a, b in pairwise(chunks))
    taken = [(t, p) for c in chunks for t, p in zip(c.index.times, c.pixels, strict=True)]
    at = [int(np.abs(np.array(kind.times) - seconds).argmin()) for seconds, _ in taken]
    assert [kind.times[n] for n in at] == pytest.approx([t for t, _ in taken], abs=0.002)
    assert at == sorted(set(at))
    gaps = np.diff([*(t for t, _ in taken), kind.duration])
    assert gaps.max() < 1.1 and taken[0][0] == 0
    assert [nearest(pixels, kind, name) for _, pixels in taken] == [kind.shows(n) for n in at]


def nearest(pixels: NDArray[np.uint8], kind: FileClass, name: str) -> int:
    """Which of the pictures that were drawn this one is."""
    height, width = kind.size
    turned = name == "rotated"
    away = []
    for index in range(FRAMES):
        drawn = picture(index, *((width, height) if turned else (height, width)))
        upright = np.rot90(drawn, turned)
        away.append(np.abs(pixels.astype(int) - upright).mean())
    assert min(away) < (30 if name.startswith("HDR") else 12)
    return int(np.argmin(away))


@pytest.mark.parametrize("name", DAMAGED)
def test_it_is_captioned_up_to_the_damage_or_around_it_with_a_warning(
    tmp_path: Path, name: str
) -> None:
    suffix, damage = DAMAGED[name]
    path = tmp_path / f"a{suffix}"
    damage(path)
    index, chunks = cut(path)
    assert index.warnings
    last = decode_plainly(path)[-1].seconds
    assert chunks[0].index.start == 0 and index.duration >= last
    assert last - chunks[-1].index.times[-1] < 0.6


@pytest.mark.parametrize("kind", UNUSABLE)
def test_it_fails_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.mp4"
    UNUSABLE[kind](path)
    with pytest.raises(MediaError) as caught:
        Video(path)
    assert caught.value.kind == kind
    assert str(path) in caught.value.message and caught.value.hint
