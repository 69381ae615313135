"""Bodies become files within bounds, and are known by their content."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from artifacts.keys import content_key
from flows.serving import uploads
from flows.serving.refusals import Refused
from flows.serving.scratch import Scratch, scratch_folder
from flows.serving.uploads import Upload, kind_of, receive, stored

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)


async def pieces(*parts: bytes, wait: float = 0.0) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(wait)
        yield part


def received(folder: Path, *parts: bytes, most: int = 1000) -> Upload:
    return asyncio.run(receive(pieces(*parts), most, Scratch(folder)))


def test_a_body_becomes_a_file_known_by_its_content(tmp_path: Path) -> None:
    found = received(tmp_path, PNG[:3], b"", PNG[3:20], PNG[20:])
    assert found.path.read_bytes() == PNG
    assert found.path.suffix == ".png"
    assert found.digest == content_key(hashlib.sha256(PNG).hexdigest(), "image")
    assert found == stored_as(found, tmp_path)
    found.remove()
    found.remove()
    assert not found.path.exists()


def stored_as(found: Upload, folder: Path) -> Upload:
    again = stored(PNG, 1000, Scratch(folder / "b"))
    return Upload(path=found.path, digest=again.digest, kind=again.kind, size=again.size)


@pytest.fixture(autouse=True)
def second_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ((PNG, bytes(900)), 413),
        ((), 422),
        ((b"hello world, this is a text",), 415),
        ((b"<svg xmlns='http://www.w3.org/2000/svg'/>",), 415),
        ((b"%PDF-1.7" + bytes(100),), 415),
    ],
)
def test_what_is_not_taken_is_refused_and_leaves_no_file(
    tmp_path: Path, parts: tuple[bytes, ...], status: int
) -> None:
    with pytest.raises(Refused) as caught:
        received(tmp_path, *parts)
    assert caught.value.status == status
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_body_that_stops_coming_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PIECE_SECONDS", 0.02)
    with pytest.raises(Refused) as caught:
        asyncio.run(receive(pieces(PNG, PNG, wait=5.0), 1000, Scratch(tmp_path)))
    assert caught.value.status == 408


def test_a_body_that_trickles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.05)
    trickle = [bytes([each]) for each in PNG]
    with pytest.raises(Refused) as caught:
        asyncio.run(receive(pieces(*trickle, wait=0.005), 1000, Scratch(tmp_path)))
    assert caught.value.status == 408


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "image"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image"),
        (b"\x00\x00\x00\x20ftypheic", "image"),
        (b"\x00\x00\x00\x20ftypavif", "image"),
        (b"\x00\x00\x00\x20ftypisom", "video"),
        (b"\x1a\x45\xdf\xa3", "video"),
        (b"GIF89a", "video"),
    ],
)
def test_kinds_are_told_by_how_files_begin(start: bytes, kind: str) -> None:
    assert kind_of(start)[0] == kind


def test_folders_of_servers_that_were_killed_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.serving.scratch.MEMORY", tmp_path / "memory")
    (left := tmp_path / "penstock-serve-999999999-x").mkdir()
    (ours := tmp_path / "penstock-serve-1-x").mkdir()
    with scratch_folder(tmp_path) as scratch:
        assert not left.exists()
        assert ours.exists(), "its process lives"
        assert scratch.path(".a") != scratch.path(".a")
    assert not scratch.folder.exists()
