"""Which frames are taken: of a whole file (--whole), and of the shots of clips joined into one file
(--shots)."""

import functools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from artifacts.frame_fit import FrameFit
from artifacts.schema import WHOLE_SECONDS, Sampling
from flows.commands.cache.clean import sampling_text
from flows.core.checkpoint.models import Model
from flows.core.ledger.namespaces import variants_of
from flows.core.pipelines import CAPTION
from penstock_demo import CHECKPOINT
from stages.frames.reader import Decoder
from stages.frames.video import Video
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import profile_of
from tests.support.families import checkpoint
from tests.support.inside import run_inside
from tests.support.keys import config_of, model_of
from tests.support.media import picture, write_numbered, write_video
from tests.support.pipeline import Place


def model_as(family: str, folder: Path, **changes: Any) -> Model:
    """The demo's profile over a folder whose config.json is of another family."""
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    profile = replace(profile_of(CHECKPOINT), folder=str(folder), **changes)
    return model_of(profile, config_of())


def test_whether_interlaced_frames_keep_their_combs_is_in_keys(tmp_path: Path) -> None:
    model = model_as("qwen2_5_vl", tmp_path)
    config, combed = (config_of(deinterlace=each) for each in ("auto", "off"))
    sampling, other = model.sampling(config), model.sampling(combed)
    assert (sampling.deinterlace, other.deinterlace) == (True, False)
    (before, *_), (after, *_) = (
        variants_of(c, model, s, CAPTION, set()) for c, s in ((config, sampling), (combed, other))
    )
    assert all(before[kind] != after[kind] for kind in ("frames", "features", "captions"))
    texts = [sampling_text(each.settings) for each in (sampling, other)]
    assert texts[1] == texts[0] + ", with combs"


HOURS = 2
FRAMES = 6
SECOND = Fraction(1, 1)
GOP = 60
drawn = functools.cache(picture)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours at a frame a second."""
    ticks, path = range(HOURS * 3600), tmp_path_factory.mktemp("long") / "long.mp4"
    return write_video(
        path, ticks=ticks, time_base=SECOND, gop=GOP, draw=lambda at, *size: drawn(at // GOP, *size)
    )


@pytest.fixture
def place(tmp_path: Path, long: Path) -> Place:
    """Two hours, three seconds, and a picture."""
    clips = write_numbered(tmp_path / "clips", 1)
    (clips / "long.mp4").symlink_to(long)
    write_video(clips / "short.mp4", ticks=range(90))
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")


@pytest.mark.slow
def test_a_file_has_one_caption_of_frames_from_all_of_it(place: Place) -> None:
    place = replace(place, model=str(checkpoint("qwen2_5_vl")))
    requests = {"max_frames": FRAMES, "max_new_tokens": 4}
    text = run_inside(place, whole=True, **requests).said
    assert f"captioned as a whole, by at most {FRAMES} frames evenly over it" in text
    picture_row, long, short = place.captions()
    assert (long["start"], long["end"]) == (0.0, HOURS * 3600.0)
    assert long["frames"] == [HOURS * 3600 / FRAMES * at for at in range(FRAMES)]
    assert (short["start"], short["end"]) == (0.0, 3.0) and 1 < len(short["frames"]) <= FRAMES
    values = json.loads((place.out / "run.json").read_text())["plan"]
    assert values["sampling"]["whole"] and values["sampling"]["chunk_seconds"] is None
    assert run_inside(place, whole=True, **requests).started == []
    # Pictures are no other thing than without it, and so are not looked at again.
    again = run_inside(place, chunk=4000.0, **requests)
    assert [row["media_path"] for row in place.captions()].count("long.mp4") == 2
    assert again.started == ["frames", "encode", "decode"]
    assert {**place.captions()[0], "features": ""} == {**picture_row, "features": ""}


def test_of_two_hours_few_frames_are_decoded(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = Decoder._decode

    def counted(self: Decoder, packet: Any) -> None:
        decoded.append(packet)
        decode(self, packet)

    monkeypatch.setattr(Decoder, "_decode", counted)
    sampling = Sampling(chunk_seconds=WHOLE_SECONDS, fps=1, max_frames=FRAMES)
    with Video(long) as video:
        (plan,) = video.plan(sampling)
        assert (plan.start, plan.end, len(plan.ticks)) == (0.0, HOURS * 3600.0, FRAMES)
        (chunk,) = video.chunks([plan], FrameFit())
    assert len(chunk.pixels) == FRAMES and chunk.index.times[-1] == 6000.0
    assert len(decoded) < 4 * FRAMES * 16, "of 7,200"


def test_it_is_told_apart_from_a_long_chunk() -> None:
    whole = Sampling(chunk_seconds=WHOLE_SECONDS, frames=4, max_frames=4)
    assert whole.whole and not replace(whole, chunk_seconds=1e5).whole
    assert not replace(whole, shots=True).whole
    assert sampling_text(whole.settings) == "whole files, 4 frames"
    assert sampling_text(replace(whole, chunk_seconds=30).settings) == "30 s, 4 frames"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "frames"), [("blip", 1), ("instructblipvideo", 4), ("perception_lm", 32)]
)
def test_a_family_that_takes_few_frames_sees_them_from_all_of_it(
    place: Place, family: str, frames: int
) -> None:
    place = replace(place, model=str(whole_checkpoint(family)))
    run_inside(place, whole=True, max_new_tokens=4)
    (seen,) = [row["frames"] for row in place.captions() if row["media_path"] == "long.mp4"]
    assert len(seen) == frames
    step = HOURS * 3600 / frames
    first = step / 2 if frames == 1 else 0.0
    assert seen == pytest.approx([first + at * step for at in range(frames)], abs=1.5)
