"""What `{name}`, `{folder}` and `{tags}` in a prompt become, and which texts are no tags."""

import hashlib
from pathlib import Path

import pytest

from artifacts.store import FolderStore
from flows.job.formats import APPEND
from flows.job.joining import JoinedTexts
from flows.job.media_files import MediaFile
from flows.job.own_files import OF_LABELS, OwnFiles
from flows.job.tasks import Medium
from flows.job.templates import filled

DIGEST = "d" * 64


def prompts(place: Path, prompt: str, *names: str) -> tuple[list[str], list[str]]:
    """The prompts that files of a folder are asked, and what is said of it."""
    folder = place / "Summer {tags}"
    files = [
        MediaFile(path=folder / name, media_path=f"a/{name}", source=str(place), kind="video")
        for name in names or ("ball.one.mp4",)
    ]
    contents = [Medium(digest=DIGEST, path=str(f.path), kind="video", prompt=prompt) for f in files]
    found, notes = filled(files, contents, FolderStore(place / "store"))
    return [medium.prompt for medium in found], notes


@pytest.fixture
def tags(tmp_path: Path) -> Path:
    """The text beside the medium."""
    (tmp_path / "Summer {tags}").mkdir()
    return tmp_path / "Summer {tags}" / "ball.one.txt"


def remember(place: Path, text: Path, of: str = "") -> None:
    sha256 = hashlib.sha256(text.read_bytes()).hexdigest()
    OwnFiles(FolderStore(place / "store"), of).add("txt", DIGEST, sha256)


def test_words_in_braces_are_replaced_and_others_left_alone(tmp_path: Path, tags: Path) -> None:
    tags.write_text("red,  round\n{name}\n")
    asked = "{name} in {folder}: {tags}; {}, {x}, {{name}}, { name }"
    assert prompts(tmp_path, asked) == (
        ["ball.one in Summer {tags}: red, round {name}; {}, {x}, {ball.one}, { name }"],
        [],
    )
    assert prompts(tmp_path, "What {is} it?") == (["What {is} it?"], [])


def test_what_a_model_said_is_no_tag_and_labels_are_joined(tmp_path: Path, tags: Path) -> None:
    tags.write_text("a red ball\n")
    remember(tmp_path, tags)
    assert prompts(tmp_path, "[{tags}]")[0] == ["[]"]
    tags.write_text("a red ball, as I see it\n")
    assert prompts(tmp_path, "[{tags}]")[0] == ["[a red ball, as I see it]"]
    tags.write_text("ball, red\nred, cat\n\n")
    remember(tmp_path, tags, OF_LABELS)
    assert prompts(tmp_path, "[{tags}]")[0] == ["[ball, red, cat]"]


def test_of_a_text_with_a_caption_put_to_it_the_person_s_part_counts(
    tmp_path: Path, tags: Path
) -> None:
    tags.write_text("red, round\n")
    texts = JoinedTexts(OwnFiles(FolderStore(tmp_path / "store")), "txt")
    assert texts.bring(tags, DIGEST, "A ball rolls.\n", APPEND)
    assert "A ball rolls." in tags.read_text()
    assert prompts(tmp_path, "[{tags}]")[0] == ["[red, round]"]


def test_files_without_tags_are_told_of_once(tmp_path: Path, tags: Path) -> None:
    tags.write_bytes(b"\xff\xfe no UTF-8")
    found, notes = prompts(tmp_path, "[{tags}]", "ball.one.mp4", "two.mp4")
    assert found == ["[]", "[]"]
    (note,) = notes
    assert note.startswith("{tags} is empty in the prompt of 2 files, such as ball.one.mp4")
    assert prompts(tmp_path, "{name}")[1] == []


def test_the_caption_before_is_left_for_the_run(tmp_path: Path, tags: Path) -> None:
    found, _ = prompts(tmp_path, "{name}: after {previous}?", "two.mp4")
    assert found == ["two: after {previous}?"]
