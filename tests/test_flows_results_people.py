"""What a person wrote or corrected is what trainers read, whichever folder or run asks."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.store import open_store
from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.formats import TRAINER_FORMATS
from flows.job.tune_data import examples_in
from flows.results.run_result import RunResult
from flows.reviewing.captions import ReviewedCaptions
from flows.running.run import caption
from scripts.store_before import BEFORE
from tests.support.inside import InsideLauncher
from tests.support.saying import run
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS


def picture(path: Path, shade: int) -> None:
    Image.fromarray(np.full((48, 64, 3), shade, np.uint8)).save(path)


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    """Two pictures, of which one has a text by hand."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        picture(folder / name, 50 * number + 20)
    (folder / "a.txt").write_text("by hand, a\n")
    return config_in(tmp_path, folder)


def said(config: CaptionConfig, name: str, out: str = "") -> dict[str, str]:
    """Stem of each medium in the order of the sources → what the trainer learns of it."""
    found = READERS[name](Path(out or config.out))
    return dict(zip(("a", "b"), (found[path] for path in sorted(found)), strict=True))


def write(config: CaptionConfig, *forms: str, **more: Any) -> RunResult:
    return run(config, format=forms or TRAINER_FORMATS, **more)


def correct(out: str, name: str, caption: str | None, review: str = "") -> None:
    captions = ReviewedCaptions(Path(out))
    key = next(k for k, row in captions.rows.items() if row["media_path"] == name)
    change = {"of": key, "caption": caption, "review": review}
    try:
        captions.do({"id": f"{name} {caption} {review}", "does": "x", "changes": [change]})
    finally:
        captions.close()


def test_every_trainer_learns_a_text_by_hand_always(config: CaptionConfig, tmp_path: Path) -> None:
    result = write(config, "txt", *TRAINER_FORMATS, beside=True)
    assert result.warnings == [
        "kept as people wrote or edited them: 1 .txt file (a.txt); --overwrite replaces them"
    ]
    assert "texts that people wrote or corrected: 1 in txt, 1 in kohya" in result.line()
    other = str(tmp_path / "other")
    write(config, out=other)
    for out in (config.out, other):
        for name in TRAINER_FORMATS:
            found = said(config, name, out)
            assert found["a"] == "by hand, a" and found["b"] != "by hand, a"


def test_a_correction_is_found_from_another_folder(config: CaptionConfig, tmp_path: Path) -> None:
    write(config, "txt")
    correct(config.out, "b.png", "corrected b")
    other = str(tmp_path / "other")
    assert "1 corrected by hand" in write(config, "musubi", out=other).line()
    assert said(config, "musubi", other)["b"] == "corrected b"
    captions = ReviewedCaptions(Path(config.out))
    captions.do({"id": "back", "does": "undo"})
    captions.close()
    write(config, "musubi", out=other)
    assert said(config, "musubi", other)["b"] != "corrected b"


def test_an_empty_text_is_nobody_s(config: CaptionConfig) -> None:
    folder = Path(config.sources[0])
    for name, content in (("a.txt", b"\xef\xbb\xbf \r\n"), ("b.txt", b"")):
        (folder / name).write_bytes(content)
    result = write(config, "txt", "kohya", beside=True)
    assert result.warnings == [] and "texts that people" not in result.line()
    assert (folder / "a.txt").read_text().strip() and (folder / "b.txt").read_text().strip()


def test_pictures_that_differ_only_in_their_suffix_are_named(config: CaptionConfig) -> None:
    folder = Path(config.sources[0])
    picture(folder / "b.jpg", 200)
    (note,) = [n for n in write(config, "txt", beside=True).warnings if "suffix" in n]
    assert note.startswith("b.jpg and b.png differ only in their suffix")
    assert (folder / "b.jpg.txt").exists() and (folder / "b.png.txt").exists()
    (folder / "b.txt").write_text("both")
    (note,) = [n for n in write(config, "kohya").warnings if "suffix" in n]
    assert "one .txt is the text of b.jpg and b.png" in note


def test_a_trigger_stands_before_every_caption_and_before_no_json(config: CaptionConfig) -> None:
    write(config, "txt", "musubi", trigger="ohwx", prefix="p ")
    found = said(config, "musubi")
    assert found["b"].startswith("ohwx, p Describe") and found["a"] == "by hand, a"
    correct(config.out, "b.png", "words")
    write(config, "musubi", trigger="sks")
    assert said(config, "musubi")["b"] == "sks, words"


def test_tune_learns_what_trainers_do(config: CaptionConfig, tmp_path: Path) -> None:
    write(config, "txt", trigger="ohwx")
    data, store = str(Path(config.out) / "captions.jsonl"), open_store(config.store)
    other = str(tmp_path / "other")
    write(config, "txt", out=other)
    correct(other, "b.png", "corrected b")
    told: list[str] = []
    learned = [each.caption for each in examples_in(data, told.append, store)]
    assert learned == ["by hand, a", "ohwx, corrected b"]
    assert told == ["1 caption of 2 are texts that people wrote (.txt)"]
    correct(other, "b.png", None, "rejected")
    assert [each.caption for each in examples_in(data, store=store)] == ["by hand, a"]


@pytest.mark.slow
def test_a_journal_of_before_is_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("clips", "store", "first"):
        shutil.copytree(BEFORE / part, tmp_path / part)
    shutil.copy(BEFORE.parent / "edits-before.jsonl", tmp_path / "first" / "edits.jsonl")
    monkeypatch.chdir(tmp_path)
    launcher = InsideLauncher()

    def captions(out: str) -> RunResult:
        options: Any = {"model": "demo", "precision": "fp32", "chunk": 2.0, "store": "store"}
        config = CaptionConfig(sources=("clips",), out=out, format=("txt",), **options)
        return caption(config, Display(quiet=True), lambda _: launcher)

    assert "corrected" not in captions("other").line(), "nobody has opened its folder"
    assert "1 corrected by hand and 1 rejected" in captions("first").line()
    assert "1 corrected by hand and 1 rejected" in captions("other").line()
    assert (tmp_path / "other" / "large.txt").read_text() == "a ring, by hand\n"
    assert "taken back" not in (tmp_path / "other" / "long.txt").read_text()
    assert set(launcher.started) <= {"describe"}
