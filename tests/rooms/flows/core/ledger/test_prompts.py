"""What words in braces in a prompt become, which texts are no tags, and in which keys they are."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.records.store import FolderStore
from artifacts.schema import ChunkIndex
from flows.core.ledger.namespaces import Variant
from flows.core.ledger.prompts import FilePlaceholders, added_bytes, fill_placeholders
from flows.core.ledger.tasks import Medium, task_of
from flows.core.media.generated_files import OF_LABELS, GeneratedFiles
from flows.core.media.media_file import MediaFile

DIGEST = "d" * 64


def prompts(place: Path, prompt: str, *names: str) -> tuple[list[str], list[str]]:
    """The prompts that files of a folder are asked, and what is said of it."""
    folder = place / "Summer {tags}"
    files = [
        MediaFile(path=folder / name, media_path=f"a/{name}", source=str(place), kind="video")
        for name in names or ("ball.one.mp4",)
    ]
    placeholders = FilePlaceholders(FolderStore(place / "store"))
    return [placeholders.fill(prompt, file, DIGEST) for file in files], placeholders.notes()


@pytest.fixture
def tags(tmp_path: Path) -> Path:
    """The text beside the medium."""
    (tmp_path / "Summer {tags}").mkdir()
    return tmp_path / "Summer {tags}" / "ball.one.txt"


def remember(place: Path, text: Path, of: str = "") -> None:
    sha256 = hashlib.sha256(text.read_bytes()).hexdigest()
    GeneratedFiles(FolderStore(place / "store"), of).add("txt", sha256, (DIGEST,))


def test_words_in_braces_are_replaced_and_others_left_alone(tmp_path: Path, tags: Path) -> None:
    tags.write_text("red,  round\n{name}\n")
    assert prompts(tmp_path, "{name} in {folder}: {tags}; {}, {x}, {{name}}, { name }") == (
        ["ball.one in Summer {tags}: red, round {name}; {}, {x}, {ball.one}, { name }"],
        [],
    )
    other = "What {is} it after {previous}?"
    assert prompts(tmp_path, other)[0] == [other]


def test_what_a_model_said_is_no_tag_and_labels_are_joined(tmp_path: Path, tags: Path) -> None:
    tags.write_text("a red ball\n")
    remember(tmp_path, tags)
    assert prompts(tmp_path, "[{tags}]")[0] == ["[]"]
    tags.write_text("a red ball, as I see it\n")
    assert prompts(tmp_path, "[{tags}]")[0] == ["[a red ball, as I see it]"]
    tags.write_text("ball, red\nred, cat\n\n")
    remember(tmp_path, tags, OF_LABELS)
    assert prompts(tmp_path, "[{tags}]")[0] == ["[ball, red, cat]"]


def test_tags_stand_in_either_text_of_a_medium(tmp_path: Path, tags: Path) -> None:
    (longer := tags.with_name("ball.one.mp4.txt")).write_text("red, round\n")
    assert prompts(tmp_path, "[{tags}]") == (["[red, round]"], [])
    tags.write_text("blue\n")
    assert prompts(tmp_path, "[{tags}]")[0] == ["[red, round]"], "the text with its whole name"
    remember(tmp_path, longer)
    assert prompts(tmp_path, "[{tags}]")[0] == ["[blue]"], "the other one is a model's"
    longer.write_text(" \n")
    assert prompts(tmp_path, "[{tags}]") == (["[blue]"], [])


def test_files_without_tags_are_told_of_once(tmp_path: Path, tags: Path) -> None:
    tags.write_bytes(b"\xff\xfe no UTF-8")
    found, notes = prompts(tmp_path, "[{tags}]", "ball.one.mp4", "two.mp4")
    assert found == ["[]", "[]"]
    (note,) = notes
    assert note.startswith("{tags} is empty in the prompt of 2 files, such as ball.one.mp4")
    assert prompts(tmp_path, "{name}")[1] == []


CARD = (
    "The video lasts for {seconds} seconds, and {frames} frames are uniformly sampled from it. "
    "These frames are located at {times}.Please answer the following questions related to this "
    "video.\nDescribe it."
)
NAMESPACES = Variant(
    of={"frames": "f" * 64, "features": "e" * 64, "captions": "c" * 64},
    prompted=frozenset(["captions"]),
)


def chunk(start: float = 0.0, end: float = 3.0, *times: float) -> ChunkIndex:
    return ChunkIndex(index=0, start=start, end=end, times=times, height=48, width=64)


def test_the_prompt_of_llava_video_is_that_of_its_card() -> None:
    filled = CARD.replace("{seconds}", "3.50").replace("{frames}", "3")
    filled = filled.replace("{times}", "0.00s,1.00s,2.00s")
    assert fill_placeholders(CARD, chunk(0.0, 3.5, 0.0, 1.0, 2.0)) == filled


def test_times_count_from_the_beginning_of_the_chunk() -> None:
    later = chunk(30.0, 42.25, 29.98, 31.0, 40.125)
    assert fill_placeholders("{seconds} {frames} {times}", later) == "12.25 3 0.00s,1.00s,10.12s"
    for only in (0, 8):  # an image is one frame of no length
        image = fill_placeholders("{seconds} {frames} {times}", chunk(0.0, 0.0, 0.0), only)
        assert image == "0.00 1 0.00s"
    for prompt in ("{second} {} {x} { frames } {previous}", ""):
        assert fill_placeholders(prompt, later) == prompt


def test_a_model_that_takes_one_number_of_frames_is_told_of_those_that_it_sees() -> None:
    short, long = chunk(5.0, 7.0, 5.0, 6.0), chunk(5.0, 9.0, 5.0, 6.0, 7.0, 8.0)
    assert fill_placeholders("{frames}: {times}", short, 4) == "4: 0.00s,0.50s,1.00s,1.50s"
    assert fill_placeholders("{frames}: {times}", long, 2) == "2: 0.00s,2.00s"


def test_words_of_a_chunk_are_in_the_key_of_its_caption_by_what_they_become() -> None:
    one, other = chunk(0.0, 2.0, 0.0, 1.0), chunk(0.0, 3.0, 0.0, 1.0)
    medium = Medium(digest="d" * 64, path="/a.mp4", kind="video", prompt="{frames} in {seconds}?")
    written = replace(medium, prompt="2 in 2.00?")
    request = task_of(medium, one, NAMESPACES)
    assert request.prompt == "2 in 2.00?"
    assert request.keys == task_of(written, one, NAMESPACES).keys
    longer = task_of(medium, other, NAMESPACES)
    assert longer["captions"] != request["captions"] and longer["features"] == request["features"]


def test_a_caption_before_that_holds_such_a_word_is_left_as_it_is() -> None:
    medium = Medium(digest="d", path="/a.mp4", kind="video", prompt="{frames}: {previous}")
    request = task_of(medium, chunk(0.0, 2.0, 0.0), NAMESPACES, "A sign says {times}.")
    assert request.prompt == "1: A sign says {times}."


ITSELF = [
    "{name}, {folder}, {tags}",
    "{name} ({seconds} s), {folder}",
    "{{name}} {seconds{folder}{tags}}",
    "{previous}; {tags} {{frames}}",
    "{sec{tags}onds} {\ufdd0}{name}",
]
"""Prompts; their files have names and tags with placeholders."""


@pytest.mark.parametrize("requested", ITSELF)
def test_what_fills_a_placeholder_is_not_filled_again(requested: str, tmp_path: Path) -> None:
    name, tags, before = "{previous}{times}", "{frames} seconds {\ufdd0}{name}", "{tags} {seconds}"
    (folder := tmp_path / "{seconds}").mkdir()
    (folder / f"{name}.txt").write_text(tags)
    path = folder / f"{name}.mp4"
    file = MediaFile(path=path, media_path=path.name, source=str(tmp_path), kind="video")
    medium = Medium(digest=DIGEST, path=str(file.path), kind="video", prompt=requested)
    prompt = FilePlaceholders(FolderStore(tmp_path / "store")).fill(requested, file, DIGEST)
    filled = replace(medium, prompt=prompt)
    whole = chunk(0.0, 3.0, 0.0, 1.0)
    words = {"name": name, "folder": "{seconds}", "tags": tags, "previous": before}
    words |= {"seconds": "3.00", "frames": "2"}
    # Each word is cut out of the prompt once, from the left.
    pieces = re.split("{{({})}}".format("|".join(words)), requested)
    once = "".join(words[each] if at % 2 else each for at, each in enumerate(pieces))
    assert task_of(filled, whole, NAMESPACES, before).prompt == once
    assert filled.uses_previous_caption == ("{previous}" in requested)


def test_a_plan_counts_a_token_for_each_byte_of_times() -> None:
    assert added_bytes("Describe.", 60) == 0
    assert added_bytes("{times}", 3) == len("0.00s,1.00s,2.00s") - len("{times}")
    assert 350 < added_bytes(CARD, 60) < 420
