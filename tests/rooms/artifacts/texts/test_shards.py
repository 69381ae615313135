"""Shards of samples whose media are plain files; that a reader takes them is shown elsewhere."""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.disk.files import replace_file
from artifacts.errors import EnvironmentFault
from artifacts.texts import shards
from artifacts.texts.captions import fields_of_row
from artifacts.texts.shards import (
    Media,
    Sample,
    clips_in,
    kept_shards,
    media_suffix,
    read_index,
    sample_key,
    write_shards,
)
from tests.support.rows import caption as caption_row


def sample(number: int, caption: str = "said") -> Sample:
    key = sample_key(f"{number}.mp4", "ab", "Describe.", 1, 0)
    return Sample(key=key, row=caption_row(caption), content="ab")


def write(folder: Path, samples: Sequence[Sample], media: Media | None = None) -> int:
    """Bring a folder up to date; returns how many samples were written."""
    kept = kept_shards(folder, [s.digest() for s in samples])
    rest = list(samples[sum(shard.samples for shard in kept) :])
    write_shards(folder, kept, ((s, media) for s in rest))
    return len(rest)


def members(folder: Path) -> dict[str, list[str]]:
    """Shard → the names in it."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.name] = tar.getnames()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def media(tmp_path: Path) -> Media:
    (path := tmp_path / "clip.mp4").write_bytes(b"moving pictures")
    return Media(path=path, suffix="mp4", start=1.5)


@pytest.mark.parametrize(
    "name",
    ["a.b.c.mp4", "../../etc/passwd", "🐦.mp4", "x" * 255, "[1] Übung.mp4", "-a.mp4", ".mp4"],
)
def test_a_key_is_short_and_plain_and_never_two_media_s(name: str) -> None:
    key = sample_key(name, "ab", "Describe.", 1, 7)
    assert re.fullmatch(r"[A-Za-z0-9_-]+-00007", key) and len(key) <= 60
    assert sample_key(name, "ab", "Describe.", 1, 7) == key
    others = [("b/" + name, "ab", "Describe.", 1), (name, "cd", "Describe.", 1)]
    others += [(name, "ab", "Who?", 1), (name, "ab", "Describe.", 2)]
    assert len({sample_key(*other, 7) for other in others} | {key}) == 5


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.MP4", "mp4"), ("a", "bin"), ("a.txt", "bin"), ("a.json", "bin"), ("a.a b", "bin")],
)
def test_media_never_take_the_place_of_texts(name: str, suffix: str) -> None:
    assert media_suffix(name) == suffix


def test_a_sample_is_its_media_its_text_and_its_line(tmp_path: Path, media: Media) -> None:
    folder = tmp_path / "out"
    one = sample(1, "two\nlines 🐦")
    write(folder, [one], media)
    with tarfile.open(folder / "000000.tar") as tar:
        found = {m.name.removeprefix(one.key): tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}
    assert list(found) == [".mp4", ".txt", ".json"]
    assert found[".mp4"] == b"moving pictures"
    assert found[".txt"].decode() == "two\nlines 🐦"
    line = json.loads(json.dumps(fields_of_row(one.row)))
    assert json.loads(found[".json"]) == {**line, "media_start": 1.5}


def test_a_sample_without_media_says_so(tmp_path: Path) -> None:
    write(tmp_path / "out", [sample(1)])
    (names,) = members(tmp_path / "out").values()
    assert [name.rpartition(".")[2] for name in names] == ["txt", "json"]
    assert [shard.without_media for shard in read_index(tmp_path / "out")] == [1]


def test_the_same_samples_make_the_same_bytes(tmp_path: Path, media: Media) -> None:
    samples = [sample(n) for n in range(3)]
    write(tmp_path / "a", samples, media)
    os.utime(media.path, (1, 1))
    write(tmp_path / "b", samples, media)
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize(("limit", "value"), [("SHARD_SAMPLES", 4), ("SHARD_BYTES", 4 * 3 * 1024)])
def test_a_full_shard_is_followed_by_another(
    tmp_path: Path, media: Media, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(shards, limit, value)
    samples = [sample(n) for n in range(10)]
    write(tmp_path / "out", samples, media)
    found = members(tmp_path / "out")
    assert list(found) == ["000000.tar", "000001.tar", "000002.tar"]
    assert [len(names) // 3 for names in found.values()] == [4, 4, 2]
    assert [shard.full for shard in read_index(tmp_path / "out")] == [True, True, False]
    keys = [name.partition(".")[0] for names in found.values() for name in names[::3]]
    assert keys == [s.key for s in samples]


def test_only_new_is_written(tmp_path: Path, media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_SAMPLES", 2)
    folder = tmp_path / "out"
    samples = [sample(n) for n in range(5)]
    assert write(folder, samples, media) == 5
    before = {path: path.stat().st_ino for path in folder.glob("*.tar")}
    assert write(folder, samples, media) == 0
    assert {path: path.stat().st_ino for path in folder.glob("*.tar")} == before
    assert write(folder, [*samples, sample(5), sample(6)], media) == 3
    assert [len(names) // 3 for names in members(folder).values()] == [2, 2, 2, 1]
    samples[2] = sample(2, "said anew")
    assert write(folder, samples, media) == 3
    assert list(members(folder)) == ["000000.tar", "000001.tar", "000002.tar"]
    assert write(folder, samples[:1], media) == 1
    assert list(members(folder)) == ["000000.tar"]
    fresh = tmp_path / "fresh"
    write(fresh, samples[:1], media)
    assert files(folder) == files(fresh)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "000000.tar").write_bytes(b"cut off"),
        lambda folder: (folder / "000000.tar").unlink(),
        lambda folder: (folder / "index.json").write_text('{"shards": [{"name": 1}]}'),
        lambda folder: (folder / "index.json").write_text("[]"),
    ],
)
def test_what_an_index_does_not_say_is_made_again(tmp_path: Path, media: Media, spoil: Any) -> None:
    write(tmp_path, [sample(1)], media)
    before = files(tmp_path)
    spoil(tmp_path)
    assert write(tmp_path, [sample(1)], media) == 1
    assert files(tmp_path) == before


def test_who_dies_leaves_the_old(
    tmp_path: Path, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_SAMPLES", 2)
    folder = tmp_path / "out"
    write(folder, [sample(n) for n in range(5)], media)
    before = files(folder)

    def dying() -> Iterator[tuple[Sample, Media | None]]:
        yield from ((sample(n, "anew"), media) for n in range(4))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, [], dying())
    gone = replace(media, path=tmp_path / "gone.mp4")
    with pytest.raises(EnvironmentFault, match=r"gone\.mp4 cannot be read any more"):
        write_shards(folder, [], iter([(sample(1), media), (sample(2), gone)]))
    assert files(folder) == before


def test_clips_of_the_shards_that_a_stopped_run_finished_are_taken_by_the_next(
    tmp_path: Path, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_SAMPLES", 2)
    folder = tmp_path / "out"

    def stopped(beyond: int) -> Iterator[tuple[Sample, Media | None]]:
        yield from ((sample(n), replace(media, clip=f"clip-{n}")) for n in range(beyond))
        raise KeyboardInterrupt

    assert not clips_in(folder)
    for beyond in (6, 3):  # the second gets less far
        with pytest.raises(KeyboardInterrupt):
            write_shards(folder, [], stopped(beyond))
        found = clips_in(folder)
        assert sorted(found) == [f"clip-{n}" for n in range(4)]
    write_shards(folder, [], iter([(sample(n), found[f"clip-{n}"]) for n in range(4)]))
    assert {path.name for path in folder.iterdir()} == {"000000.tar", "000001.tar", "index.json"}
    with tarfile.open(folder / "000001.tar") as tar:
        first = tar.extractfile(tar.getmembers()[0])
        assert first is not None and first.read() == media.path.read_bytes()


def test_killed_while_shards_take_their_places_the_next_run_mends_it(
    tmp_path: Path, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_SAMPLES", 1)
    folder = tmp_path / "out"
    write(folder, [sample(n) for n in range(3)], media)
    anew = [sample(0), sample(1, "anew"), sample(2, "anew")]
    moved: list[Path] = []

    def replace_one(half: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        replace_file(half, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "replace_file", replace_one)
        write(folder, anew, media)
    assert len(read_index(folder)) == 1
    assert write(folder, anew, media) == 2
    write(tmp_path / "fresh", anew, media)
    assert files(folder) == files(tmp_path / "fresh")
