"""Features and captions of a clip are those of the clip alone, whatever is encoded with it."""

import random
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from flows.core.console.display import Display
from flows.core.job import pass_mode
from flows.execution.run import caption
from stages.process.job import job_fields
from tests.support.builders.clip import save_clip
from tests.support.embedding import embed, vectors, write_images
from tests.support.inside import run_inside
from tests.support.media import write_video
from tests.support.pipeline import Place
from tests.support.stand_ins import Stages, config_in

SIZES = ((64, 64), (96, 48), (64, 64), (80, 120))
"""Height and width of each clip; they have unlike lengths, too."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for at, size in enumerate(SIZES):
        write_video(folder / f"{at}.mp4", ticks=range(at, 30 * (at % 2 + 1)), size=size)
    return folder


def run(place: Place, *, sources: list[Path] | None = None, **options: Any) -> list[str]:
    """The stages that a run started."""
    if sources is not None:
        options["sources"] = tuple(map(str, sources))
    return run_inside(place, **{"max_new_tokens": 6, "chunk": 1.0, **options}).started


def made(place: Place) -> tuple[dict[str, str], dict[str, str]]:
    return place.stored("features"), place.stored("captions")


ALONE, FIXED = 0, 1 << 10
"""Most images of an input that shares its pass."""


@pytest.mark.slow
@pytest.mark.parametrize("images", [None, FIXED])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_clip_has_the_bytes_that_it_has_alone(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int | None, precision: str
) -> None:
    if images is not None:
        monkeypatch.setattr(pass_mode, "_images_per_row", lambda model, device: images)
    options: dict[str, Any] = {"precision": precision}
    files = sorted(clips.iterdir())
    alone: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for file in files:
        place = Place(clips=file, out=tmp_path / "o" / file.stem, store=tmp_path / file.stem)
        run(place, **options)
        for whole, part in zip(alone, made(place), strict=True):
            whole.update(part)
    for size in (1, 3, 8):
        place = Place(clips=clips, out=tmp_path / f"o{size}", store=tmp_path / f"s{size}")
        order = random.Random(size).sample(files, len(files))
        run(place, sources=order, batch_size=size, **options)
        assert made(place) == alone


@pytest.mark.slow
def test_what_was_encoded_in_batches_has_keys_of_its_own(clips: Path, tmp_path: Path) -> None:
    """As of a half that failed its trial on another machine."""
    place = Place(clips=clips, out=tmp_path / "o", store=tmp_path / "s")
    with mock.patch.object(pass_mode, "_has_pass_modes", return_value=False):
        assert run(place) == ["describe", "frames", "encode", "decode"]
    before, text = made(place), place.captions()
    assert run(place) == ["frames", "encode", "decode"]
    both = made(place)
    for kept, found in zip(before, both, strict=True):
        assert kept.items() < found.items() and len(found) == 2 * len(kept)
    with mock.patch.object(pass_mode, "_has_pass_modes", return_value=False):
        assert run(place) == [] and place.captions() == text
    assert made(place) == both


@pytest.mark.slow
@pytest.mark.parametrize("tiles", ["off", "2"])
@pytest.mark.parametrize("images", [ALONE, FIXED])
def test_vectors_do_not_depend_on_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, tiles: str
) -> None:
    monkeypatch.setattr(pass_mode, "_images_per_row", lambda model, device: images)
    (tmp_path / "p").mkdir()
    clip, pictures = save_clip(tmp_path / "clip"), write_images(tmp_path / "p")
    for size in ("1", "4", "32"):
        more = ("--batch-size", size, "--tiles", tiles)
        assert embed(pictures, clip, tmp_path / size, *more) == 0
        assert np.array_equal(vectors(tmp_path / "1"), vectors(tmp_path / size))


@pytest.mark.slow
@pytest.mark.parametrize("batches", [False, True])
def test_a_finished_chunk_is_computed_again_only_where_its_batch_matters(
    clips: Path, tmp_path: Path, request: pytest.FixtureRequest, batches: bool
) -> None:
    if batches:
        request.getfixturevalue("in_batches")
    config = config_in(tmp_path, clips, keep_frames=True)
    stages = Stages()
    caption(config, Display(quiet=True), stages.launcher)
    whole = stages.batches("encode")
    (job,) = (job_fields(call.job) for call in stages.calls if call.name == "encode")
    RecordSet(open_store(config.store), "features", job["namespace"]).remove([whole[0][0]])
    shutil.rmtree(Path(config.store) / "captions")
    stages.calls.clear()
    caption(config, Display(quiet=True), stages.launcher)
    assert len(whole[0]) > 1
    assert stages.batches("encode") == (whole[:1] if batches else [whole[0][:1]])
