"""Everything of a store that is no pack, damaged in every way: what it remembers is checked, what
it cannot use is passed over or told, and no run is stopped for good."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts import keys
from artifacts.claims import Claims
from artifacts.keys import ContentDigests
from artifacts.packs import Record, RecordSet
from artifacts.store import FolderStore
from flows.job.leases import running_jobs
from flows.upkeep.cache_gc import collect
from penstock_demo.clips import write_clips
from tests.support.attacks import Outcome, attacked, seeded
from tests.support.damage import CHANGES, ODD

pytestmark = pytest.mark.slow

FILES = 20


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, str]]:
    """A memory of digests, and what it is of."""
    folder = tmp_path_factory.mktemp("remembered")
    files = [folder / f"{n} ü\n.mp4" for n in range(FILES)]
    for n, file in enumerate(files):
        file.write_bytes(b"%d" % n)
    digests = ContentDigests(folder / "digests.jsonl")
    return folder / "digests.jsonl", {file: digests.of(file) for file in files}


@pytest.mark.parametrize("number", range(25))
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_memory_never_tells_a_wrong_digest(
    remembered: tuple[Path, dict[Path, str]], tmp_path: Path, change: str, number: int
) -> None:
    memory, digests = remembered
    data = bytearray(memory.read_bytes())
    draw = seeded("digests", change, number)
    for _ in range(draw.randrange(1, 4)):
        if data:
            CHANGES[change](data, draw)
    (tmp_path / "digests.jsonl").write_bytes(data)
    again = ContentDigests(tmp_path / "digests.jsonl")
    assert {file: again.of(file) for file in digests} == digests


LINES: dict[str, bytes] = {
    "high bit": b"\xff",
    "deep": b"[" * 500_000,
    "deep with a checksum": b"[" * 70_000,
    "numbers": b"[1, 2, 3]",
    "null": b"null",
    "object": b"{}",
    "short": b'["/a"]',
    "long": b"x" * (1 << 20),
    "zeros": bytes(1 << 20),
    "old version": json.dumps(["/a", [1, 2, 3], "0" * 64]).encode(),
    "carriage returns": b"\r\r\r\n",
    "a mark": b"\xef\xbb\xbf",
    "utf-16": '["/a", [1, 2, 3], "00"]'.encode("utf-16"),
}


@pytest.mark.parametrize("place", ["before", "behind", "alone"])
@pytest.mark.parametrize("line", LINES)
def test_a_line_of_nobody_s_costs_nothing_else(
    remembered: tuple[Path, dict[Path, str]],
    tmp_path: Path,
    line: str,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, digests = remembered
    parts = {"before": [LINES[line], memory.read_bytes()], "alone": [LINES[line]]}
    data = b"\n".join(parts.get(place, [memory.read_bytes(), LINES[line]]))
    (tmp_path / "digests.jsonl").write_bytes(data)
    again = ContentDigests(tmp_path / "digests.jsonl")
    read, hash_file = list[Path](), keys.hash_file

    def counting(path: Path) -> str:
        read.append(path)
        return hash_file(path)

    monkeypatch.setattr(keys, "hash_file", counting)
    assert {file: again.of(file) for file in digests} == digests
    assert len(read) == (FILES if place == "alone" else 0)


@pytest.mark.parametrize("odd", ODD)
def test_a_memory_that_is_no_file_is_done_without(
    remembered: tuple[Path, dict[Path, str]], tmp_path: Path, odd: Callable[[Path], None]
) -> None:
    memory, digests = remembered
    copy = tmp_path / "digests.jsonl"
    shutil.copy(memory, copy)
    odd(copy)
    again = ContentDigests(copy)
    assert {file: again.of(file) for file in digests} == digests


@pytest.mark.parametrize("number", range(40))
def test_a_changed_claim_of_a_job_stops_nobody(tmp_path: Path, number: int) -> None:
    store = FolderStore(tmp_path)
    draw = seeded("jobs", number)
    claim = {"pid": 1, "host": "elsewhere", "system": "x", "out": "o", "scopes": ["ab" * 32] * 9}
    data = bytearray(json.dumps(claim).encode())
    for _ in range(draw.randrange(1, 4)):
        CHANGES[draw.choice(list(CHANGES))](data, draw)
        data += b"x"
    path = tmp_path / "jobs" / "one.json"
    path.parent.mkdir()
    path.write_bytes(data)
    os.utime(path, (0, 0))  # dead for long
    assert running_jobs(store) == []
    assert not path.exists()


@pytest.mark.parametrize("odd", ODD)
def test_a_claim_that_is_no_file_stops_nobody(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    store = FolderStore(tmp_path)
    path = tmp_path / "jobs" / "one.json"
    path.parent.mkdir()
    path.write_text("{}")
    odd(path)
    assert running_jobs(store) == []
    collect(store, 0, dry_run=False)


@pytest.mark.parametrize("odd", ODD)
def test_claims_on_keys_that_are_no_file_grant_everything(
    tmp_path: Path, odd: Callable[[Path], None]
) -> None:
    (tmp_path / "namespace").write_bytes(b"")
    odd(tmp_path / "namespace")
    claim = Claims(tmp_path / "namespace")
    assert claim.take(["a", "b"])
    claim.published()
    claim.has_news()
    claim.release(["a", "b"])
    claim.close()


@pytest.mark.parametrize("number", range(30))
def test_what_is_strewn_into_a_store_is_no_record(tmp_path: Path, number: int) -> None:
    """Files, links and folders of any name and depth beside the packs."""
    store, draw = FolderStore(tmp_path), seeded("strewn", number)
    record_set = RecordSet(store, "k", "ab" * 32)
    record_set.publish([Record(key="a", payload=b"x")])
    for _ in range(30):
        strew(tmp_path, draw)
    again = RecordSet(store, "k", "ab" * 32)
    assert again.read("a").payload == b"x"
    assert again.keys() == {"a"}
    collect(store, 1 << 30, dry_run=False)
    list(store.list())


def strew(root: Path, draw: random.Random) -> None:
    folders = [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]
    name = draw.choice(("x", ".", "ä", "k", "tmp", "jobs", "claims", "aa.pack", "b" * 250))
    path = draw.choice(folders) / (name if name != "." else f".{draw.random()}")
    if os.path.lexists(path):
        return
    made = draw.choice(("file", "folder", "fifo", "link", "loop"))
    if made == "file":
        path.write_bytes(draw.randbytes(draw.randrange(200)))
    elif made == "folder":
        path.mkdir()
    elif made == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path if made == "loop" else draw.choice(folders))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four clips, and what a run of them stored and wrote."""
    folder = tmp_path_factory.mktemp("captioned")
    write_clips(folder / "clips", 4, seed=3)
    run(folder).holds(0)
    return folder


def run(folder: Path, *more: str) -> Outcome:
    where = ("--out", folder / "out", "--store", folder / "store")
    return attacked("caption", folder / "clips", "--model", "demo", *where, *more)


BOOKS = (
    "digests.jsonl", "written.jsonl", "jobs", "tmp", "claims", "quarantine", "logs", "cards",
    "media",
)  # fmt: skip


@pytest.mark.parametrize("odd", ODD[:4])
@pytest.mark.parametrize("book", BOOKS)
def test_a_command_over_a_store_with_something_odd_in_it_ends_in_words(
    captioned: Path, tmp_path: Path, book: str, odd: Callable[[Path], None]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(captioned, folder, symlinks=True)
    path = folder / "store" / book
    if path.is_dir():
        shutil.rmtree(path)
    path.write_bytes(b"")
    odd(path)
    outcome = run(folder)
    outcome.holds(0, 5)
    for action in (("verify",), ("ls",), ("gc", "--max", "1TB")):
        attacked("cache", *action, "--store", folder / "store").holds(0, 1, 5)
    if outcome.code == 0:
        first, again = (where / "out" / "captions.jsonl" for where in (captioned, folder))
        assert again.read_text() == first.read_text().replace(str(captioned), str(folder))
