"""Bodies become files within bounds, and clients are told names and not where files lie."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from artifacts.keys import content_key
from flows.serving import uploads
from flows.serving.refusals import HttpRefusal
from flows.serving.shown_names import shown_name, without_paths
from flows.serving.temp_store import TempStore, temp_folder
from flows.serving.uploads import Upload, kind_of, receive, stored

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)


async def pieces(*parts: bytes, wait: float = 0.0) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(wait)
        yield part


def received(folder: Path, *parts: bytes, most: int = 1000) -> Upload:
    return asyncio.run(receive(pieces(*parts), most, TempStore(folder)))


def test_a_body_becomes_a_file_known_by_its_content(tmp_path: Path) -> None:
    found = received(tmp_path, PNG[:3], b"", PNG[3:20], PNG[20:])
    assert found.path.read_bytes() == PNG
    assert found.path.suffix == ".png"
    assert found.digest == content_key(hashlib.sha256(PNG).hexdigest(), "image")
    again = stored(PNG, 1000, TempStore(tmp_path))
    assert found == Upload(path=found.path, digest=again.digest, kind=again.kind)
    found.remove()
    found.remove()
    assert not found.path.exists()


@pytest.mark.parametrize(
    ("parts", "status"),
    [((PNG, bytes(900)), 413), ((), 422), ((b"hello world, this is a text",), 415)],
)
def test_refusals_leave_no_file(tmp_path: Path, parts: tuple[bytes, ...], status: int) -> None:
    with pytest.raises(HttpRefusal) as caught:
        received(tmp_path, *parts)
    assert caught.value.status == status
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_stops_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PIECE_SECONDS", 0.02)
    with pytest.raises(HttpRefusal) as caught:
        asyncio.run(receive(pieces(PNG, PNG, wait=5.0), 1000, TempStore(tmp_path)))
    assert caught.value.status == 408


def test_a_body_that_trickles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.05)
    trickle = [bytes([each]) for each in PNG]
    with pytest.raises(HttpRefusal) as caught:
        asyncio.run(receive(pieces(*trickle, wait=0.005), 1000, TempStore(tmp_path)))
    assert caught.value.status == 408


def test_kinds_are_told_by_how_files_begin() -> None:
    images = (b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0 ftypheic", b"\0\0\0 ftypavif")
    assert {kind_of(start)[0] for start in images} == {"image"}
    videos = (b"\0\0\0 ftypisom", b"\x1a\x45\xdf\xa3", b"GIF89a")
    assert {kind_of(start)[0] for start in videos} == {"video"}


def test_folders_of_killed_servers_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.serving.temp_store.MEMORY", tmp_path / "memory")
    (left := tmp_path / "penstock-serve-999999999-x").mkdir()
    (ours := tmp_path / "penstock-serve-1-x").mkdir()
    with temp_folder(tmp_path) as scratch:
        assert not left.exists()
        assert ours.exists(), "its process lives"
        assert scratch.path(".a") != scratch.path(".a")
    assert not scratch.folder.exists()


def test_folders_are_known_by_their_own_names() -> None:
    for place in ("/home/ann/models/qwen", "../models/qwen/", "~/qwen", "qwen"):
        assert shown_name(place) == "qwen"
    assert (shown_name("org/name"), shown_name("")) == ("org/name", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the index /home/ann/photos is away (gone)", "the index photos is away (gone)"),
        ("/data/a/model.safetensors: damaged", "model.safetensors: damaged"),
        ("'/data/a'", "'a'"),
        *((text, text) for text in ("Ask /v1/models, see /openapi.json", "16/9 or 4/3, and/or")),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
    ],
)
def test_texts_hold_no_absolute_paths(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_no_refusal_holds_an_absolute_path() -> None:
    why = HttpRefusal(503, "the index /home/ann/photos is away", "Build /home/ann/photos again")
    assert "/home" not in str(why.to_json()) + str(why.to_json("/v1/chat/completions"))
