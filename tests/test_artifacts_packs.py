from pathlib import Path

import pytest

from artifacts.pack_object import FIRST_READ, DamagedRecord, verify
from artifacts.packs import Record, Shelf
from artifacts.store import FolderStore

SCOPE = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def only_pack(store: FolderStore) -> Path:
    (name,) = [n for n in store.list() if n.endswith(".pack")]
    return store.root / name


def test_records_come_back_with_description_and_payload(store: FolderStore) -> None:
    shelf = Shelf(store, "features", SCOPE)
    records = [Record(key="a", meta={"n": 1}, payload=b"one"), Record(key="b", meta={"n": 2})]
    assert shelf.publish(records) == ["a", "b"]
    fresh = Shelf(store, "features", SCOPE)
    assert fresh.keys() == {"a", "b"}
    assert fresh.read("a") == records[0]
    assert fresh.meta("b") == {"n": 2}
    assert fresh.size("a") == 3


def test_a_published_record_is_never_replaced(store: FolderStore) -> None:
    shelf = Shelf(store, "features", SCOPE)
    shelf.publish([Record(key="a", payload=b"first")])
    assert shelf.publish([Record(key="a", payload=b"second"), Record(key="b")]) == ["b"]
    assert Shelf(store, "features", SCOPE).read("a").payload == b"first"


def test_scopes_and_kinds_do_not_see_each_other(store: FolderStore) -> None:
    Shelf(store, "features", SCOPE).publish([Record(key="a")])
    assert Shelf(store, "features", "cd" * 32).keys() == set()
    assert Shelf(store, "captions", SCOPE).keys() == set()


def test_refresh_sees_what_another_process_published(store: FolderStore) -> None:
    mine, theirs = Shelf(store, "media", SCOPE), Shelf(store, "media", SCOPE)
    theirs.publish([Record(key="a")])
    assert "a" not in mine
    mine.refresh()
    assert "a" in mine
    theirs.drop(["a"])
    mine.refresh()
    assert "a" not in mine


def test_a_header_longer_than_the_first_read_is_read_whole(store: FolderStore) -> None:
    long = {"text": "x" * (2 * FIRST_READ)}
    Shelf(store, "media", SCOPE).publish([Record(key="a", meta=long, payload=b"tail")])
    fresh = Shelf(store, "media", SCOPE)
    assert fresh.meta("a") == long
    assert fresh.read("a").payload == b"tail"


def test_drop_deletes_a_pack_only_when_its_last_record_goes(store: FolderStore) -> None:
    shelf = Shelf(store, "frames", SCOPE)
    shelf.publish([Record(key="a"), Record(key="b")])
    pack = only_pack(store)
    shelf.drop(["a"])
    assert pack.exists()
    shelf.drop(["b", "never there"])
    assert not pack.exists()


def test_a_changed_payload_is_set_aside_and_made_again(store: FolderStore) -> None:
    shelf = Shelf(store, "features", SCOPE)
    shelf.publish([Record(key="a", payload=b"good bytes")])
    pack = only_pack(store)
    pack.write_bytes(pack.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedRecord, match="set aside"):
        shelf.read("a")
    assert "a" not in shelf
    assert "a" not in Shelf(store, "features", SCOPE)
    assert (store.root / "quarantine" / pack.relative_to(store.root)).exists()
    assert shelf.publish([Record(key="a", payload=b"good bytes")]) == ["a"]
    assert Shelf(store, "features", SCOPE).read("a").payload == b"good bytes"


@pytest.mark.parametrize("cut", [3, 30, 60])
def test_a_cut_or_changed_header_is_set_aside(store: FolderStore, cut: int) -> None:
    Shelf(store, "media", SCOPE).publish([Record(key="a", meta={"n": 1})])
    pack = only_pack(store)
    pack.write_bytes(pack.read_bytes()[:cut])
    assert Shelf(store, "media", SCOPE).keys() == set()
    assert not pack.exists()


def test_verify_reads_every_byte_and_names_the_bad_pack(store: FolderStore) -> None:
    Shelf(store, "features", SCOPE).publish([Record(key="a", payload=b"12345")])
    bad = only_pack(store)
    Shelf(store, "captions", SCOPE).publish([Record(key="b", payload=b"12345")])
    bad.write_bytes(bad.read_bytes()[:-2] + b"!!")
    found = dict(verify(store))
    assert found == {bad.relative_to(store.root).as_posix(): False} | {
        name: True for name in store.list("captions")
    }
    assert all(good for _, good in verify(store))
