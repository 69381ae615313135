"""Data sets of trainers attacked by what people wrote and corrected: none of it is lost, and none
is put where it does not belong."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.records.store import open_store
from artifacts.texts.captions import one_line
from artifacts.texts.edits import ReviewedRow
from flows.commands.cache.clean import collect
from flows.commands.review.captions import ReviewedCaptions
from flows.core.options.commands import CaptionConfig
from flows.core.options.formats import TRAINER_FORMATS
from tests.support.media import write_video
from tests.support.saying import run
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    (folder := tmp_path / "clips").mkdir()
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "a.png")
    return config_in(tmp_path, folder)


def learned(config: CaptionConfig, form: str, **more: object) -> str:
    run(replace(config, format=(form,), **more))  # type: ignore[arg-type]
    (caption,) = READERS[form](Path(str(more.get("out", config.out)))).values()
    return caption


@pytest.mark.parametrize(
    ("form", "rule"), [(form, "keep") for form in TRAINER_FORMATS] + [("kohya", "replace")]
)
def test_a_text_by_hand_follows_the_rule(config: CaptionConfig, form: str, rule: str) -> None:
    model = learned(config, form)
    (text := Path(config.sources[0]) / "a.txt").write_text("by hand.")
    assert learned(config, form, existing=rule) == {"keep": "by hand.", "replace": model}[rule]
    assert text.read_text() == "by hand."


OF_VIDEOS = ("musubi", "diffusion-pipe")
ASKED = {"short": "What, in short?", "long": "What, in full?"}


def edit(out: str, choose: Callable[[ReviewedRow], bool], **values: Any) -> None:
    """Correct the captions of a folder that are chosen by their rows."""
    with contextlib.closing(ReviewedCaptions(Path(out))) as captions:
        given = {"caption": None, "review": "", **values}
        changes = [{"of": k, **given} for k, row in captions.folder.rows.items() if choose(row)]
        edit_id = f"{len(captions.journal.edits.ids)}"
        captions.apply({"id": edit_id, "does": "x", "changes": changes})


def undo(out: str) -> None:
    with contextlib.closing(ReviewedCaptions(Path(out))) as captions:
        captions.apply({"id": f"{len(captions.journal.edits.ids)}", "does": "undo"})


@pytest.fixture
def video(config: CaptionConfig) -> CaptionConfig:
    """A video of three chunks in the place of the picture."""
    folder = Path(config.sources[0])
    (folder / "a.png").unlink()
    write_video(folder / "a.mp4", ticks=range(150), gop=25)
    return replace(config, chunk=2.0)


def all_learned(config: CaptionConfig, form: str, **more: Any) -> list[str]:
    """What a trainer learns, whose media have names in no order."""
    run(replace(config, format=(form,), **more))
    return sorted(READERS[form](Path(str(more.get("out", config.out)))).values())


def of_chunks(config: CaptionConfig) -> list[str]:
    """What the model says of each chunk."""
    with contextlib.closing(ReviewedCaptions(Path(config.out))) as captions:
        return [one_line(row["said"]) for row in captions.folder.rows.values()]


@pytest.mark.parametrize(("name", "counts"), [("short", True), ("long", False)])
def test_a_correction_is_of_the_prompt_that_it_was_made_of(
    config: CaptionConfig, tmp_path: Path, name: str, counts: bool
) -> None:
    model = learned(config, "kohya", prompts=ASKED)
    edit(config.out, lambda row: row["name"] == name, caption="mine")
    other = str(tmp_path / "other")
    assert learned(config, "kohya", out=other, prompts=ASKED) == ("mine" if counts else model)
    turned = dict(reversed(ASKED.items()))
    assert (learned(config, "kohya", out=other, prompts=turned) == "mine") == (not counts)
    assert learned(config, "kohya", out=other, prompt=ASKED[name]) != "mine", "it has no name"


@pytest.mark.parametrize("file", ["a.short.txt", "a.short.png.txt", "a.txt"])
def test_a_text_by_hand_is_of_its_prompt(config: CaptionConfig, file: str) -> None:
    (Path(config.sources[0]) / file).write_text("by hand")
    assert learned(config, "hf", prompts=ASKED) == "by hand"
    other = {"long": ASKED["long"], "other": "What else?"}
    assert (learned(config, "hf", prompts=other) == "by hand") == (file == "a.txt")


@pytest.mark.parametrize("form", OF_VIDEOS)
@pytest.mark.parametrize("number", [0, 2])
def test_a_correction_is_of_its_chunk(
    video: CaptionConfig, tmp_path: Path, form: str, number: int
) -> None:
    learned_before, model = all_learned(video, form), of_chunks(video)
    assert len(model) == 3 and learned_before == sorted(model)
    edit(video.out, lambda row: row["start"] == 2.0 * number, caption="mine")
    expected = sorted([*model[:number], "mine", *model[number + 1 :]])
    assert all_learned(video, form, out=str(tmp_path / "other")) == expected


@pytest.mark.parametrize("form", OF_VIDEOS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [("one\ntwo\nthree\n", ["one", "three", "two"]), ("all of it", ["all of it"] * 3)],
)
def test_a_text_by_hand_is_of_its_chunks(
    video: CaptionConfig, form: str, text: str, expected: list[str]
) -> None:
    (Path(video.sources[0]) / "a.txt").write_text(text)
    assert all_learned(video, form) == expected


def test_lines_by_hand_stay_when_a_chunk_was_rejected(video: CaptionConfig, tmp_path: Path) -> None:
    all_learned(video, "musubi")
    edit(video.out, lambda row: row["start"] == 2.0, review="rejected")
    (Path(video.sources[0]) / "a.txt").write_text("one\ntwo\nthree")
    assert all_learned(video, "musubi", out=str(tmp_path / "other")) == ["one", "three"]


def test_the_rejected_is_learned_nowhere_until_undone(video: CaptionConfig, tmp_path: Path) -> None:
    all_learned(video, "diffusion-pipe")
    model, other = of_chunks(video), str(tmp_path / "other")
    edit(video.out, lambda row: row["start"] == 0.0, review="rejected")
    assert all_learned(video, "diffusion-pipe", out=other) == sorted(model[1:])
    edit(other, lambda row: row["start"] == 4.0, caption="last", review="accepted")
    assert all_learned(video, "diffusion-pipe") == sorted([model[1], "last"])
    undo(video.out)
    assert all_learned(video, "diffusion-pipe", out=other) == sorted([*model[:2], "last"])


def test_a_correction_outlives_gc(video: CaptionConfig, tmp_path: Path) -> None:
    all_learned(video, "musubi")
    model, other = of_chunks(video), str(tmp_path / "other")
    edit(video.out, lambda row: row["start"] == 2.0, caption="mine")
    medium = Path(video.sources[0]) / "a.mp4"
    away = medium.rename(tmp_path / "a.mp4")
    collect(open_store(video.store), 0, dry_run=False)
    away.replace(medium)
    shutil.rmtree(video.out)
    assert all_learned(video, "musubi", out=other) == sorted([model[0], "mine", model[2]])
