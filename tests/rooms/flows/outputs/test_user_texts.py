"""Texts that users wrote for their media reach data sets, and no others do: neither what a run
wrote about another file of the same name, nor a file that a link leads to."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.errors import UsageError
from artifacts.records.keys import content_key, hash_file
from artifacts.records.store import open_store
from flows.commands.tune.training_data import examples_in
from flows.core.media.generated_files import OF_LABELS, GeneratedFiles, about
from flows.core.options.commands import CaptionConfig
from tests.support.media import write_video
from tests.support.pipeline import read_lines
from tests.support.saying import lines, run
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS

PRIVATE = "-----BEGIN PRIVATE KEY-----"


def picture(path: Path, level: int) -> None:
    Image.fromarray(np.full((48, 64, 3), level, np.uint8)).save(path)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    (clips := tmp_path / "clips").mkdir()
    picture(clips / "a.png", 90)
    return clips


@pytest.fixture
def config(clips: Path, tmp_path: Path) -> CaptionConfig:
    return config_in(tmp_path, clips, format=("txt", "kohya"))


def learned(config: CaptionConfig, **options: object) -> str:
    """What the data set has of `a.png` after a run."""
    run(replace(config, **options))  # type: ignore[arg-type]
    found = READERS["kohya"](Path(config.out))
    return next(caption for path, caption in found.items() if Path(path).name == "a.png")


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_what_a_run_wrote_about_another_file_of_the_name_is_no_text_of_a_user(
    config: CaptionConfig, clips: Path, beside: bool
) -> None:
    text = (clips if beside else Path(config.out)) / "a.txt"
    assert "Then?" in learned(config, prompt="Then?", beside=beside)
    picture(clips / "a.png", 200)
    now = learned(config, prompt="Now?", beside=beside)
    assert "Now?" in now and "Then?" not in now
    assert "Now?" in text.read_text() and "Then?" not in text.read_text()
    picture(clips / "a.png", 30)  # and by a run that no longer asks for texts
    assert "Later?" in learned(config, prompt="Later?", format=("kohya",))
    assert beside or "Later?" in text.read_text()


def test_a_user_s_text_stays_when_others_share_its_stem(config: CaptionConfig, clips: Path) -> None:
    model = learned(config)
    (Path(config.out) / "a.txt").write_text("mine")
    assert learned(config) == "mine"
    write_video(clips / "a.mp4")
    assert learned(config) == "mine"
    (clips / "a.mp4").unlink()
    assert learned(config) == "mine" != model


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "link": Path.symlink_to,
    "hard link": lambda text, private: os.link(private, text),
    "link to what the process was given": lambda text, _: text.symlink_to("/proc/self/environ"),
}


@pytest.mark.in_turn
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("kind", LINKS)
def test_a_text_that_leads_elsewhere_is_not_read(
    config: CaptionConfig, clips: Path, monkeypatch: pytest.MonkeyPatch, kind: str, beside: bool
) -> None:
    monkeypatch.setenv("TOKEN", PRIVATE)
    (private := clips.with_name("private.txt")).write_text(PRIVATE)
    text = (clips if beside else Path(config.out)) / "a.txt"
    text.parent.mkdir(exist_ok=True)
    LINKS[kind](text, private)
    result = run(replace(config, format=("kohya",)))
    (caption,) = READERS["kohya"](Path(config.out)).values()
    assert PRIVATE not in caption
    (note,) = (note for note in result.warnings if "not read" in note)
    assert str(text) in note and "link" in note
    assert private.read_text() == PRIVATE
    assert PRIVATE not in learned(config, format=("kohya",), prompt="Which of {tags}?")


def test_texts_of_the_hub_s_cache_and_links_within_the_folder_are_read(
    config: CaptionConfig, clips: Path, tmp_path: Path
) -> None:
    (blobs := tmp_path / "datasets--a--b" / "blobs").mkdir(parents=True)
    (snapshot := tmp_path / "datasets--a--b" / "snapshots" / "0").mkdir(parents=True)
    picture(tmp_path / "made.png", 50)
    contents = {"a.png": (tmp_path / "made.png").read_bytes(), "a.txt": b"theirs"}
    for name, content in contents.items():
        (blob := blobs / ("f" * 39 + str(len(name)) + name[-1])).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    assert learned(config, sources=(str(snapshot),)) == "theirs"
    (found,) = examples_in(str(snapshot))
    assert found.caption == "theirs"
    (clips / "words").mkdir()
    (clips / "words" / "a.txt").write_text("within")
    (clips / "a.txt").symlink_to("words/a.txt")
    assert learned(config, replace=True) == "within"


@pytest.mark.parametrize("kind", LINKS)
def test_a_training_refuses_a_text_that_leads_elsewhere(clips: Path, kind: str) -> None:
    (private := clips.with_name("private.txt")).write_text(PRIVATE)
    LINKS[kind](clips / "a.txt", private)
    with pytest.raises(UsageError, match="link") as refused:
        examples_in(str(clips))
    assert str(clips / "a.txt") in str(refused.value)


def many(config: CaptionConfig, *sources: Path | str, **options: object) -> dict[str, str]:
    """Medium → what the data set has of it after a run over these sources."""
    named = tuple(map(str, sources))
    found = run(replace(config, sources=named, format=("txt", "hf"), **options))  # type: ignore[arg-type]
    assert found.exit_code == 0
    folder = Path(config.out) / "hf" / "images"
    texts = {
        folder / row["file_name"]: row["text"] for row in read_lines(folder / "metadata.jsonl")
    }
    return {NAMES[int(np.asarray(Image.open(p)).flat[0])]: text for p, text in texts.items()}


NAMES = {40: "dark", 90: "grey", 200: "bright"}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """Folders that each hold another picture of one name."""
    folders = {name: tmp_path / name for name in NAMES.values()}
    for level, name in NAMES.items():
        folders[name].mkdir()
        picture(folders[name] / "c.png", level)
    return folders


def write_by_hand(config: CaptionConfig, before: dict[str, str], medium: str) -> None:
    """Replace the text of one medium in the folder of outputs."""
    text = before[medium]
    (path,) = (p for p in Path(config.out).glob("*.txt") if p.read_text().strip() == text)
    path.write_text(f"mine of {medium}")


@pytest.mark.slow
def test_texts_by_hand_stay_with_their_media_when_others_of_the_name_come_and_go(
    config: CaptionConfig, sources: dict[str, Path], tmp_path: Path
) -> None:
    dark, grey, bright = (sources[name] for name in NAMES.values())
    before = many(config, grey, bright)
    assert len(set(before.values())) == 2
    write_by_hand(config, before, "grey")
    write_by_hand(config, before, "bright")
    mine = {"grey": "mine of grey", "bright": "mine of bright"}
    assert many(config, grey, bright) == mine
    assert many(config, bright, grey) == mine
    now = many(config, dark, grey, bright)
    assert now == {**now, **mine} and "mine" not in now["dark"]
    for folder in (grey, dark):
        (folder / "notes.txt").touch()  # an empty folder would be away
    (grey / "c.png").rename(tmp_path / "away.png")
    now = many(config, dark, bright)
    assert now["bright"] == mine["bright"] and "mine" not in now["dark"]
    (dark / "c.png").unlink()
    assert many(config, bright) == {"bright": mine["bright"]}
    (tmp_path / "away.png").rename(grey / "c.png")
    assert many(config, bright, grey) == mine
    assert many(config, bright.rename(tmp_path / "moved"), grey) == mine


def test_a_lone_text_by_hand_stays_its_own(config: CaptionConfig, sources: dict[str, Path]) -> None:
    many(config, sources["grey"])
    (Path(config.out) / "c.txt").write_text("mine")
    now = many(config, sources["dark"], sources["grey"], sources["bright"])
    assert [name for name, caption in now.items() if caption == "mine"] == ["grey"]


@pytest.mark.parametrize("name", ["A.png", "0/a.png"])
def test_a_text_stays_when_a_copy_comes(config: CaptionConfig, clips: Path, name: str) -> None:
    """The copy is looked at first: it has the content, and in OUT the name, too."""
    run(config)
    (Path(config.out) / "a.txt").write_text("mine")
    (clips / name).parent.mkdir(exist_ok=True)
    shutil.copy(clips / "a.png", clips / name)
    folders = dict.fromkeys((str((clips / name).parent), str(clips)))
    run(replace(config, sources=tuple(folders)))
    assert len({(row["media_path"], row["source"]) for row in lines(config)}) == 2
    assert (Path(config.out) / "a.txt").read_text() == "mine"
    texts = sorted(path.name for path in Path(config.out).glob("*.txt"))
    assert len(texts) == 2, texts
    said = READERS["kohya"](Path(config.out))
    assert sorted(text == "mine" for text in said.values()) == [False, True]


def test_texts_of_another_spelling_are_of_earlier_runs(config: CaptionConfig, clips: Path) -> None:
    run(config)
    (clips / "a.png").rename(clips / "A.png")
    result = run(config)
    assert {path.name for path in Path(config.out).glob("*.txt")} == {"A.txt", "a.txt"}
    assert any("a.txt" in note for note in result.warnings), result.warnings


def test_texts_of_two_prompts_of_a_list_stay_with_their_prompts(
    config: CaptionConfig, sources: dict[str, Path], tmp_path: Path
) -> None:
    path, media = tmp_path / "list.jsonl", str(sources["grey"] / "c.png")

    def texts(*prompts: str) -> list[str]:
        lines = (json.dumps({"path": media, "prompt": each}) + "\n" for each in prompts)
        path.write_text("".join(lines))
        run(replace(config, sources=(f"@{path}",), format=("txt", "hf")))
        return sorted(READERS["hf"](Path(config.out)).values())

    model = texts("What?", "How many?")
    (second,) = (each for each in Path(config.out).glob("*.txt") if "How many?" in each.read_text())
    second.write_text("one, by hand")
    (first,) = (each for each in model if "What?" in each)
    assert texts("How many?", "What?") == sorted([first, "one, by hand"])
    assert texts("How many?") == ["one, by hand"]


def test_a_text_of_another_store_s_run_is_no_user_s(config: CaptionConfig, tmp_path: Path) -> None:
    before = learned(config, prompt="Then?")
    picture(tmp_path / "clips" / "a.png", 200)
    now = learned(config, prompt="Now?", store=str(tmp_path / "other"))
    assert "Then?" in before and "Now?" in now
    assert "Now?" in (Path(config.out) / "a.txt").read_text()


def test_formats_of_the_folder_are_written_again_whatever_users_made_of_their_files(
    config: CaptionConfig, clips: Path
) -> None:
    learned(config)
    (Path(config.out) / "a.txt").write_text("mine")
    picture(clips / "b.png", 200)
    learned(config, format=())
    assert (Path(config.out) / "a.txt").read_text() == "mine"
    assert (Path(config.out) / "b.txt").is_file()
    result = run(replace(config, format=(), prompts={"x": "What?", "y": "How?"}))
    names = {each.name for each in Path(config.out).glob("*.txt")}
    assert names == {"a.txt", "b.txt", "a.x.txt", "a.y.txt", "b.x.txt", "b.y.txt"}
    assert "not from this run: 2 .txt files in the same folder (a.txt, b.txt)" in [*result.notes()]


@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_the_note_of_texts_follows_no_link(config: CaptionConfig, clips: Path, kind: str) -> None:
    (private := clips.with_name("private.txt")).write_text(PRIVATE)
    Path(config.out).mkdir()
    LINKS[kind](Path(config.out) / ".written.jsonl", private)
    learned(config)
    assert private.read_text() == PRIVATE


@pytest.mark.parametrize("names", [("a.short.png", "a.png"), ("a.png", "a.jpg")])
def test_a_text_beside_another_medium_is_not_replaced_by_a_run_of_its_own(
    config: CaptionConfig, tmp_path: Path, names: tuple[str, str]
) -> None:
    for name, level in zip(names, (90, 200), strict=True):
        picture(tmp_path / "clips" / name, level)
    first, second = (str(tmp_path / "clips" / name) for name in names)
    text = Path(first).with_suffix(".txt")
    run(replace(config, sources=(first,), prompt="First?", beside=True, format=("txt",)))
    assert "First?" in text.read_text()
    again = replace(config, sources=(second,), out=str(tmp_path / "other"), beside=True)
    named = {"prompts": {"short": "Second?"}}
    request: dict[str, Any] = named if "short" in first else {"prompt": "Second?"}
    result = run(replace(again, format=("txt",), **request))
    assert "First?" in text.read_text()
    assert any("kept 1 .txt file" in note for note in result.notes())


def test_a_prompt_s_text_is_not_that_of_a_medium(config: CaptionConfig, tmp_path: Path) -> None:
    picture(tmp_path / "clips" / "a.short.png", 200)
    out, config = Path(config.out), replace(config, format=("txt", "hf"))
    prompts = {"short": "What?", "long": "How?"}
    run(config, prompts=prompts)
    (out / "a.short.txt").write_text("mine of a")
    run(config, prompts=prompts)
    assert list(READERS["hf"](out).values()).count("mine of a") == 1
    run(config, prompt="What?")
    assert "mine of a" not in READERS["hf"](out).values()
    assert (out / "a.short.txt").read_text() == "mine of a"


def test_a_copied_folder_and_a_folder_of_a_data_set_s_name_are_no_work_of_users(
    config: CaptionConfig, tmp_path: Path
) -> None:
    (media := tmp_path / "clips" / "hf").mkdir()
    picture(media / "b.png", 200)
    result = run(replace(config, format=("txt",), recursive=True))
    assert not any("earlier run" in note for note in result.notes())
    run(replace(config, format=("hf",), recursive=True))
    copy = Path(shutil.copytree(config.out, tmp_path / "copy"))
    result = run(replace(config, format=("hf",), recursive=True, out=str(copy)))
    assert not any("kept" in note for note in [*result.notes(), *result.warnings])


@pytest.mark.slow
@pytest.mark.parametrize("other", ["a.short.png", "a.png.mp4"])
def test_what_a_run_wrote_beside_one_medium_is_no_text_of_another(
    config: CaptionConfig, tmp_path: Path, other: str
) -> None:
    if other.endswith(".mp4"):
        write_video(tmp_path / "clips" / other)
    else:
        picture(tmp_path / "clips" / other, 200)
    only = replace(config, sources=(str(tmp_path / "clips" / other),), out=str(tmp_path / "o"))
    run(replace(only, prompt="Other?", beside=True, format=("txt",)))
    caption = learned(config, prompts={"short": "Own?", "long": "Other still?"}, format=("kohya",))
    assert "Own?" in caption


def test_a_user_s_text_is_that_of_the_first_of_named_prompts(config: CaptionConfig) -> None:
    learned(config)
    (Path(config.out) / "a.txt").write_text("mine")
    assert learned(config, prompts={"x": "What?", "y": "How?"}) == "mine"
    (Path(config.out) / "a.x.txt").write_text("mine of x")
    assert learned(config, prompts={"x": "What?", "y": "How?"}) == "mine of x"


def test_labels_of_an_earlier_content_are_not_told(config: CaptionConfig, clips: Path) -> None:
    medium, text = clips / "a.png", clips / "a.txt"
    of = about(content_key(hash_file(medium), "image"), text, str(medium))
    labels = GeneratedFiles(open_store(config.store_url), OF_LABELS)
    assert labels.update(text, b"red\n", "txt", of, replace=True)
    caption = learned(config, prompt="Tags: {tags}.", beside=True)
    assert caption.startswith("Tags: red.")  # of this picture
    picture(medium, 200)
    assert "red" not in learned(config, prompt="Tags: {tags}.", beside=True)


def test_a_training_takes_texts_of_media_of_one_stem(config: CaptionConfig, clips: Path) -> None:
    picture(clips / "a.jpg", 200)
    run(replace(config, beside=True, format=("txt",), prefix="in it: "))
    texts = {f"a.{suffix}": (clips / f"a.{suffix}.txt").read_text() for suffix in ("jpg", "png")}
    found = examples_in(str(clips), store=open_store(config.store_url))
    assert {e.path.name: f"in it: {e.caption}\n" for e in found} == texts


def test_trainings_omit_texts_about_other_content(config: CaptionConfig, tmp_path: Path) -> None:
    folder, message, store = tmp_path / "clips", list[str](), open_store(config.store_url)
    picture(folder / "b.png", 200)
    run(replace(config, beside=True, format=("txt",)))
    assert len(examples_in(str(folder), message.append, store)) == 2 and not message
    (folder / "a.png").rename(folder / "c.png")
    (folder / "b.png").rename(folder / "a.png")  # beside the text of another picture
    with pytest.raises(UsageError, match="holds no captions"):
        examples_in(str(folder), message.append, store)
    assert message == [
        "left out: 1 file with no words in a .txt (c.png)",
        "left out: 1 text of runs about other content (a.txt)",
    ]
    (folder / "a.txt").write_text("by hand")
    assert [each.caption for each in examples_in(str(folder), message.append, store)] == ["by hand"]
