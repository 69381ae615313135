"""Whole runs of models that are run by every route: what is captioned is what the whole model says
by its own `generate` of the same frames, and another prompt pays for no more than it must."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from artifacts.records.packs import RecordSet
from artifacts.records.store import FolderStore
from flows.core.console.display import Display
from flows.core.job.prepare import prepare
from flows.core.options.commands import CaptionConfig
from flows.core.plan.sizes import estimates
from stages.decode.protocol import read_features
from stages.models.halves.generate import UNDIVIDED
from stages.models.processors.blank_clips import Clip
from stages.models.processors.loading import load_processor
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import joint_model, profile_of
from tests.support.inside import InsideLauncher, run_inside
from tests.support.media import picture, write_numbered, write_video
from tests.support.pipeline import Place
from tests.support.processors import plain_call
from tests.support.whole_model import frames_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

JOINT = ("blip", "mllama")
ONE_PICTURE = ("blip", "florence2")
GOING_ON = ("blip",)
PROMPTED = ("instructblipvideo",)
FRAMES_PER_VIDEO = 4
"""Of which instructblipvideo takes neither more nor fewer."""
TOKENS = 8
ASKED = "Who is it?"
FAMILIES = ("blip", "florence2", "instructblipvideo", "mllama")
"""Of one picture, of features that see the prompt, and one that is run whole; whether others say
the same in halves is what the tests of models look at."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Three pictures of two shapes and a video of two chunks."""
    clips = write_numbered(tmp_path / "clips", 2)
    Image.fromarray(picture(7, 64, 40)).save(clips / "tall.png")
    write_video(clips / "video.mp4", ticks=range(120))
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")


def of(place: Place, family: str) -> Place:
    return replace(place, model=str(whole_checkpoint(family)))


def run(place: Place, **options: Any) -> Any:
    return run_inside(place, chunk=2.0, max_new_tokens=TOKENS, keep_frames=True, **options)


def whole_says(family: str, place: Place) -> list[str]:
    """What the whole model says of the frames that each caption is of, without the prompt."""
    pairs = zip(place.captions(), frames_of(place), strict=True)
    return [_says(family, row, meta, pixels) for row, (meta, pixels) in pairs]


def _says(family: str, row: dict[str, Any], meta: dict[str, Any], pixels: Any) -> str:
    times = tuple(max(0.0, time - meta["start"]) for time in meta["times"])
    kind: Any = "image" if row["start"] == row["end"] else "video"
    seconds = meta["end"] - meta["start"]
    clip = Clip(frames=pixels, times=times, seconds=seconds, kind=kind)
    if family == "instructblipvideo":
        count = FRAMES_PER_VIDEO // len(pixels)
        frames, kind = pixels.repeat(count, axis=0), "video"
        clip = Clip(frames=frames, times=times * count, seconds=seconds, kind=kind)
    processor, prompt = load_processor(whole_checkpoint(family)), row["prompt"]
    inputs = plain_call(family, processor, [clip], [prompt])
    with torch.inference_mode():
        model = joint_model(whole_checkpoint(family))
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    (text,) = processor.batch_decode(tokens, skip_special_tokens=True)
    for before in ("Assistant:", prompt):
        text = text.rpartition(before)[2] if before else text
    return str(text.strip())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_says_what_the_whole_model_says(family: str, place: Place) -> None:
    place = of(place, family)
    first = run(place)
    assert first.started == ["describe", "frames", "encode", "decode"]
    assert not first.result.failures
    assert ("cannot be run in halves" in first.said) == (family in JOINT)
    assert ("the middle frame only" in first.said) == (family in ONE_PICTURE)
    assert ("takes 4 frames of each chunk" in first.said) == (family == "instructblipvideo")
    assert ("so it is given none" in first.said) == (family in GOING_ON)
    assert ("another encodes anew" in first.said) == (family in PROMPTED)
    rows = place.captions()
    assert [row["caption"] for row in rows] == whole_says(family, place)
    assert len({row["caption"] for row in rows}) > 1, "or it speaks of nothing that it sees"
    assert [row["media_path"] for row in rows][-2:] == ["video.mp4"] * 2
    assert len(rows) == 5
    assert all((row["prompt"] == "") == (family in GOING_ON) for row in rows)
    assert run(place).started == []
    assert place.captions() == rows
    again = ["encode", "decode"] if family in PROMPTED else ["decode"]
    assert run(place, prompt=ASKED).started == again
    assert [row["caption"] for row in place.captions()] == whole_says(family, place)
    assert {row["prompt"] for row in place.captions()} == {ASKED}
    assert run(place).started == []
    assert place.captions() == rows


@pytest.mark.slow
def test_of_a_model_that_is_run_whole_pixels_are_stored_and_as_many_as_foreseen(
    place: Place,
) -> None:
    place = of(place, "blip")
    config = CaptionConfig(
        sources=(str(place.clips),), model=place.model, store=str(place.store), chunk=2.0
    )
    job = prepare(config, InsideLauncher(), Display(quiet=True).print_line)
    expected = sum(estimate.feature_bytes for estimate in estimates(job))
    run(place)
    namespace = job.ledger.variant["features"]
    features = RecordSet(FolderStore(place.store), "features", namespace)
    stored = 0
    for key in sorted(features.keys()):
        record = read_features(features, key)
        assert set(record.features) == {UNDIVIDED}
        stored += sum(tensor.nbytes for tensor in record.features[UNDIVIDED].values())
    assert len(features.keys()) == 5
    assert 0.9 < stored / expected <= 1.0


@pytest.mark.slow
def test_of_a_model_that_is_run_whole_the_decoder_is_quantized(place: Place) -> None:
    place = of(place, "mllama")
    layers = profile_of(whole_checkpoint("mllama")).language.linear_modules
    run(place)
    plain = place.captions()
    changed = run(place, precision="nf4")
    assert changed.started == ["decode"], "pixels are the same in any precision"
    rows = place.captions()
    assert all(row["precision"] == {"vision": "fp32", "language": "nf4"} for row in rows)
    assert layers and place.stages()["decode"]["notes"]["quantized_modules"] == {"nf4": layers}
    assert [row["caption"] for row in rows] != [row["caption"] for row in plain]
