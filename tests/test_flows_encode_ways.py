"""Features and captions of a clip are those of the clip alone, whatever is encoded with it."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.edits import EditJournal, key_of
from artifacts.packs import RecordSet
from artifacts.store import open_store
from flows.cli.main import main
from flows.console.display import Display
from flows.running.run import caption
from stages.process.job import job_fields
from tests.support.dual_encoders import save_clip
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


@pytest.mark.parametrize("way", ["auto", "fixed"])
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_a_clip_has_the_bytes_that_it_has_alone(
    clips: Path, tmp_path: Path, way: str, precision: str
) -> None:
    options: dict[str, Any] = {"precision": precision, "encode_way": way}
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


def test_what_was_encoded_in_batches_answers_and_the_record_says_so(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(clips=clips, out=tmp_path / "o", store=tmp_path / "s")
    assert run(place, encode_way="batches") == ["describe", "frames", "encode", "decode"]
    before, said = made(place), place.captions()
    assert run(place) == [] and made(place) == before and place.captions() == said
    assert run(place, prompt="What?") == ["decode"] and made(place)[0] == before[0]
    write_video(tmp_path / "new.mp4", ticks=range(30))
    both = [*sorted(clips.iterdir()), tmp_path / "new.mp4"]
    assert run(place, sources=both) == ["frames", "encode", "decode"]
    record = json.loads((place.out / "run.json").read_text())
    assert record["encoded"] == {"auto": 1, "batches": len(before[0])}
    assert main(["status", str(place.out)]) == 0
    assert f"features: 1 auto, {len(before[0])} batches; in this run 1 alone" in (
        capsys.readouterr().out
    )
    assert run(place, sources=both, encode_way="alone") == ["frames", "encode", "decode"]


def test_a_correction_outlives_another_way(clips: Path, tmp_path: Path) -> None:
    place = Place(clips=clips, out=tmp_path / "o", store=tmp_path / "s")
    run(place, encode_way="batches")
    first = place.captions()[0]
    key = key_of(first["features"], first.get("name", ""), first["prompt"], first["caption"])
    journal = EditJournal(place.out)
    change = {"of": key, "media_path": first["media_path"], "start": first["start"]}
    change |= {"said": first["caption"], "caption": "a red kite", "review": "accepted"}
    action = {"id": "1", "time": "2026-01-01T00:00:00+00:00", "does": "correct"}
    journal.add({**action, "changes": [change]})
    journal.close()
    for kind in ("features", "captions"):
        shutil.rmtree(place.store / kind)
    assert "encode" in run(place)
    again = place.captions()[0]
    assert (again["caption"], again["original"]) == ("a red kite", first["caption"])
    assert again["features"] != first["features"]


@pytest.mark.slow
@pytest.mark.parametrize("tiles", ["off", "2"])
@pytest.mark.parametrize("way", ["auto", "alone", "fixed"])
def test_vectors_do_not_depend_on_the_batch(tmp_path: Path, way: str, tiles: str) -> None:
    (tmp_path / "p").mkdir()
    clip, pictures = save_clip(tmp_path / "clip"), write_images(tmp_path / "p")
    for size in ("1", "4", "32"):
        more = ("--encode-way", way, "--batch-size", size, "--tiles", tiles)
        assert embed(pictures, clip, tmp_path / size, *more) == 0
        assert np.array_equal(vectors(tmp_path / "1"), vectors(tmp_path / size))


@pytest.mark.parametrize("way", ["auto", "batches"])
def test_a_finished_chunk_is_computed_again_only_where_its_batch_matters(
    clips: Path, tmp_path: Path, way: str
) -> None:
    config = config_in(tmp_path, clips, encode_way=way, keep_frames=True)
    stages = Stages()
    caption(config, Display(quiet=True), stages.launcher)
    whole = stages.batches("encode")
    (job,) = (job_fields(call.job) for call in stages.calls if call.name == "encode")
    store = open_store(config.store)
    RecordSet(store, "features", job["namespace"]).remove([whole[0][0]])
    shutil.rmtree(Path(config.store) / "captions")
    stages.calls.clear()
    caption(config, Display(quiet=True), stages.launcher)
    assert len(whole[0]) > 1
    assert stages.batches("encode") == ([whole[0][:1]] if way == "auto" else whole[:1])
