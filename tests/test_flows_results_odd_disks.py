"""Outputs on disks that treat names as other systems do: each file has its own text and samples,
by a name that the disk takes, and nothing counts as a text of a user for its name."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.decode.job import DecodeItem
from tests.support.odd_disk import (
    CASELESS,
    ENCRYPTED,
    FAT,
    MAC,
    UNFORMED,
    WINDOWS,
    Kind,
    forget,
    odd_disk,
)
from tests.support.saying import Saying, lines, run, samples
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS

pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")
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
    subprocess.run(["mkfs.ntfs", "-F", "-q", image], check=True, capture_output=True)
    if subprocess.run(
        ["lowntfs-3g", "-o", options, image, place], capture_output=True, check=False
    ).returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)
    forget()


@contextmanager
def disk_of(folder: Path, kind: Kind | str) -> Iterator[Path]:
    with ntfs(folder, kind) if isinstance(kind, str) else odd_disk(folder, kind) as place:
        yield place


KINDS = {
    "caseless": CASELESS,
    "mac": MAC,
    "windows": WINDOWS,
    "fat": FAT,
    "encrypted": ENCRYPTED,
    "unformed": UNFORMED,
    "ntfs": "ignore_case,windows_names",
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def texts_in(out: Path, form: str) -> Counter[str]:
    """How often the caption of each text of a folder is found there."""
    paths = (Path(at, name) for at, _, names in os.walk(out) for name in names)
    texts = [p.read_text() for p in paths if p.suffix == f".{form}"]
    return Counter(text.strip().rsplit("\n", 1)[-1] for text in texts)


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
            said = {row["media_path"]: row["caption"] for row in lines(config)}
            assert {*said} == {*NAMES} and all(prompt in text for text in said.values())
            for form in TEXTS:
                assert texts_in(disk / "out", form) == Counter(said.values()), form
            of_bytes = {(media / name).read_bytes(): text for name, text in said.items()}
            for form, read in READERS.items():
                found = {Path(p).read_bytes(): c for p, c in read(disk / "out").items()}
                assert found == of_bytes, form
            assert {each["txt"] for each in samples(config)} == {*said.values()}
        assert not [*disk.rglob(".penstock-names-*")]
