import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import EnvironmentFault
from artifacts.records.packs import (
    LARGEST,
    LEAD,
    MAGIC,
    DamagedRecord,
    Record,
    RecordSet,
    RecordUnion,
    damaged,
    pack_name,
    quarantine,
    verify,
)
from artifacts.records.store import FolderStore
from artifacts.records.stores.protocol import FIRST_READ

NAMESPACE = "ab" * 32
KEYS = [f"{number:064x}" for number in range(12)]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def only_pack(store: FolderStore) -> Path:
    (name,) = [n for n in store.list() if n.endswith(".pack")]
    return store.local / name


def test_records_come_back_with_description_and_payload(store: FolderStore) -> None:
    record_set = RecordSet(store, "features", NAMESPACE)
    records = [Record(key="a", meta={"n": 1}, payload=b"one"), Record(key="b", meta={"n": 2})]
    assert record_set.publish(records) == ["a", "b"]
    fresh = RecordSet(store, "features", NAMESPACE)
    assert fresh.keys() == {"a", "b"}
    assert fresh.read("a") == records[0]
    assert fresh.meta("b") == {"n": 2}
    assert fresh.place("a").length == 3


def test_namespaces_and_kinds_do_not_see_each_other(store: FolderStore) -> None:
    RecordSet(store, "features", NAMESPACE).publish([Record(key="a")])
    assert RecordSet(store, "features", "cd" * 32).keys() == set()
    assert RecordSet(store, "captions", NAMESPACE).keys() == set()


def test_refresh_sees_what_another_process_published(store: FolderStore) -> None:
    mine, theirs = RecordSet(store, "media", NAMESPACE), RecordSet(store, "media", NAMESPACE)
    theirs.publish([Record(key="a")])
    assert "a" not in mine
    mine.refresh()
    assert "a" in mine
    theirs.drop(["a"])
    mine.refresh()
    assert "a" not in mine


def test_a_header_longer_than_the_first_read_is_read_whole(store: FolderStore) -> None:
    long = {"text": "x" * (2 * FIRST_READ)}
    RecordSet(store, "media", NAMESPACE).publish([Record(key="a", meta=long, payload=b"tail")])
    fresh = RecordSet(store, "media", NAMESPACE)
    assert fresh.meta("a") == long
    assert fresh.read("a").payload == b"tail"


def test_drop_deletes_a_pack_only_when_its_last_record_goes(store: FolderStore) -> None:
    record_set = RecordSet(store, "frames", NAMESPACE)
    record_set.publish([Record(key="a"), Record(key="b")])
    pack = only_pack(store)
    record_set.drop(["a"])
    assert pack.exists()
    record_set.drop(["b", "never there"])
    assert not pack.exists()


@pytest.mark.parametrize("cut", [3, 30, 60, None])
def test_a_cut_or_changed_header_is_set_aside(store: FolderStore, cut: int | None) -> None:
    RecordSet(store, "media", NAMESPACE).publish([Record(key="a", meta={"of": "this"})])
    (pack := only_pack(store)).write_bytes(pack.read_bytes()[:cut].replace(b"this", b"that"))
    assert RecordSet(store, "media", NAMESPACE).keys() == set()
    assert not pack.exists()


def test_verify_reads_every_byte_and_names_the_bad_pack(store: FolderStore) -> None:
    RecordSet(store, "features", NAMESPACE).publish([Record(key="a", payload=b"12345")])
    bad = only_pack(store)
    RecordSet(store, "captions", NAMESPACE).publish([Record(key="b", payload=b"12345")])
    bad.write_bytes(bad.read_bytes()[:-2] + b"!!")
    (good,), name = store.list("captions"), bad.relative_to(store.local).as_posix()
    assert dict(verify(store)) == {name: False, good: True}
    assert all(good for _, good in verify(store))


def test_who_comes_second_takes_what_lies_there_and_damages_nothing(store: FolderStore) -> None:
    first, second = RecordSet(store, "k", NAMESPACE), RecordSet(store, "k", NAMESPACE)
    theirs = [Record(key="a", payload=b"of one card"), Record(key="b", payload=b"too")]
    ours = [Record(key="a", payload=b"of another"), Record(key="b", payload=b"made longer")]
    assert first.publish(theirs) == ["a", "b"]
    assert second.publish(ours) == []  # which is what is told to have been made
    for record_set in (first, second, RecordSet(store, "k", NAMESPACE)):
        assert [record_set.read(key).payload for key in "ab"] == [b"of one card", b"too"]
    assert not list(store.list("quarantine"))


def test_a_pack_that_another_made_anew_is_not_set_aside(store: FolderStore) -> None:
    record_set = RecordSet(store, "k", NAMESPACE)
    record_set.publish([Record(key="a", payload=b"first")])
    (name,) = store.list("k")
    store.delete(name)
    RecordSet(store, "k", NAMESPACE).publish([Record(key="a", payload=b"made anew")])
    assert record_set.read("a").payload == b"made anew"
    assert not list(store.list("quarantine"))


def test_what_another_moved_into_a_pack_without_the_rest_is_read_there(store: FolderStore) -> None:
    reader, other = RecordSet(store, "k", NAMESPACE), RecordSet(store, "k", NAMESPACE)
    reader.publish([Record(key=key, payload=key.encode()) for key in "abc"])
    other.refresh()
    other.remove(["a"])
    assert [reader.read(key).payload for key in "bc"] == [b"b", b"c"]
    with pytest.raises(KeyError):
        reader.read("a")


def test_one_that_is_good_by_the_time_it_is_looked_at_stays(store: FolderStore) -> None:
    RecordSet(store, "k", NAMESPACE).publish([Record(key="a", payload=b"good")])
    (name,) = store.list("k")
    assert "was replaced" in damaged(store, name).message
    assert list(store.list("k")) == [name]
    store.delete(name)
    quarantine(store, name)  # nor is one that is gone
    assert list(store.list()) == []


def test_who_comes_second_to_a_damaged_pack_writes_a_good_one(store: FolderStore) -> None:
    second = RecordSet(store, "k", NAMESPACE)
    RecordSet(store, "k", NAMESPACE).publish([Record(key="a", payload=b"x")])
    (name,) = store.list("k")
    (store.local / name).write_bytes(b"garbage")
    assert second.publish([Record(key="a", payload=b"x")]) == ["a"]
    assert RecordSet(store, "k", NAMESPACE).read("a").payload == b"x"


def test_what_lies_in_a_pack_s_place_is_told_and_not_waited_for(store: FolderStore) -> None:
    RecordSet(store, "k", NAMESPACE).publish([Record(key="a")])
    (name,) = store.list("k")
    store.delete(name)
    os.mkfifo(store.local / name)
    with pytest.raises(EnvironmentFault, match=r"\.pack"):
        RecordSet(store, "k", NAMESPACE).publish([Record(key="a")])


def test_records_of_a_pack_that_is_gone_are_removed_without_a_word(store: FolderStore) -> None:
    record_set = RecordSet(store, "k", NAMESPACE)
    record_set.publish([Record(key="a", payload=b"x"), Record(key="b", payload=b"y")])
    (name,) = store.list("k")
    store.delete(name)  # as gc does
    record_set.remove(["a"])
    assert record_set.keys() == set()


GOOD = {"key": "k", "offset": 0, "length": 0, "sha256": hashlib.sha256(b"").hexdigest(), "meta": {}}
WRONG: dict[str, list[Any]] = {"offset": [-1, 1 << 63, 1e300, "x", None], "sha256": [5, [{}]]}
WRONG |= {"length": [-1, 1 << 70, []], "meta": [5]}
TEXTS = [b"", b"null", b'"records"', b"[" * 200_000, b"\xff\xfe", b'{"records": NaN}']
HEADERS: list[Any] = [{}, [], {"records": 5}, {"records": [5]}, {"records": [{"key": "a"}]}]
HEADERS += [{"records": [{**GOOD, name: value}]} for name in WRONG for value in WRONG[name]]
FORGED = [*TEXTS, *(json.dumps(header).encode() for header in HEADERS)]


def forge(store: FolderStore, name: str, header: bytes) -> None:
    lead = LEAD.pack(MAGIC, len(header), hashlib.sha256(header).digest())
    store.put_if_absent(name, [lead, header])


@pytest.mark.parametrize("text", FORGED, ids=lambda text: text[:60].decode(errors="replace"))
def test_a_header_that_nobody_wrote_is_set_aside(store: FolderStore, text: bytes) -> None:
    RecordSet(store, "k", NAMESPACE).publish([Record(key="good")])
    forge(store, f"k/{NAMESPACE[:2]}/{NAMESPACE}/aa/aa.pack", text)
    record_set = RecordSet(store, "k", NAMESPACE)
    for key in record_set.keys() - {"good"}:  # a digest is looked at when the record is read
        with pytest.raises(DamagedRecord):
            record_set.read(key)
    assert record_set.keys() == RecordSet(store, "k", NAMESPACE).keys() == {"good"}
    assert len(list(store.list("quarantine"))) == 1


def test_a_record_beyond_what_a_disk_can_hold_is_set_aside(store: FolderStore) -> None:
    text = json.dumps({"records": [{**GOOD, "offset": LARGEST - 1, "length": 1}]}).encode()
    name = pack_name(f"k/{NAMESPACE[:2]}/{NAMESPACE}", ["k"])
    forge(store, name, text)
    with pytest.raises(DamagedRecord):
        RecordSet(store, "k", NAMESPACE).read("k")
    forge(store, name, text)
    assert list(verify(store)) == [(name, False)]


@pytest.fixture
def union(store: FolderStore) -> RecordUnion:
    """Twelve records in two namespaces, in packs of four."""
    sets = [RecordSet(store, "kind", namespace) for namespace in ("one", "two")]
    for start, record_set in ((0, sets[0]), (4, sets[1]), (8, sets[0])):
        record_set.publish([made(key) for key in KEYS[start : start + 4]])
    return RecordUnion(sets)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    request: list[str] = []
    get = FolderStore.get

    def counted(self: FolderStore, name: str, offset: int = 0, length: int | None = None) -> bytes:
        request.append(name)
        return get(self, name, offset, length)

    monkeypatch.setattr(FolderStore, "get", counted)
    return request


def made(key: str) -> Record:
    return Record(key=key, meta={"of": key[-2:]}, payload=key[-1].encode() * (int(key, 16) + 1))


def test_several_are_read_by_one_request_a_run(union: RecordUnion, requests: list[str]) -> None:
    expected = [KEYS[9], KEYS[0], KEYS[5], KEYS[1], KEYS[2], KEYS[4], KEYS[0]]
    assert union.read_several(expected) == [made(key) for key in expected]
    assert len(requests) == 3  # 0 to 2, 4 and 5, 9
    assert union.read_several([]) == []
    with pytest.raises(KeyError):
        union.read_several([KEYS[0], "f" * 64])
    requests.clear()
    assert union.read_several([KEYS[0], KEYS[2]]) == [made(KEYS[0]), made(KEYS[2])]
    assert len(requests) == 2, "places that do not touch"


def test_of_several_the_damaged_one_is_set_aside(union: RecordUnion, store: FolderStore) -> None:
    place = union.place(KEYS[5])
    path = store.local / place.pack
    content = bytearray(path.read_bytes())
    content[place.offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedRecord):
        union.read_several(KEYS)
    assert KEYS[5] not in union and KEYS[0] in union
    assert union.read_several(KEYS[:4]) == [made(key) for key in KEYS[:4]]


def test_of_several_one_that_was_moved_is_found(union: RecordUnion, store: FolderStore) -> None:
    RecordSet(store, "kind", "two").remove([KEYS[4]])  # the rest is written anew, elsewhere
    with pytest.raises(DamagedRecord):
        union.read_several(KEYS[4:8])
    union.refresh()
    assert union.read_several(KEYS[5:8]) == [made(key) for key in KEYS[5:8]]


def test_of_two_record_sets_the_first_answers(store: FolderStore, requests: list[str]) -> None:
    sets = [RecordSet(store, "kind", namespace) for namespace in ("one", "two")]
    for record_set in sets:
        made_here = {"by": record_set.folder}
        record_set.publish([Record(key="a", meta=made_here), Record(key="b", payload=b"b")])
    union = RecordUnion(sets)
    requests.clear()
    assert union.read_several(["a", "b"]) == [union.read("a"), union.read("b")]
    assert union.read("a").meta == {"by": sets[0].folder} and len(requests) == 4
