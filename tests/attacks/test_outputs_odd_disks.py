"""Outputs on disks that treat names as other systems do: each file has its own text and samples,
by a name that the disk takes, and nothing counts as a text of a user for its name."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from artifacts.records.store import open_store
from flows.commands.search.query import Hit
from flows.commands.search.search_command import _copied
from flows.commands.tune.training_data import examples_in
from flows.interfaces.studio.roots import _placed
from stages.decode.generation import DecodeItem
from tests.support.commands import completed
from tests.support.odd_disk import CASELESS, ENCRYPTED, FAT, MAC, UNFORMED, WINDOWS, Kind, odd_disk
from tests.support.saying import Saying, lines, run, samples
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS

pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")
CASELESS_KEPT = Kind(fold="case")
TEXTS = ("txt", "vtt", "srt")
NAMES = (
    "Cat.png", "cat.png", "CAT.jpg", "Caf\u00e9.png", "Cafe\u0301.png", "Stra\u00dfe.png",
    "a:b.png", "a?b.png", "a_b.png", "aux.png", "tail ./con.png", "In/x.png", "in/x.png",
    "c\x01d.png", "\u8a9e" * 60 + ".png", "dot.txt/y.png", "Dot.png",
)  # fmt: skip


class Keyed(Saying):
    """Says another thing of each file and prompt."""

    def says(self, item: DecodeItem, number: int) -> str:
        return f"{item.prompt} {item.key[:12]}"


def write_pictures(folder: Path, names: tuple[str, ...] = NAMES) -> None:
    for level, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((48, 64, 3), 10 + 10 * level, np.uint8)).save(folder / name)


@contextmanager
def ntfs(folder: Path, options: str) -> Iterator[Path]:
    """Mount an empty NTFS disk, or skip the test where that is not possible."""
    if not (shutil.which("lowntfs-3g") and shutil.which("mkfs.ntfs")):
        pytest.skip("ntfs-3g is not installed")
    image, place = folder / "image", folder / "ntfs"
    place.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(32 << 20)
    completed(["mkfs.ntfs", "-F", "-q", image], check=True)
    if completed(["lowntfs-3g", "-o", options, image, place]).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield place
    finally:
        completed(["umount", place], check=True)


@contextmanager
def disk_of(folder: Path, kind: Kind | str) -> Iterator[Path]:
    with ntfs(folder, kind) if isinstance(kind, str) else odd_disk(folder, kind) as place:
        yield place


KINDS: tuple[Kind | str, ...] = (CASELESS, MAC, WINDOWS, FAT, ENCRYPTED, UNFORMED)
EACH_KIND = pytest.mark.parametrize(
    "kind",
    [*KINDS, "ignore_case,windows_names"],
    ids=["caseless", "mac", "windows", "fat", "encrypted", "unformed", "ntfs"],
)
EACH_FOLD = pytest.mark.parametrize(
    ("kind", "names"),
    [
        (CASELESS, ("Cat.png", "cat.jpg")),
        (CASELESS_KEPT, ("Cat.png", "cat.jpg")),
        (UNFORMED, ("Caf\u00e9.png", "Cafe\u0301.jpg")),
    ],
    ids=["lists lower case", "case", "forms"],
)
"""A disk, and two names with stems that are one there."""


def by_content(captions: Mapping[str, str], folder: Path = Path()) -> dict[bytes, str]:
    """The bytes of each file → its caption."""
    return {(folder / name).read_bytes(): text for name, text in captions.items()}


def texts_in(out: Path, form: str) -> Counter[str]:
    """How often the caption of each text of a folder is found there."""
    paths = (Path(at, name) for at, _, names in os.walk(out) for name in names)
    texts = [p.read_text() for p in paths if p.suffix == f".{form}"]
    return Counter(text.strip().rsplit("\n", 1)[-1] for text in texts)


@pytest.mark.slow
@EACH_KIND
def test_each_file_has_its_own_texts_and_samples(tmp_path: Path, kind: Kind | str) -> None:
    media = tmp_path / "media"
    write_pictures(media)
    with disk_of(tmp_path / "odd", kind) as disk:
        formats = (*TEXTS, *READERS, "webdataset")
        config = replace(
            config_in(tmp_path, media, format=formats, recursive=True), out=str(disk / "out")
        )
        for prompt in ("One?", "One?", "Two?"):  # made, unchanged, and replaced
            result = run(config, Keyed(), prompt=prompt)
            assert not any("users" in each for each in result.warnings), result.warnings
            texts = {row["media_path"]: row["caption"] for row in lines(config)}
            assert {*texts} == {*NAMES} and all(prompt in text for text in texts.values())
            for form in TEXTS:
                assert texts_in(disk / "out", form) == Counter(texts.values()), form
            for form, read in READERS.items():
                assert by_content(read(disk / "out")) == by_content(texts, media), form
            assert {each["txt"] for each in samples(config)} == {*texts.values()}
        assert not [*disk.rglob(".penstock-names-*")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, CASELESS, MAC], ids=["ordinary", "caseless", "mac"])
def test_names_that_some_disk_joins_get_the_same_texts(tmp_path: Path, kind: Kind | None) -> None:
    media = tmp_path / "media"
    write_pictures(media, ("Cat.png", "cat.png", "Caf\u00e9.png", "Cafe\u0301.png", "a:b.png"))
    with nullcontext(tmp_path) if kind is None else odd_disk(tmp_path / "odd", kind) as disk:
        config = replace(config_in(tmp_path, media, format=("txt",)), out=str(disk / "out"))
        run(config, Keyed())
        assert {normalize("NFC", p.name).lower() for p in (disk / "out").glob("*.txt")} == {
            *("cat.png.txt", "cat.png-2.txt", "a:b.txt"),
            *("caf\u00e9.png.txt", "caf\u00e9.png-2.txt"),
        }
        texts = Counter(row["caption"] for row in lines(config))
        assert texts_in(disk / "out", "txt") == texts
    run(replace(config, out=str(tmp_path / "beside"), beside=True), Keyed())
    assert {p.stem for p in media.glob("*.txt")} == {p.stem for p in media.glob("*.png")}


@pytest.mark.slow
@EACH_FOLD
def test_texts_by_media_are_their_own(tmp_path: Path, kind: Kind, names: tuple[str, str]) -> None:
    """On the disk of the media, where a run that writes no texts leaves nothing, either."""
    with odd_disk(tmp_path / "odd", kind) as disk:
        media = disk / "media"
        write_pictures(media, names[:1])
        config = config_in(tmp_path, media, format=("txt", "kohya"), beside=True)
        run(config, Keyed(), prompt="One?")
        write_pictures(media, names)
        for prompt, beside in (("One?", True), ("Two?", True), ("Two?", True), ("Three?", False)):
            formats = ("txt", "kohya") if beside else ("kohya",)
            result = run(config, Keyed(), prompt=prompt, beside=beside, format=formats)
            assert not any("users" in each for each in result.warnings), result.warnings
            texts = {str(media / row["media_path"]): row["caption"] for row in lines(config)}
            assert all(prompt in text for text in texts.values()) and len(texts) == 2
            by_name = {Path(p).name: c for p, c in READERS["kohya"](Path(config.out)).items()}
            assert {*by_name.values()} == {*texts.values()}
            if beside:
                assert texts_in(media, "txt") == Counter(texts.values())
        assert len(os.listdir(media)) == 4


@pytest.mark.slow
def test_a_medium_with_its_name_in_other_case_keeps_its_text(tmp_path: Path) -> None:
    with odd_disk(tmp_path / "odd", CASELESS_KEPT) as disk:
        media = disk / "media"
        write_pictures(media, ("Cat.png",))
        config = config_in(tmp_path, media, format=("txt",), beside=True)
        run(config, Keyed(), prompt="One?")
        (media / "Cat.png").rename(media / "cat.png")
        result = run(config, Keyed(), prompt="Two?")
        assert not any("users" in each for each in result.warnings), result.warnings
        assert [row["media_path"] for row in lines(config)] == ["cat.png"]
        assert len(os.listdir(media)) == 2 and "Two?" in (media / "cat.txt").read_text()


@pytest.mark.slow
def test_an_edited_text_stays_that_of_its_medium(tmp_path: Path) -> None:
    media = tmp_path / "media"
    write_pictures(media, ("Cat.png", "cat.png"))
    with odd_disk(tmp_path / "odd", CASELESS) as disk:
        out = disk / "out"
        config = replace(config_in(tmp_path, media, format=("txt", "musubi")), out=str(out))
        run(config, Keyed())
        texts = {row["media_path"]: row["caption"] for row in lines(config)}
        assert by_content(READERS["musubi"](out)) == by_content(texts, media)
        (text,) = (p for p in out.glob("*.txt") if p.read_text().strip() == texts["cat.png"])
        text.write_text("mine")
        run(config, Keyed())
        expected = by_content({**texts, "cat.png": "mine"}, media)
        assert by_content(READERS["musubi"](out)) == expected
        assert texts_in(out, "txt") == Counter([texts["Cat.png"], "mine"])


@pytest.mark.slow
def test_training_takes_each_text_for_its_own_medium(tmp_path: Path) -> None:
    media = tmp_path / "media"
    write_pictures(media, ("Cat.png", "a:b.png", "cat.png"))
    with odd_disk(tmp_path / "odd", WINDOWS) as disk:
        config = replace(config_in(tmp_path, media, format=("txt",)), out=str(disk / "out"))
        run(config, Keyed())
        expected = {str(media / row["media_path"]): row["caption"] for row in lines(config)}
        for name, text in (("Cat.png", "Cat.png.txt"), ("a:b.png", "a_b.txt")):
            (disk / "out" / text).write_text(f"mine {name}")
            expected[str(media / name)] = f"mine {name}"
        examples = examples_in(str(disk / "out" / "captions.jsonl"), store=open_store(config.store))
        assert {str(each.path): each.caption for each in examples} == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", [WINDOWS, ENCRYPTED], ids=["windows", "encrypted"])
def test_found_files_are_copied_by_names_that_the_disk_takes(tmp_path: Path, kind: Kind) -> None:
    names = ("a:b.png", "a?b.png", "\u8a9e" * 80 + ".png")
    write_pictures(tmp_path, names)
    hits = [
        Hit(
            rank=number, score=1.0, media_path=name, path=str(tmp_path / name), time=None,
            at=None, box=None, key="", copies=0, copy_paths=(),
        )
        for number, name in enumerate(names, 1)
    ]  # fmt: skip
    with odd_disk(tmp_path / "odd", kind) as disk:
        assert _copied(disk / "found", hits) == 0
        copies = sorted((disk / "found").glob("*.png"))
        expected = [(tmp_path / name).read_bytes() for name in names]
        assert [each.read_bytes() for each in copies] == expected
        message = (disk / "found" / "search.jsonl").read_text()
        assert [json.loads(line)["media_path"] for line in message.splitlines()] == [*names]


def test_an_uploaded_file_gets_a_name_that_the_disk_takes(tmp_path: Path) -> None:
    with odd_disk(tmp_path / "odd", FAT) as disk:
        second = (b"2", "A?B.png", "A_B-2.png")
        for content, name, expected in ((b"1", "a:b.png", "a_b.png"), second, second):
            (half := disk / "half").write_bytes(content)
            assert _placed(str(half), disk, name) == disk / expected
            assert (disk / expected).read_bytes() == content


@pytest.mark.slow
def test_the_text_of_a_picture_in_a_subfolder_is_new_when_that_is_replaced(tmp_path: Path) -> None:
    write_pictures(folder := tmp_path / "media" / "Photos", ("Cat.png", "dog.png"))
    with odd_disk(tmp_path / "odd", CASELESS) as disk:
        config = config_in(tmp_path, tmp_path / "media", format=("txt", "kohya"))
        config = replace(config, out=str(disk / "out"), recursive=True)
        notes = run(config).warnings
        for at, path in enumerate(sorted(folder.iterdir())):
            Image.new("RGB", (64, 48), (20 * at, 200, 90)).save(path)
        for note in (*notes, *run(config, prompt="Now?").warnings):
            assert "kept" not in note and "not from this run" not in note
        captions = sorted(" ".join(row["caption"].split()) for row in lines(config))
        assert sorted(READERS["kohya"](disk / "out").values()) == captions
        assert all("Now?" in path.read_text() for path in (disk / "out").rglob("*.txt"))
