"""What goes from a store that is too large, what stays, and what is said of the rest."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.claims import claims_at
from artifacts.errors import UsageError
from artifacts.pack_object import verify
from artifacts.packs import Record, RecordSet
from artifacts.store import FolderStore
from flows.checkpoint.user_gguf import COPIES
from flows.cli.main import main
from flows.console.units import parse_size
from flows.machine.leases import running_jobs
from flows.upkeep.cache import collect, holdings
from tests.support.holders import held_elsewhere
from tests.support.pipeline import wait_gone

HELD, FREE = "aa" * 32, "bb" * 32
PAYLOAD = 10_000


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def put(store: FolderStore, kind: str, namespace: str, key: str, used: float) -> Path:
    """A pack of one record that was last used so many seconds after 2001."""
    before = set(store.list(kind))
    RecordSet(store, kind, namespace).publish([Record(key=key, payload=key.encode() * PAYLOAD)])
    (name,) = set(store.list(kind)) - before
    os.utime(store.local / name, (used + 1e9, used + 1e9))
    return store.local / name


@pytest.fixture
def holder(store: FolderStore) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the namespace HELD."""
    with held_elsewhere(store, HELD) as process:
        yield process


def test_the_least_recently_used_goes_first_and_what_is_small_goes_last(store: FolderStore) -> None:
    caption = put(store, "captions", FREE, "c", used=1)
    old, middle = (put(store, "features", FREE, key, used=at) for key, at in (("a", 2), ("b", 3)))
    frames = put(store, "frames", HELD, "f", used=4)
    sizes = {path: path.stat().st_size for path in (old, middle, frames, caption)}
    total = sum(sizes.values())
    for goes in (old, middle, frames, caption):
        made = collect(store, total - 1, dry_run=False)
        assert not goes.exists() and made.bytes == sizes.pop(goes)
        assert all(path.exists() for path in sizes)
        total -= made.bytes


def test_reading_keeps_a_pack_from_going(store: FolderStore) -> None:
    read, unread = (put(store, "features", FREE, key, used=at) for key, at in (("a", 1), ("b", 2)))
    RecordSet(store, "features", FREE).read("a")
    collect(store, 15_000, dry_run=False)
    assert read.exists() and not unread.exists()


def test_a_store_below_the_size_loses_nothing_but_rubbish(store: FolderStore) -> None:
    kept = put(store, "features", FREE, "a", used=1)
    bad = put(store, "features", FREE, "b", used=2)
    bad.write_bytes(b"garbage")
    assert [fine for _, fine in verify(store)].count(False) == 1
    stale = store.local / "tmp" / "half"
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    made = collect(store, 1 << 30, dry_run=False)
    assert dict(made.packs) == {"rubbish": 2}
    assert kept.exists() and not stale.exists()
    assert not any(path.is_file() for path in (store.local / "quarantine").rglob("*"))


def test_a_dry_run_says_the_same_and_deletes_nothing(store: FolderStore) -> None:
    for at in range(4):
        put(store, "features", FREE, f"{at}", used=at)
    before = list(store.list())
    told = collect(store, 25_000, dry_run=True)
    assert list(store.list()) == before
    done = collect(store, 25_000, dry_run=False)
    assert (told.packs, told.bytes) == (done.packs, done.bytes)
    assert done.packs["features"] == 2


def test_what_another_process_needs_stays_until_that_process_is_dead(
    store: FolderStore, holder: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    held = put(store, "features", HELD, "a", used=1)
    free = put(store, "features", FREE, "b", used=2)
    (job,) = running_jobs(store)
    assert job.namespaces == {HELD} and str(holder.pid) in job.description
    command = ["cache", "gc", "--max", "0", "--store", store.url]
    assert main(command) == 1
    assert held.exists() and not free.exists()
    shown = capsys.readouterr().out
    assert f"process {holder.pid}" in shown and "Run it again" in shown
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    wait_gone([holder.pid])
    assert main(command) == 0
    assert not held.exists()
    assert not list((store.local / "jobs").iterdir())


def test_sizes_are_read_as_people_write_them_and_nothing_else_is() -> None:
    sizes = {"200GB": 200 * 10**9, "1.5TiB": 3 << 39, "800 mb": 8 * 10**8, "4194304": 1 << 22}
    sizes |= {"512M": 1 << 29, "8g": 8 << 30, "1T": 1 << 40, "0": 0, "8B": 8}
    assert {text: parse_size(text, "--max") for text in sizes} == sizes
    for text in ("", "GB", "-1GB", "1e3GB", "5 apples", "1.GB", "9" * 400):
        with pytest.raises(UsageError, match="is not a size"):
            parse_size(text, "--max")


def test_ls_tells_all_namespaces(store: FolderStore, capsys: pytest.CaptureFixture[str]) -> None:
    put(store, "features", FREE, "a", used=1)
    (holding_,) = holdings(store)
    assert (holding_.kind, holding_.namespace, holding_.packs) == ("features", FREE, 1)
    assert main(["cache", "ls", "--store", store.url]) == 0
    assert "features" in capsys.readouterr().out
    assert main(["cache", "ls", "--store", store.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["scope"] == FREE


def test_verify_is_exit_1_once(store: FolderStore, capsys: pytest.CaptureFixture[str]) -> None:
    pack = put(store, "features", FREE, "a", used=1)
    pack.write_bytes(pack.read_bytes()[:-1] + b"?")
    command = ["cache", "verify", "--store", store.url]
    assert main(command) == 1
    assert "damaged, quarantined: features/" in capsys.readouterr().out
    assert main(command) == 0


def test_claims_of_namespaces_that_no_job_holds_go_with_the_rubbish(
    store: FolderStore, holder: "subprocess.Popen[str]"
) -> None:
    for namespace in (HELD, FREE):
        with claims_at(store, RecordSet(store, "features", namespace)) as turns:
            turns.done([])
    collect(store, 1 << 30, dry_run=False)
    left = [path.name for path in (store.local / "claims").rglob("*") if path.is_file()]
    assert left == [HELD]


def test_copies_of_gguf_files_go_when_no_run_has_used_them_for_an_hour(store: FolderStore) -> None:
    folder = store.local / COPIES
    folder.mkdir(parents=True)
    used, unused, killed = (folder / name for name in ("a.gguf", "b.gguf", ".penstock-7-c.gguf"))
    for path in (used, unused, killed):
        path.write_bytes(b"GGUF")
    for path in (unused, killed):
        os.utime(path, (1e9, 1e9))
    made = collect(store, 1 << 40, dry_run=False)
    assert (made.packs["rubbish"], made.bytes) == (2, 8)
    assert list(folder.iterdir()) == [used]
