"""Packs that a disk, a crash or a stranger has changed: every change is noticed, nothing false is
read, and what is lost is made again."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import EnvironmentFault
from artifacts.pack_object import LEAD, MAGIC, DamagedRecord, verify
from artifacts.packs import Record, RecordSet
from artifacts.store import FolderStore
from penstock_demo.clips import write_clips
from tests.support.attacks import Outcome, attacked, seeded
from tests.support.damage import CHANGES, ODD

pytestmark = pytest.mark.slow

NAMESPACE = "ab" * 32
KEYS = [f"{n:064x}" for n in range(6)]


def put(store: FolderStore) -> dict[str, Record]:
    """Six records in three packs."""
    records = [Record(key=k, meta={"n": n}, payload=k.encode() * 40) for n, k in enumerate(KEYS)]
    record_set = RecordSet(store, "k", NAMESPACE)
    for at in range(0, len(records), 2):
        record_set.publish(records[at : at + 2])
    return {record.key: record for record in records}


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_what_was_changed_is_noticed_and_made_again(
    tmp_path: Path, change: str, number: int, known: bool
) -> None:
    """By a record set that knew the pack before, and by one that sees it for the first time."""
    store = FolderStore(tmp_path)
    records = put(store)
    draw = seeded("packs", change, number)
    record_set = RecordSet(store, "k", NAMESPACE) if known else None
    path = store.local / draw.choice(list(store.list("k")))
    data = bytearray(path.read_bytes())
    CHANGES[change](data, draw)
    path.write_bytes(data)
    record_set = record_set or RecordSet(store, "k", NAMESPACE)
    lost = 0
    for key, record in records.items():
        try:
            found = record_set.read(key)
        except (KeyError, DamagedRecord):
            lost += 1
        else:
            assert (found.meta, bytes(found.payload)) == (record.meta, record.payload)
    assert lost <= 2
    again = RecordSet(store, "k", NAMESPACE)
    again.publish(list(records.values()))
    assert all(again.read(key).payload == record.payload for key, record in records.items())


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("change", CHANGES)
def test_verify_finds_it_and_leaves_the_others(tmp_path: Path, change: str, number: int) -> None:
    store = FolderStore(tmp_path)
    put(store)
    draw = seeded("verify", change, number)
    name = draw.choice(list(store.list("k")))
    data = bytearray((store.local / name).read_bytes())
    end = len(data)
    CHANGES[change](data, draw)
    (store.local / name).write_bytes(data)
    bad = [found for found, good in verify(store) if not good]
    harmless = bytes(data[:end]) == (store.local / name).read_bytes()[:end] if not bad else False
    assert bad == [name] or harmless
    assert len(list(store.list("k"))) == 3 - len(bad)


def forged(header: object) -> bytes:
    """A pack whose header is whole, and nobody's here."""
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return LEAD.pack(MAGIC, len(text), hashlib.sha256(text).digest()) + text


GOOD = {"key": "k", "offset": 0, "length": 0, "sha256": hashlib.sha256(b"").hexdigest(), "meta": {}}
NO_RECORDS: list[Any] = [None, 5, "x", {}, [5], [None], [[]], ["x"], [{}]]
NO_NUMBERS: list[Any] = [-1, 1 << 62, 1 << 63, 1 << 70, "x", None, [], 1e300, {}]
FORGED: list[Any] = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b'"records"',
    b"[" * 200_000,
    b'{"records": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"\xff\xfe",
    b'{"records": NaN}',
    *({"records": value} for value in NO_RECORDS),
    *({"records": [{k: v for k, v in GOOD.items() if k != gone}]} for gone in GOOD),
    *({"records": [{**GOOD, "offset": value}]} for value in NO_NUMBERS),
    *({"records": [{**GOOD, "length": value}]} for value in NO_NUMBERS),
    *({"records": [{**GOOD, "meta": value}]} for value in NO_RECORDS if value != {}),
    *({"records": [{**GOOD, "sha256": value}]} for value in NO_RECORDS),
    *({"records": [{**GOOD, "key": value}]} for value in [*NO_RECORDS, "../../etc/passwd"]),
]


@pytest.mark.parametrize("number", range(len(FORGED)))
def test_a_forged_header_reads_nothing_false_and_stops_nobody(tmp_path: Path, number: int) -> None:
    store = FolderStore(tmp_path)
    put(store)
    name = f"k/{NAMESPACE[:2]}/{NAMESPACE}/ff/{'f' * 64}.pack"
    store.put_if_absent(name, [forged(FORGED[number])])
    record_set = RecordSet(store, "k", NAMESPACE)
    assert set(KEYS) <= record_set.keys()
    for key in record_set.keys() - set(KEYS):
        try:
            payload = record_set.read(key).payload
        except DamagedRecord:
            continue
        assert payload == b""
    list(verify(store))


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_what_is_no_pack_in_a_pack_s_place_is_told(
    tmp_path: Path, odd: Callable[[Path], None], known: bool
) -> None:
    store = FolderStore(tmp_path)
    records = put(store)
    record_set = RecordSet(store, "k", NAMESPACE)
    path = store.local / next(iter(store.list("k")))
    odd(path)
    if not known:
        record_set = RecordSet(store, "k", NAMESPACE)
    try:
        for key in KEYS:
            if key in record_set:
                assert record_set.read(key).payload == records[key].payload
        record_set.publish(list(records.values()))
    except (EnvironmentFault, KeyError) as error:
        assert str(path.name[:12]) in str(error) or isinstance(error, DamagedRecord)
    list(verify(store))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six clips, and what a run of them stored and wrote."""
    folder = tmp_path_factory.mktemp("captioned")
    write_clips(folder / "clips", 6, seed=3)
    run(folder).holds(0)
    return folder


def run(folder: Path) -> Outcome:
    where = ("--out", folder / "out", "--store", folder / "store")
    return attacked("caption", folder / "clips", "--model", "demo", *where, "--keep-frames")


@pytest.mark.parametrize("number", range(10))
def test_a_run_over_changed_packs_writes_the_same_captions(
    captioned: Path, tmp_path: Path, number: int
) -> None:
    """Whatever of the store was changed, of every kind at once."""
    folder = tmp_path / "copy"
    shutil.copytree(captioned, folder, symlinks=True)
    before = (folder / "out" / "captions.jsonl").read_text()
    draw = seeded("run", number)
    packs = sorted((folder / "store").rglob("*.pack"))
    for path in draw.sample(packs, draw.randrange(1, len(packs) + 1)):
        data = bytearray(path.read_bytes())
        CHANGES[draw.choice(list(CHANGES))](data, draw)
        path.write_bytes(data)
    outcome = run(folder)
    if outcome.code == 5:  # one line, and the same command goes on
        outcome = run(folder)
    outcome.holds(0)
    after = (folder / "out" / "captions.jsonl").read_text()
    assert after == before.replace(str(captioned), str(folder))
