"""A store damaged in every way: each change of a pack is noticed and made again, what is remembered
is checked, what cannot be used is passed over or told, and no run is stopped for good."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault
from artifacts.records.keys import ContentDigests
from artifacts.records.packs import DamagedRecord, Record, RecordSet, verify
from artifacts.records.store import FolderStore
from flows.commands.cache.clean import collect
from flows.core.machine.leases import running_jobs
from penstock_demo.clips import write_clips
from tests.support.attacks import Outcome, attacked, seeded

pytestmark = pytest.mark.slow

NAMESPACE = "ab" * 32
KEYS = [f"{n:064x}" for n in range(6)]
FILES = 20


def flip(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(8 * len(data))
    data[at // 8] ^= 1 << at % 8


def cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def insert(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    data[at:at] = draw.randbytes(draw.randrange(1, 100))


def blank(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    length = min(len(data) - at, draw.randrange(1, 200))
    if any(data[at : at + length]):
        data[at : at + length] = bytes(length)
    else:
        insert(data, draw)


def swap(data: bytearray, draw: random.Random) -> None:
    half = len(data) // 2
    data[:] = data[half:] + data[:half]


def scramble(data: bytearray, draw: random.Random) -> None:
    data[:] = draw.randbytes(len(data))


def length(data: bytearray, draw: random.Random) -> None:
    data[8:16] = draw.randbytes(8)


CHANGES = (flip, cut, insert, blank, swap, scramble, length)
Change = Callable[[bytearray, random.Random], None]


def changed(path: Path, change: Change, draw: random.Random) -> bytes:
    """Change a file, and return what it was."""
    before = path.read_bytes()
    data = bytearray(before)
    change(data, draw)
    path.write_bytes(data)
    return before


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 36)


ODD: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: None,
    "hole": hole,
}


def replaced(path: Path, odd: str) -> None:
    path.unlink()
    ODD[odd](path)


def put(store: FolderStore) -> dict[str, Record]:
    """Six records in three packs."""
    records = [Record(key=k, meta={"n": n}, payload=k.encode() * 40) for n, k in enumerate(KEYS)]
    record_set = RecordSet(store, "k", NAMESPACE)
    for at in range(0, len(records), 2):
        record_set.publish(records[at : at + 2])
    return {record.key: record for record in records}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_what_is_no_pack_in_a_pack_s_place_is_told(tmp_path: Path, odd: str, known: bool) -> None:
    store = FolderStore(tmp_path)
    records = put(store)
    record_set = RecordSet(store, "k", NAMESPACE)
    path = store.local / next(iter(store.list("k")))
    replaced(path, odd)
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
def remembered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, str]]:
    """A memory of digests, and what it is of."""
    folder = tmp_path_factory.mktemp("remembered")
    files = [folder / f"{n} ü\n.mp4" for n in range(FILES)]
    for n, file in enumerate(files):
        file.write_bytes(b"%d" % n)
    digests = ContentDigests(folder / "digests.jsonl")
    return folder / "digests.jsonl", {file: digests.of(file) for file in files}


@pytest.mark.parametrize("odd", ODD)
def test_a_book_that_is_no_file_is_done_without(
    remembered: tuple[Path, dict[Path, str]], tmp_path: Path, odd: str
) -> None:
    memory, digests = remembered
    copy = Path(shutil.copy(memory, tmp_path / "digests.jsonl"))
    replaced(copy, odd)
    again = ContentDigests(copy)
    assert {file: again.of(file) for file in digests} == digests

    store = FolderStore(tmp_path / "store")
    job = store.local / "jobs" / "one.json"
    job.parent.mkdir(parents=True)
    job.write_text("{}")
    replaced(job, odd)
    assert running_jobs(store) == []
    collect(store, 0, dry_run=False)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four clips, and what a run of them stored and wrote."""
    folder = tmp_path_factory.mktemp("captioned")
    write_clips(folder / "clips", 4, seed=3)
    run(folder).holds(0)
    return folder


def run(folder: Path) -> Outcome:
    where = ("--out", folder / "out", "--store", folder / "store")
    # The rows of a copied folder name media that still exist in the original folder.
    more = ("--keep-frames", "--replace")
    return attacked("caption", folder / "clips", "--model", "demo", *where, *more)


@pytest.fixture
def copy(captioned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(captioned, tmp_path / "copy", symlinks=True))


def captions(folder: Path) -> str:
    return (folder / "out" / "captions.jsonl").read_text().replace(str(folder), "")


@pytest.mark.parametrize("number", range(4))
def test_a_run_over_changed_packs_says_the_same(captioned: Path, copy: Path, number: int) -> None:
    """Whatever of the store was changed, of every kind at once."""
    draw = seeded("run", number)
    packs = sorted((copy / "store").rglob("*.pack"))
    for path in draw.sample(packs, draw.randrange(1, len(packs) + 1)):
        changed(path, draw.choice(CHANGES), draw)
    outcome = run(copy)
    if outcome.code == 5:  # one line, and the same command goes on
        outcome = run(copy)
    outcome.holds(0)
    assert captions(copy) == captions(captioned)
