"""One run of the command line over one folder of every class of file: each is captioned whole, or
up to its damage, or refused by name, whatever it is called."""

import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from flows.media.media_files import Selection, writable
from flows.media.sources import find_media
from tests.support.file_classes import DAMAGED, UNUSABLE, WHOLE
from tests.support.media import picture, write_video
from tests.support.pipeline import Place

NAMES = {
    "non-ASCII": "Übung 映画 🎬.mp4",
    "not Unicode": os.fsdecode(b"caf\xe9.mp4"),
    "very long": "x" * 251 + ".mp4",
    "very long, not ASCII": "長" * 84 + ".ts",
    "begins with a dash": "--out.mp4",
    "line break": "two\nlines.mp4",
    "pattern": "[a-z]*?.mp4",
    "only a suffix more": "a.mp4.mp4",
    "one name, first folder": "one/same.mp4",
    "one name, second folder": "two/same.mp4",
    "one stem, another suffix": "two/same.mkv",
}
"""What files are called, each a video of 1 s unlike the others."""
MISSING = "gone.mp4"
Rows = dict[str, list[dict[str, Any]]]
MOVING = ("moving.webp", "moving.gif", "moving.png")
PICTURES = ("turned.jpg", "cmyk.jpg", "palette.png", "deep.png", *MOVING)
"""A picture of each class that must be captioned."""
BAD_PICTURES = {
    "photo.heic": "damaged",
    "drawing.jpg": "not-media",
    "nothing.jpg": "empty",
    "bomb.png": "too-large",
}
"""Pictures that cannot be used, and the word that each fails with."""


def write_images(folder: Path) -> None:
    image = Image.fromarray(picture(3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png", transparency=0)
    Image.fromarray(picture(3)[..., 0].astype(np.uint16) << 8).save(folder / "deep.png")
    frames = [Image.fromarray(picture(n)) for n in range(4)]
    for name in MOVING:
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=500)


def write_bad_pictures(folder: Path) -> None:
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "drawing.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "nothing.jpg").touch()
    bomb = bytearray((folder / "deep.png").read_bytes())
    bomb[16:24] = (30000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bomb)


def can_write(encoder: str) -> bool:
    try:
        return av.codec.Codec(encoder, "w") is not None
    except ValueError:
        return False


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("files")
    clips = root / "clips"
    for number, name in enumerate(NAMES.values()):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
        plain = write_video(root / f"a{Path(name).suffix}", ticks=range(30), gop=5 + number)
        shutil.move(plain, clips / name)
    for name, (suffix, damage) in DAMAGED.items():
        damage(clips / f"{name}{suffix}")
    for name, make in UNUSABLE.items():
        make(clips / f"{name}.mp4")
    for name, kind in WHOLE.items():
        if can_write(kind.encoder):
            kind.make(clips / f"{name}{kind.suffix}")
    write_images(clips)
    write_bad_pictures(clips)
    (clips / "one" / "back").symlink_to(clips)
    (clips / "nowhere.mp4").symlink_to(clips / "not there.mp4")
    (clips / "itself.mp4").symlink_to(clips / "itself.mp4")
    return Place(clips=clips, out=root / "out", store=root / "store")


@pytest.fixture(scope="module")
def outcome(place: Place) -> Rows:
    """The captions of a run by file."""
    options = ("--recursive", "--chunk=2", "--format=txt,vtt", "--batch-size=16")
    done = place.run(*options, "--max-new-tokens=6", str(place.clips.parent / MISSING))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    rows: Rows = {}
    for row in place.captions():
        rows.setdefault(row["media_path"], []).append(row)
    return rows


def captioned() -> set[str]:
    """Every file of the folder that must have captions, by its name in the outputs."""
    films = [*NAMES.values(), *(f"{name}{suffix}" for name, (suffix, _) in DAMAGED.items())]
    films += [f"{name}{kind.suffix}" for name, kind in WHOLE.items() if can_write(kind.encoder)]
    return {writable(name) for name in (*films, *PICTURES)}


@pytest.mark.slow
def test_every_file_that_can_be_seen_is_captioned_to_its_end(outcome: Rows) -> None:
    assert outcome.keys() == captioned()
    starts = {f"{name}{kind.suffix}": kind.start for name, kind in WHOLE.items()}
    for name, rows in outcome.items():
        first = starts.get(name, 0)
        assert [row["start"] for row in rows] == [first, *(row["end"] for row in rows[:-1])], name
        assert all(row["caption"] for row in rows)
    for name, kind in WHOLE.items():
        rows = outcome.get(f"{name}{kind.suffix}", [])
        assert not rows or rows[-1]["end"] == pytest.approx(kind.start + kind.duration, abs=0.002)


@pytest.mark.slow
def test_damage_alone_is_warned_of(outcome: Rows) -> None:
    warned = {name for name, rows in outcome.items() if rows[0]["warnings"]}
    damaged = {f"{name}{suffix}" for name, (suffix, _) in DAMAGED.items()}
    assert warned == damaged | {"moving.webp", "moving.png"}


@pytest.mark.slow
def test_every_other_file_fails_by_its_name(place: Place, outcome: Rows) -> None:
    expected = {f"{kind}.mp4": kind for kind in UNUSABLE} | BAD_PICTURES
    expected |= {"nowhere.mp4": "unreadable", "itself.mp4": "unreadable"}
    expected[str(place.clips.parent / MISSING)] = "missing"
    assert {failure["media_path"]: failure["error"] for failure in place.failures()} == expected
    for failure in place.failures():
        assert failure["message"] and failure["hint"]
        assert "\n" not in failure["message"] + failure["hint"]


@pytest.mark.slow
def test_no_two_files_share_a_text_whatever_they_are_called(place: Place, outcome: Rows) -> None:
    for suffix in ("txt", "vtt"):
        texts = list(place.out.rglob(f"*.{suffix}"))
        assert len(texts) == len(outcome)
        assert max(len(os.fsencode(path.name)) for path in texts) > 250
    assert (place.out / "two" / "same.mp4.txt").exists()
    assert (place.out / "one" / "same.txt").exists()


def test_names_that_begin_with_a_dash_are_files_in_lists_and_as_they_are(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.clips)
    listing = place.clips.parent / "list.txt"
    listing.write_text("clips/--out.mp4\n")
    (place.clips / "-list.txt").write_text("--out.mp4\n")
    for source in ("--out.mp4", "-list.txt", f"@{listing}"):
        found, failures = find_media([source], Selection(recursive=False, extensions=()))
        assert [file.path for file in found] == [place.clips / "--out.mp4"]
        assert failures == []
