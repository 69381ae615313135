"""Record sets that are read as one, and several records at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.pack_object import DamagedRecord
from artifacts.packs import Record, RecordSet
from artifacts.record_union import RecordUnion
from artifacts.stores.folder import FolderStore

KEYS = [f"{number:064x}" for number in range(12)]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def union(store: FolderStore) -> RecordUnion:
    """Twelve records in two namespaces, in packs of four."""
    sets = [RecordSet(store, "kind", namespace) for namespace in ("one", "two")]
    for start, record_set in ((0, sets[0]), (4, sets[1]), (8, sets[0])):
        record_set.publish([made(key) for key in KEYS[start : start + 4]])
    return RecordUnion(sets)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    asked: list[str] = []
    get = FolderStore.get

    def counted(self: FolderStore, name: str, offset: int = 0, length: int | None = None) -> bytes:
        asked.append(name)
        return get(self, name, offset, length)

    monkeypatch.setattr(FolderStore, "get", counted)
    yield asked


def made(key: str) -> Record:
    return Record(key=key, meta={"of": key[-2:]}, payload=key[-1].encode() * (int(key, 16) + 1))


def test_several_are_read_by_one_request_a_run_in_the_order_asked(
    union: RecordUnion, requests: list[str]
) -> None:
    wanted = [KEYS[9], KEYS[0], KEYS[5], KEYS[1], KEYS[2], KEYS[4], KEYS[0]]
    assert union.read_several(wanted) == [made(key) for key in wanted]
    assert len(requests) == 3  # 0 to 2, 4 and 5, 9
    assert union.read_several([]) == []
    with pytest.raises(KeyError):
        union.read_several([KEYS[0], "f" * 64])


def test_places_between_which_another_lies_are_read_apart(
    union: RecordUnion, requests: list[str]
) -> None:
    assert union.read_several([KEYS[0], KEYS[2]]) == [made(KEYS[0]), made(KEYS[2])]
    assert len(requests) == 2


def test_of_several_the_damaged_one_is_told_and_set_aside(
    union: RecordUnion, store: FolderStore
) -> None:
    place = union.place(KEYS[5])
    path = store.local / place.pack
    content = bytearray(path.read_bytes())
    content[place.offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedRecord):
        union.read_several(KEYS)
    assert KEYS[5] not in union and KEYS[0] in union
    assert union.read_several(KEYS[:4]) == [made(key) for key in KEYS[:4]]


def test_of_several_one_that_another_writer_moved_is_found(
    union: RecordUnion, store: FolderStore
) -> None:
    other = RecordSet(store, "kind", "two")
    other.remove([KEYS[4]])  # the rest is written anew, elsewhere
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
