"""A store in a bucket: what it asks of the service, what it keeps on this machine, and how long a
job counts as running there."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import Store, open_store
from artifacts.records.stores import bucket_client, bucket_store
from artifacts.records.stores.bucket_client import Bucket
from artifacts.records.stores.copies import Copies
from artifacts.records.stores.protocol import CATALOGS
from flows.commands.cache.clean import collect
from flows.core.console.display import Display
from flows.core.job.prepare import prepare
from flows.core.machine import leases
from flows.core.machine.leases import leased, running_jobs
from flows.execution.run import caption
from flows.execution.run_observer import hold_lease
from tests.support.buckets import Between, bucket_server, environment
from tests.support.media import write_videos
from tests.support.stand_ins import Stages, config_in

NAMESPACE = "ab" * 32


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_client, "WAITS", (0.01,) * 6)


@pytest.fixture(autouse=True)
def small_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JOINED", "WORTH"):
        monkeypatch.setattr(bucket_store, name, 4)
    monkeypatch.setattr(bucket_store, "MERGED", 3)


@pytest.fixture
def store(bucket_address: str, way: Between) -> Store:
    return open_store(bucket_address)


def another_machine(store: Store, monkeypatch: pytest.MonkeyPatch, name: str = "other") -> Store:
    """The same store as a machine sees it that has nothing nearby."""
    with monkeypatch.context() as patch:
        patch.setenv("PENSTOCK_NEARBY", str(store.local / "of" / name))
        return open_store(store.url)


@pytest.fixture
def elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    return another_machine(store, monkeypatch)


def filled(store: Store, packs: int, kind: str = "captions") -> RecordSet:
    record_set = RecordSet(store, kind, NAMESPACE)
    for number in range(packs):
        record_set.publish([Record(key=f"k{number:04}", meta={"n": number}, payload=b"p" * 50)])
    return record_set


@pytest.mark.parametrize(
    "address",
    [
        *("s3://key:hidden@bucket/place", "s3://bucket/place?token=hidden"),
        *("s3://bucket/place#hidden", "s3:///place", "s3://"),
    ],
)
def test_an_address_with_more_than_a_bucket_and_a_folder_is_refused(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(address)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AZURE_STORAGE_ACCOUNT_KEY"])
@pytest.mark.parametrize("value", ["…", "two words", "x\n"])
def test_a_variable_that_no_service_can_be_asked_with_is_named_and_not_told(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        open_store("s3://bucket/folder")
    assert caught.value.message == f"{name} holds a character that it cannot hold"


def test_who_may_not_is_told_at_once_and_in_one_line(store: Store, way: Between) -> None:
    way.answers, way.spoil = (403,), 1.0
    with pytest.raises(EnvironmentFault) as caught:
        store.check_writable()
    message = str(caught.value)
    assert store.url in message and "\n" not in message
    assert "403 Forbidden" in message and "127.0.0.1" not in message and "secret" not in message
    assert way.total == 1


def test_a_bucket_that_is_not_there_is_told_in_one_line(store: Store) -> None:
    for ask in ("check_writable", "list", "stats"):
        with pytest.raises(EnvironmentFault, match=r"s3://nobody/place.*See that the buck") as no:
            list(getattr(open_store("s3://nobody/place"), ask)() or ())
        assert "\n" not in str(no.value)


def test_patience_has_an_end(store: Store, way: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    way.answers, way.spoil = (409,), 1.0
    with pytest.raises(EnvironmentFault, match="no response from"):
        store.get("features/one")
    assert way.total <= (1 + len(bucket_client.WAITS)) * (1 + bucket_client.INNER_TRIES)


@pytest.mark.slow
def test_a_failing_service_is_borne(store: Store, way: Between, elsewhere: Store) -> None:
    way.spoil = 0.3
    record_set = filled(store, 6, "features")
    other = RecordSet(elsewhere, "features", NAMESPACE)
    keys = other.keys()
    assert keys == record_set.keys() == {f"k{n:04}" for n in range(6)}
    assert all(other.read(key).payload == b"p" * 50 for key in keys)
    other.drop(keys)
    record_set.refresh()
    assert record_set.keys() == set()
    assert sum(way.spoilt.values()) > 5


def test_a_stalled_get_is_asked_again(
    store: Store, way: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_if_absent("features/one", [b"one"])
    monkeypatch.setattr(bucket_client, "SILENT_SECONDS", 0.2)
    other = another_machine(store, monkeypatch)
    way.clear()
    stalls, fate = iter([1.0, 1.0]), Between.fate

    def stalled(self: Between) -> tuple[int | None, bool]:
        self.delay = next(stalls, 0.0)
        return fate(self)

    monkeypatch.setattr(Between, "fate", stalled)
    assert other.get("features/one") == b"one" and way.counts["get"] == 3


def test_of_two_writers_the_first_one_s_bytes_stay(store: Store, elsewhere: Store) -> None:
    ours, theirs = (RecordSet(each, "features", NAMESPACE) for each in (store, elsewhere))
    assert ours.publish([Record(key="a", payload=b"of one card")]) == ["a"]
    assert theirs.publish([Record(key="a", payload=b"of another card")]) == []
    assert theirs.read("a").payload == ours.read("a").payload == b"of one card"
    assert list(store.list("quarantine")) == []
    assert len(list(store.list("features"))) == 1


def test_a_pack_made_anew_is_read_as_it_is_now(store: Store, elsewhere: Store) -> None:
    RecordSet(store, "features", NAMESPACE).publish([Record(key="a", payload=b"of one card")])
    theirs = RecordSet(elsewhere, "features", NAMESPACE)
    theirs.drop(["a"])
    theirs.publish([Record(key="a", payload=b"of another card")])
    again = RecordSet(open_store(store.url), "features", NAMESPACE)
    assert again.read("a").payload == b"of another card"
    assert list(store.list("quarantine")) == []


def test_a_copy_that_rotted_costs_a_request_and_no_pack(store: Store, way: Between) -> None:
    filled(store, 2)
    assert isinstance(store, bucket_store.BucketStore)
    for path in [p for p in store._copies._folder.rglob("*") if p.is_file()]:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = RecordSet(open_store(store.url), "captions", NAMESPACE)
    way.clear()
    assert again.read("k0001").payload == b"p" * 50
    assert 1 <= way.total <= 3
    assert list(store.list("quarantine")) == []


def test_what_was_read_or_written_here_is_not_asked_for_again(store: Store, way: Between) -> None:
    record_set = filled(store, 3)
    keys = record_set.keys()
    way.clear()
    assert all(record_set.read(key).payload for key in keys)
    assert way.total == 0
    again = RecordSet(open_store(store.url), "captions", NAMESPACE)
    assert all(again.read(key).payload for key in keys)
    assert dict(way.counts) == {"list": 1}


def test_frames_stay_on_the_machine(store: Store, way: Between, elsewhere: Store) -> None:
    way.clear()
    record_set = filled(store, 2, "frames")
    assert record_set.read("k0001").payload == b"p" * 50
    (name, _) = store.list("frames")
    assert store.stat(name) is not None
    record_set.drop(["k0001"])
    assert way.total == 0
    assert list(elsewhere.list()) == []
    assert list(store.list()) == list(store.list("frames"))


def test_copies_keep_within_their_limit_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    copies = Copies(tmp_path, limit=10_000)
    for number in range(9):
        copies.add(f"{number}", "v", b"x" * 1000)
        copies.read("0", "v")
    again = Copies(tmp_path, limit=5_000)
    again.add("new", "v", b"x" * 1000)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 5_000
    assert again.read("new", "v") == b"x" * 1000
    assert again.read("1", "v") is None


def test_without_copies_all_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filled(store, 2)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / "file"))
    other = RecordSet(open_store(store.url), "captions", NAMESPACE)
    assert other.read("k0001").payload == b"p" * 50


def test_many_packs_need_few_requests(store: Store, way: Between, elsewhere: Store) -> None:
    packs = 3 * bucket_store.JOINED
    filled(store, packs)
    assert len(RecordSet(store, "captions", NAMESPACE)) == packs  # joins what it sees
    way.clear()
    other = RecordSet(elsewhere, "captions", NAMESPACE)
    assert len(other) == packs and other.meta("k0007") == {"n": 7}
    assert way.total <= 3
    assert dict(way.counts) == {"list": 2, "get": 1}


def test_what_is_in_no_catalog_is_read(
    store: Store, way: Between, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, bucket_store.JOINED)
    RecordSet(store, "captions", NAMESPACE)
    late = RecordSet(another_machine(store, monkeypatch, "late"), "captions", NAMESPACE)
    late.publish([Record(key="late")])
    (name, *_) = store.list("captions")
    store.delete(name)
    way.clear()
    other = RecordSet(elsewhere, "captions", NAMESPACE)
    assert "late" in other and len(other) == bucket_store.JOINED
    assert dict(way.counts) == {"list": 2, "get": 2}


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"garbage" * 100])
def test_a_damaged_catalog_is_no_loss(store: Store, damage: bytes, elsewhere: Store) -> None:
    filled(store, bucket_store.JOINED)
    RecordSet(store, "captions", NAMESPACE)
    (name,) = store.list(CATALOGS)
    bucket_client.Bucket(store.url).write(name, damage)
    assert len(RecordSet(elsewhere, "captions", NAMESPACE)) == bucket_store.JOINED


@pytest.mark.slow
def test_a_misplaced_pack_is_set_aside_though_in_a_catalog(store: Store, elsewhere: Store) -> None:
    keys = filled(store, bucket_store.JOINED).keys()
    name, other, *_ = store.list("captions")
    body = store.get(other)
    store.delete(name)
    assert store.put_if_absent(name, [body])
    seen = RecordSet(open_store(store.url), "captions", NAMESPACE).keys()  # joins what it reads
    assert list(store.list(CATALOGS))
    lost = keys - seen
    assert len(lost) == 1, f"{len(lost)} records are missing, and none was set aside"
    assert store.stat(name) is None and store.get(f"quarantine/{name}") == body
    assert store.put_if_absent(name, [body])  # again, under the version that the catalog has
    theirs = RecordSet(elsewhere, "captions", NAMESPACE)
    assert theirs.keys() == keys - lost and store.stat(name) is None
    assert theirs.publish([Record(key=key) for key in lost]) == [*lost]
    assert RecordSet(open_store(store.url), "captions", NAMESPACE).keys() == keys


@pytest.mark.slow
def test_many_catalogs_become_one(
    store: Store, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_set = RecordSet(store, "captions", NAMESPACE)
    seen = RecordSet(elsewhere, "captions", NAMESPACE)
    for number in range(16):
        record_set.publish([Record(key=f"k{number}")])
        seen.refresh()
    assert len(list(store.list(CATALOGS))) <= 3
    assert len(RecordSet(another_machine(store, monkeypatch, "third"), "captions", NAMESPACE)) == 16


def test_a_large_store_lists(store: Store, way: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bucket_client, bucket_store):
        monkeypatch.setattr(module, "PAGE", 4)
    for kind in ("captions", "features"):
        for number in range(7):
            store.put_if_absent(f"{kind}/ab/{NAMESPACE}/{number:02}/x", [b""])
    names = store.lists([f"{kind}/ab/{NAMESPACE}" for kind in ("captions", "features", "media")])
    assert [len(found) for found in names.values()] == [7, 7, 0]
    assert len(list(store.list())) == 14
    assert list(store.list("captions", levels=2)) == [f"captions/ab/{NAMESPACE}"]
    assert list(store.list(levels=1)) == ["captions", "features"]


def test_catalogs_of_what_nobody_needs_are_rubbish(store: Store) -> None:
    filled(store, bucket_store.JOINED)
    RecordSet(store, "captions", NAMESPACE)
    assert len(list(store.list(CATALOGS))) == 1
    collect(store, 0, dry_run=False)
    assert list(store.list()) == []


HOUR = 3600.0


@pytest.fixture(scope="module")
def slow_clock() -> Iterator[int]:
    """A server whose clock is an hour behind ours."""
    with bucket_server(behind=HOUR) as port:
        yield port


@pytest.fixture
def behind(bucket_address: str, slow_clock: int, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store at the server of that clock."""
    for name, value in environment(slow_clock).items():
        monkeypatch.setenv(name, value)
    return open_store(bucket_address)


def leave_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, this process takes itself for one of another machine."""
    monkeypatch.setattr(leases, "system", lambda: "another machine")


def test_gc_spares_what_is_needed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = f"features/{NAMESPACE[:2]}/{NAMESPACE}/00/pack.pack"
    store.put_if_absent(pack, [b"x" * 1000])
    with leased(store, [NAMESPACE], tmp_path):
        leave_machine(monkeypatch)
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
    leave_machine(monkeypatch)
    lease = leased(behind, [NAMESPACE], tmp_path)
    lease.__enter__()  # for ever, as if it were switched off
    other = open_store(behind.url)
    # Taken for our own clock's, the lease would be an hour old, or an hour young.
    monkeypatch.setattr(leases, "LEASE_SECONDS", HOUR / 2)
    assert [job.namespaces for job in running_jobs(other)] == [{NAMESPACE}]
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.5)
    assert len(running_jobs(other)) == 1
    deadline = time.monotonic() + 20
    while running_jobs(other) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running_jobs(other) == []
    assert list(Bucket(behind.url).below("jobs")) == []


@pytest.mark.slow
def test_a_new_lease_stays(behind: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    with leased(behind, [NAMESPACE], tmp_path):
        leave_machine(monkeypatch)
        other = open_store(behind.url)
        for _ in range(10):
            assert len(running_jobs(other)) == 1
            time.sleep(0.5)


@pytest.mark.parametrize(("offset", "length"), [(0, None), (2, None), (0, 3), (2, 3), (2, 99)])
def test_a_range_of_an_object_has_its_offset(store: Store, offset: int, length: int | None) -> None:
    bucket = Bucket(store.url)
    bucket.write("captions/a", b"0123456789")
    body, found = bucket.get("captions/a", offset, length)
    assert body == b"0123456789"[offset:][:length] and found.size == 10


def test_a_lease_that_was_taken_for_dead_is_written_again(store: Store, tmp_path: Path) -> None:
    assert store.job_leases is not None
    with leased(store, [NAMESPACE], tmp_path) as lease:
        (found,) = Bucket(store.url).below("jobs")
        Bucket(store.url).delete([found.name])
        assert running_jobs(open_store(store.url)) == []
        store.job_leases.renew(found.name)
        assert [job.namespaces for job in running_jobs(open_store(store.url))] == [{NAMESPACE}]
        assert lease.others() == []
    assert running_jobs(open_store(store.url)) == []


def test_a_lease_that_is_renewed_while_it_is_swept_stays(store: Store, tmp_path: Path) -> None:
    with leased(store, [NAMESPACE], tmp_path):
        other = open_store(store.url)
        assert store.job_leases is not None and other.job_leases is not None
        ((name, _),) = other.job_leases.ages()
        store.job_leases.renew(name)
        other.job_leases.expire(name)
        assert len(running_jobs(other)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("near", [False, True])
def test_frames_stay_for_a_job_of_this_machine_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near: bool
) -> None:
    """Frames never leave a machine, so no job of another one needs those that lie here."""
    other = open_store(store.url) if near else another_machine(store, monkeypatch)
    config = replace(config_in(tmp_path, write_videos(tmp_path / "clips", 1)), store=store.url)
    with hold_lease(replace(prepare(config, Stages()), store=other)):
        assert caption(config, Display(quiet=True), Stages().launcher).captions == 1
    assert len(list(store.list("frames"))) == near


def test_who_died_here_has_no_lease(store: Store, tmp_path: Path) -> None:
    assert store.job_leases is not None
    note = leases.note_of([NAMESPACE], tmp_path)
    store.job_leases.create(json.dumps({**note, "pid": 1 << 30}).encode())
    assert running_jobs(open_store(store.url)) == []


@pytest.mark.slow
@pytest.mark.parametrize("text", [b"\xff\xfe", b"[1]", b'{"namespaces": 5}', b""])
def test_a_note_that_is_none_stops_nobody(store: Store, text: bytes) -> None:
    store.put_if_absent("jobs/odd", [text])
    assert running_jobs(store) == []
    collect(store, 0, dry_run=False)
