"""A job counts as running in a bucket by its lease and by the clock of the service."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.store import Store, open_store
from artifacts.stores.bucket_client import Bucket
from flows.machine import leases
from flows.machine.leases import leased, running_jobs
from flows.upkeep.cache import collect
from tests.support.buckets import bucket_server, environment

HELD = "aa" * 32
HOUR = 3600.0


@pytest.fixture(scope="module")
def slow_clock() -> Iterator[int]:
    """A server whose clock is an hour behind ours."""
    with bucket_server(behind=HOUR) as port:
        yield port


@pytest.fixture
def store(bucket_address: str) -> Store:
    return open_store(bucket_address)


@pytest.fixture
def behind(bucket_address: str, slow_clock: int, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store at the server of that clock."""
    for name, value in environment(slow_clock).items():
        monkeypatch.setenv(name, value)
    return open_store(bucket_address)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, this process takes itself for one of another machine."""
    monkeypatch.setattr(leases, "system", lambda: "another machine")


def test_gc_spares_what_is_needed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = f"features/aa/{HELD}/00/pack.pack"
    store.put_if_absent(pack, [b"x" * 1000])
    with leased(store, [HELD], tmp_path):
        elsewhere(monkeypatch)
        other = open_store(store.url)
        made = collect(other, 0, dry_run=False)
        assert (made.held, len(made.jobs)) == (1000, 1)
        assert store.stat(pack) is not None
    assert collect(other, 0, dry_run=False).jobs == []
    assert store.stat(pack) is None


@pytest.mark.slow
def test_a_lease_ends_by_their_clock(
    behind: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch)
    left = leased(behind, [HELD], tmp_path)
    left.__enter__()  # and never leaves, as a machine that is switched off
    other = open_store(behind.url)
    # Taken for our own clock's, the lease would be an hour old, or an hour young.
    monkeypatch.setattr(leases, "LEASE_SECONDS", HOUR / 2)
    assert [job.namespaces for job in running_jobs(other)] == [{HELD}]
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.5)
    assert len(running_jobs(other)) == 1
    deadline = time.monotonic() + 20
    while running_jobs(other) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running_jobs(other) == []
    assert list(Bucket(behind.url).below("jobs")) == []


@pytest.mark.slow
def test_a_renewed_lease_stays(
    behind: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    with leased(behind, [HELD], tmp_path):
        elsewhere(monkeypatch)
        other = open_store(behind.url)
        for _ in range(10):
            assert len(running_jobs(other)) == 1
            time.sleep(0.5)


def test_a_lease_that_was_taken_for_dead_is_written_again(store: Store, tmp_path: Path) -> None:
    assert store.board is not None
    with leased(store, [HELD], tmp_path) as lease:
        (found,) = Bucket(store.url).below("jobs")
        Bucket(store.url).delete([found.name])
        assert running_jobs(open_store(store.url)) == []
        store.board.renew(found.name)
        assert [job.namespaces for job in running_jobs(open_store(store.url))] == [{HELD}]
        assert lease.others() == []
    assert running_jobs(open_store(store.url)) == []


def test_a_lease_that_is_renewed_while_it_is_swept_stays(store: Store, tmp_path: Path) -> None:
    with leased(store, [HELD], tmp_path):
        other = open_store(store.url)
        assert store.board is not None and other.board is not None
        ((name, _),) = other.board.ages()
        store.board.renew(name)
        other.board.expire(name)
        assert len(running_jobs(other)) == 1


def test_who_died_here_has_no_lease(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.board is not None
    note = leases.note_of([HELD], tmp_path)
    store.board.create(json.dumps({**note, "pid": 1 << 30}).encode())
    assert running_jobs(open_store(store.url)) == []


@pytest.mark.parametrize("text", [b"\xff\xfe", b"[1]", b'{"scopes": 5}', b""])
def test_a_note_that_is_none_stops_nobody(store: Store, text: bytes) -> None:
    store.put_if_absent("jobs/odd", [text])
    assert running_jobs(store) == []
    collect(store, 0, dry_run=False)
