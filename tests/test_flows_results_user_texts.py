"""Texts that users wrote for their media reach data sets, and no others do: neither what a run
wrote about another file of the same name, nor a file that a link leads to."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts.errors import UsageError
from flows.media.tune_data import examples_in
from flows.options.commands import CaptionConfig
from tests.support.media import write_video
from tests.support.saying import run
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS

PRIVATE = "-----BEGIN PRIVATE KEY-----"


def picture(path: Path, level: int) -> None:
    Image.fromarray(np.full((48, 64, 3), level, np.uint8)).save(path)


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    (tmp_path / "clips").mkdir()
    picture(tmp_path / "clips" / "a.png", 90)
    return config_in(tmp_path, tmp_path / "clips", format=("txt", "kohya"))


def learned(config: CaptionConfig, **options: object) -> str:
    """What the data set has of `a.png` after a run."""
    run(replace(config, **options))  # type: ignore[arg-type]
    found = READERS["kohya"](Path(config.out))
    return next(caption for path, caption in found.items() if Path(path).name == "a.png")


@pytest.mark.parametrize("existing", [None, "append"])
@pytest.mark.parametrize("beside", [False, True])
def test_what_a_run_wrote_about_another_file_of_the_name_is_no_text_of_a_user(
    config: CaptionConfig, tmp_path: Path, beside: bool, existing: str | None
) -> None:
    text = (tmp_path / "clips" if beside else Path(config.out)) / "a.txt"
    if existing:
        text.parent.mkdir(exist_ok=True)
        text.write_text("ohwx")
    before = learned(config, prompt="Then?", beside=beside, existing=existing)
    assert "Then?" in before and ("ohwx" in before) == bool(existing)
    picture(tmp_path / "clips" / "a.png", 200)
    now = learned(config, prompt="Now?", beside=beside, existing=existing)
    assert "Now?" in now and "Then?" not in now and ("ohwx" in now) == bool(existing)
    assert "Now?" in text.read_text() and "Then?" not in text.read_text()
    picture(tmp_path / "clips" / "a.png", 30)  # and by a run that no longer asks for texts
    assert "Later?" in learned(config, prompt="Later?", existing=existing, format=("kohya",))
    assert beside or "Later?" in text.read_text()


def test_a_text_of_a_user_stays_one_when_another_medium_has_its_stem(
    config: CaptionConfig, tmp_path: Path
) -> None:
    model = learned(config)
    (Path(config.out) / "a.txt").write_text("mine")
    assert learned(config) == "mine"
    write_video(tmp_path / "clips" / "a.mp4")
    assert learned(config) == "mine"
    (Path(config.out) / "a.png.txt").write_text("mine of both")
    (tmp_path / "clips" / "a.mp4").unlink()
    assert learned(config) == "mine"
    (Path(config.out) / "a.txt").unlink()
    assert learned(config) == "mine of both" != model


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "link": Path.symlink_to,
    "hard link": lambda text, private: os.link(private, text),
    "link to what the process was given": lambda text, _: text.symlink_to("/proc/self/environ"),
}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("kind", LINKS)
def test_a_text_that_leads_elsewhere_is_not_read(
    config: CaptionConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    beside: bool,
) -> None:
    monkeypatch.setenv("TOKEN", PRIVATE)
    (tmp_path / "private.txt").write_text(PRIVATE)
    text = (tmp_path / "clips" if beside else Path(config.out)) / "a.txt"
    text.parent.mkdir(exist_ok=True)
    LINKS[kind](text, tmp_path / "private.txt")
    result = run(replace(config, format=("kohya",)))
    (caption,) = READERS["kohya"](Path(config.out)).values()
    assert PRIVATE not in caption
    (note,) = (note for note in result.warnings if "not read" in note)
    assert str(text) in note and "link" in note
    assert (tmp_path / "private.txt").read_text() == PRIVATE
    assert PRIVATE not in learned(config, format=("kohya",), prompt="Which of {tags}?")


def test_texts_of_the_hub_s_cache_and_links_within_the_folder_are_read(
    config: CaptionConfig, tmp_path: Path
) -> None:
    cache = tmp_path / "datasets--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "0").mkdir(parents=True)
    for name, content in (("a.png", None), ("a.txt", "theirs")):
        blob = cache / "blobs" / ("f" * 39 + str(len(name)) + name[-1])
        picture(tmp_path / "made.png", 50)
        blob.write_bytes((tmp_path / "made.png").read_bytes() if content is None else b"theirs")
        (cache / "snapshots" / "0" / name).symlink_to(f"../../blobs/{blob.name}")
    assert learned(config, sources=(str(cache / "snapshots" / "0"),)) == "theirs"
    (found,) = examples_in(str(cache / "snapshots" / "0"))
    assert found.caption == "theirs"
    (tmp_path / "clips" / "words").mkdir()
    (tmp_path / "clips" / "words" / "a.txt").write_text("within")
    (tmp_path / "clips" / "a.txt").symlink_to("words/a.txt")
    assert learned(config, replace=True) == "within"


@pytest.mark.parametrize("kind", LINKS)
def test_a_training_refuses_a_text_that_leads_elsewhere(tmp_path: Path, kind: str) -> None:
    picture(tmp_path / "a.png", 90)
    folder = tmp_path / "data"
    folder.mkdir()
    picture(folder / "a.png", 90)
    (tmp_path / "private.txt").write_text(PRIVATE)
    LINKS[kind](folder / "a.txt", tmp_path / "private.txt")
    with pytest.raises(UsageError, match="link") as refused:
        examples_in(str(folder))
    assert str(folder / "a.txt") in str(refused.value)
