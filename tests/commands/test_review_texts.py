"""`penstock review FOLDER --out OUT`: texts beside media are corrected, and written again."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from artifacts.disk.files import write_text
from artifacts.errors import EnvironmentFault, UsageError
from flows.commands.review.captions import ReviewedCaptions
from flows.commands.review.folder_texts import take_in, write_texts
from flows.commands.review.seen_captions import Trained, seen_in
from flows.interfaces.cli.main import main
from tests.support.pipeline import read_lines

TEXTS = {"a": "a dog\n", "b": "cat, sofa", "deep/c": "\ufeffa house\r\nby a lake\r\n", "d": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures with a text, in another folder, too, and one without."""
    for at, name in enumerate((*TEXTS, "bare")):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + at, 8)).save(path)
        if name in TEXTS:
            path.with_suffix(".txt").write_bytes(TEXTS[name].encode())
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: Path, folder: Path) -> Iterator[Path]:
    take_in(folder, tmp_path / "out")
    yield tmp_path / "out"


def decide(out: Path, *changes: tuple[str, str | None, str], does: str = "correct") -> str:
    """Decide on captions by the name of their file, and write. Return what came of it."""
    with closing(ReviewedCaptions(out, shows_all=True)) as captions:
        keys = {row["media_path"]: key for key, row in captions.folder.rows.items()}
        made = [{"of": keys[name], "caption": text, "review": how} for name, text, how in changes]
        if made:
            captions.apply({"id": os.urandom(8).hex(), "does": does, "changes": made})
        return write_texts(captions)


def said(out: Path) -> dict[str, tuple[str, str]]:
    """Name of a file → its text as it was read first, and its words now."""
    with closing(ReviewedCaptions(out)) as captions:
        edits = captions.edits()
        return {
            row["media_path"]: (row["said"], (key in edits and edits[key].caption) or row["said"])
            for key, row in captions.folder.rows.items()
        }


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_texts_become_captions_and_the_folder_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    before = digests(folder)
    notes = take_in(folder, tmp_path / "out")
    assert notes == ["1 file left out, which have no text of their own"]
    lines = {
        line["media_path"]: line["caption"] for line in read_lines(tmp_path / "out/captions.jsonl")
    }
    assert lines == {
        "a.png": "a dog",
        "b.png": "cat, sofa",
        "d.png": "",
        "deep/c.png": "a house\nby a lake",
    }
    assert digests(folder) == before


def test_write_changes_the_decided_texts_alone_and_an_undo_brings_them_back(
    folder: Path, out: Path
) -> None:
    before = digests(folder)
    changes: Any = (
        ("a.png", "a brown dog", "accepted"),
        ("deep/c.png", "a hut", ""),
        ("b.png", "x", "rejected"),
    )
    assert decide(out, *changes) == "2 texts written"
    assert (folder / "a.txt").read_bytes() == b"a brown dog\n"
    assert (folder / "deep/c.txt").read_bytes() == b"a hut\n"
    after = digests(folder)
    assert {name for name in after if after[name] != before[name]} == {"a.txt", "c.txt"}
    assert decide(out) == "0 texts written"
    assert take_in(folder, out) == ["1 file left out, which have no text of their own"]
    assert said(out)["a.png"] == ("a dog", "a brown dog"), "the decision stays"
    assert decide(out, ("a.png", None, "")) == "1 text written"
    assert (folder / "a.txt").read_bytes() == b"a dog\n"


def test_a_text_that_somebody_changed_is_left_alone_and_named(folder: Path, out: Path) -> None:
    (folder / "a.txt").write_text("a wolf")
    (folder / "deep/c.txt").unlink()
    changes: Any = [(name, "new", "") for name in ("a.png", "b.png", "deep/c.png")]
    told = decide(out, *changes)
    because = "because somebody changed or protected them: a.txt, deep/c.txt"
    assert told == f"1 text written; 2 left alone, {because}"
    assert (folder / "a.txt").read_text() == "a wolf" and (folder / "b.txt").read_text() == "new"
    assert not (folder / "deep/c.txt").exists()
    notes = take_in(folder, out)
    assert any(note.startswith("1 text or medium changed since the last review") for note in notes)
    assert said(out)["a.png"] == ("a wolf", "a wolf") and said(out)["b.png"] == ("cat, sofa", "new")


@pytest.mark.parametrize("is_written", [False, True])
def test_a_kill_while_texts_are_written_loses_no_decision(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    def killed(path: Path, pieces: Any) -> None:
        if is_written:
            write_text(path, pieces)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"{take_in.__module__}.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            decide(out, ("a.png", "a brown dog", ""), ("b.png", "cat", ""))
    take_in(folder, out)
    assert said(out)["a.png"] == ("a dog", "a brown dog")
    assert decide(out) == f"{2 - is_written} text{'s' * (not is_written)} written"
    assert (folder / "a.txt").read_text() == "a brown dog\n"
    assert (folder / "b.txt").read_text() == "cat"


def test_texts_of_others_and_what_is_no_text_are_refused_in_a_line(
    folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    for name in ("a", "b", "d"):
        (folder / f"{name}.txt").unlink()
    (folder / "a.txt").symlink_to(secret)
    (folder / "b.txt").hardlink_to(secret)
    (folder / "d.txt").write_bytes("ein Hund".encode("utf-16"))
    notes = take_in(folder, tmp_path / "out")
    assert "3 texts cannot be read: see Show, files that failed" in notes
    why = {f["media_path"]: f["message"] for f in read_lines(tmp_path / "out/failures.jsonl")}
    assert "link out of" in why["a.png"] and "UTF-16" in why["d.png"] and "b.txt" in why["b.png"]
    decide(tmp_path / "out", ("deep/c.png", "x", ""))
    assert secret.read_text() == "mine"


def test_the_output_folder_of_a_stranger_writes_no_text(folder: Path, out: Path) -> None:
    marker = out / ".penstock.json"
    marker.write_text(marker.read_text().replace("photos", "photo5"))
    with pytest.raises(UsageError):
        decide(out)
    with pytest.raises(UsageError, match="is the output folder of another user"):
        take_in(folder, out)


def test_a_folder_that_is_none_of_texts_is_refused(
    folder: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object) -> str:
        assert main(["review", *map(str, words), "--port", "0"]) == 2
        return capsys.readouterr().err

    assert "give an --out for decisions on the texts here" in refused(folder)
    assert "is the folder of the texts" in refused(folder, "--out", folder)
    assert "is the output folder of a run" in refused(out, "--out", tmp_path / "other")
    assert "no folder" in refused(tmp_path / "none", "--out", tmp_path / "other")
    (tmp_path / "empty").mkdir()
    assert "no medium with a text" in refused(tmp_path / "empty", "--out", tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/captions.jsonl").write_text("mine")
    assert "another program" in refused(folder, "--out", tmp_path / "mine")
    assert (tmp_path / "mine/captions.jsonl").read_text() == "mine"
    assert main(["caption", str(folder), "--model", "demo", "--out", str(out)]) == 2
    assert "is the output folder of `penstock review`" in capsys.readouterr().err
    assert main(["status", str(out)]) == 0


def test_what_was_written_before_an_error_is_known_to_be_written(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, pieces: Any) -> None:
        if path.name == "b.txt":
            raise EnvironmentFault("the disk is full")
        write_text(path, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(f"{take_in.__module__}.write_text", full)
        with pytest.raises(EnvironmentFault):
            decide(out, ("a.png", "a brown dog", ""), ("b.png", "cat", ""))
    assert decide(out, ("a.png", None, ""), ("b.png", None, "")) == "1 text written"
    assert (folder / "a.txt").read_text() == "a dog\n"
    assert (folder / "b.txt").read_text() == "cat, sofa"


@pytest.mark.parametrize("trainer", ["kohya:sd1.5", "onetrainer:sd1.5"])
def test_a_trainer_judges_texts_without_a_data_set(out: Path, trainer: str) -> None:
    with closing(ReviewedCaptions(out)) as captions:
        folder, edits = captions.folder, captions.edits()
        told = seen_in(out, folder, edits, Trained(trainers=(trainer,)), "empty or lines")
        found = {folder.rows[key]["media_path"] for key in cast(list[str], told["keys"])}
        of_media = seen_in(out, folder, edits, Trained(trainers=(trainer,)), "cropped > 1 or small")
        with pytest.raises(UsageError, match="does not say what is trained on it"):
            seen_in(out, folder, edits, Trained(), "empty")
    assert "no data set" not in f"{told['notes']}" and "no data set" in f"{of_media['notes']}"
    assert found == {"d.png"} | ({"deep/c.png"} if trainer.startswith("one") else set())


def test_decisions_on_one_folder_are_none_on_another_of_the_same_names(tmp_path: Path) -> None:
    for name, colour in (("one", "red"), ("other", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / name / "0001.bmp")
        (tmp_path / name / "0001.txt").write_text("ohwx")
        take_in(tmp_path / name, tmp_path / f"out-{name}")
    assert decide(tmp_path / "out-one", ("0001.bmp", "a red square", "accepted"))
    assert decide(tmp_path / "out-other") == "0 texts written"
    assert (tmp_path / "other/0001.txt").read_text() == "ohwx"
    assert said(tmp_path / "out-other")["0001.bmp"] == ("ohwx", "ohwx")


def test_words_for_an_empty_text_stay_decided_and_are_undone(folder: Path, out: Path) -> None:
    assert decide(out, ("d.png", "a lake", "accepted")) == "1 text written"
    assert (folder / "d.txt").read_text() == "a lake"
    assert decide(out) == "0 texts written"
    take_in(folder, out)
    assert said(out)["d.png"][1] == "a lake", "the decision stays"
    assert decide(out, ("d.png", None, "")) == "1 text written"
    assert (folder / "d.txt").read_text() == ""


def test_a_text_keeps_its_mode_and_a_link_its_target(folder: Path, out: Path) -> None:
    (folder / "a.txt").chmod(0o640)
    (folder / "b.txt").rename(folder / "real.txt")
    (folder / "b.txt").symlink_to("real.txt")
    (folder / "deep/c.txt").chmod(0o444)
    changes: Any = [(name, "new", "") for name in ("a.png", "b.png", "deep/c.png")]
    assert decide(out, *changes).startswith("2 texts written; 1 left alone")
    assert (folder / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (folder / "b.txt").is_symlink() and (folder / "real.txt").read_text() == "new"
    assert (folder / "deep/c.txt").stat().st_mode & 0o777 == 0o444
