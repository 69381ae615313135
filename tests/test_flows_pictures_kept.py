"""Pictures are stored whole: which keys that changed, and that plans count what is stored."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import flows.planning.sizes
from artifacts.keys import digest_of, item_key
from artifacts.schema import MAX_PIXELS, WHOLE, FrameFit, MediaIndex, stored_size
from flows.job.prepare import Job, prepare
from flows.ledger.tasks import Medium
from flows.ledger.waves import waves_of
from flows.options.commands import CaptionConfig
from flows.planning.sizes import estimates
from flows.planning.workloads import COPIES, workload_of, workloads_of
from tests.support.by_hand import PROFILE, model
from tests.support.families import checkpoint
from tests.support.inside import InsideLauncher, run_inside
from tests.support.media import picture, write_video
from tests.support.pipeline import Place

LARGE, SMALL, VIDEO = "large.png", "small.png", "video.mp4"
SHOWN = (480, 640)
TOKENS = 4


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A picture larger than it is seen, one that is not, and a video of one chunk."""
    clips = tmp_path / "clips"
    clips.mkdir()
    Image.fromarray(picture(3, *SHOWN)).save(clips / LARGE)
    Image.fromarray(picture(4, 24, 32)).save(clips / SMALL)
    write_video(clips / VIDEO)
    model = str(checkpoint("llava"))
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store", model=model)


def job_of(place: Place, **options: Any) -> Job:
    config = CaptionConfig(
        sources=(str(place.clips),),
        model=place.model,
        out=str(place.out),
        store=str(place.store),
        max_new_tokens=TOKENS,
        **options,
    )
    return prepare(config, InsideLauncher())


def test_only_a_picture_that_was_stored_smaller_once_has_another_key() -> None:
    assert item_key("s", "m", 0) == digest_of(["s", "m", 0])
    fit = FrameFit(long_edges=((1.0, 336),))
    index = MediaIndex(kind="image", height=336, width=336, duration=0.0, chunks=())
    assert index.key_suffix(fit) == replace(index, height=100, width=50).key_suffix(fit) == ()
    assert replace(index, height=337).key_suffix(fit) == (WHOLE,)
    assert replace(index, kind="video", height=5000).key_suffix(fit) == ()
    assert replace(index, height=5000, width=5000).key_suffix(FrameFit()) == ()
    assert replace(index, height=20_000, width=10_000).key_suffix(FrameFit()) == (WHOLE,)


@pytest.mark.parametrize(
    ("shown", "stored"),
    [((3000, 4000), (3000, 4000)), ((8192, 16384), (8192, 16384)), ((8193, 16385), (4097, 8193))],
)
def test_a_picture_is_stored_whole_as_long_as_it_can_be(
    shown: tuple[int, int], stored: tuple[int, int]
) -> None:
    assert stored_size(*shown) == stored
    assert (shown[0] * shown[1] <= MAX_PIXELS) == (shown == stored)


@pytest.mark.slow
def test_disk_and_waves_are_planned_for_whole_pictures(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        Image.fromarray(picture(number, *SHOWN)).save(place.clips / f"more-{number}.jpg")
    job = job_of(place)
    found = dict(zip((Path(m.path).name for m in job.media), estimates(job), strict=True))
    whole = 3 * SHOWN[0] * SHOWN[1]
    assert (found[LARGE].stored, found[LARGE].frame_bytes) == (SHOWN, whole)
    monkeypatch.setattr(flows.planning.sizes, "MAX_WAVE_BYTES", 2 * whole + whole // 2)
    sizes, limit = [e.bytes for e in found.values()], 2 * whole + whole // 2
    cut = waves_of(job.ledger, job.media, sizes, limit)
    assert max(sum(m.kind == "image" and SMALL not in m.path for m in wave) for wave in cut) == 2
    monkeypatch.undo()
    run_inside(place, max_new_tokens=TOKENS)
    again = estimates(job_of(place, prompt="Who is it?"))
    pictures = [e for m, e in zip(job.media, again, strict=True) if m.kind == "image"]
    assert len(pictures) == 5 and all(e.frame_bytes == 0 for e in pictures)


def test_memory_is_planned_for_the_picture_that_is_read_and_tokens_for_what_is_seen() -> None:
    def workload(height: int, width: int) -> Any:
        return workload_of(model(), "image", 9, 1, (height, width), (height, width), "x")

    seen, huge = workload(336, 336), workload(8700, 11600)
    assert (huge.tokens, huge.units) == (seen.tokens, seen.units)
    assert huge.reading_bytes(8) == COPIES * 3 * 8700 * 11600
    assert "11600x8700" in huge.line()
    assert model().profile == PROFILE


def test_the_largest_pictures_and_those_of_most_tokens_are_both_planned_for() -> None:
    fit = FrameFit(long_edges=((0.1, 100), (0.5, 100), (0.51, 1000), (1.0, 1000)))
    asked = model(replace(PROFILE, fit_image=fit))

    def one(height: int, width: int) -> Any:
        size = (height, width)
        return flows.planning.sizes.Estimate(
            seconds=0.0,
            chunks=1,
            frames=1,
            frame_bytes=3 * height * width,
            feature_bytes=0,
            chunk_frames=1,
            stored=size,
            shown=size,
        )

    media = [Medium(digest=str(n), path="", kind="image", prompt="x") for n in range(2)]
    workloads = workloads_of(asked, media, [one(600, 600), one(1000, 4000)])
    assert {each.stored for each in workloads} == {(600, 600), (1000, 4000)}
