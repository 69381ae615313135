"""What every store must do, in a folder, without one, and in a bucket."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.records.claims import claims_at
from artifacts.records.packs import DamagedRecord, Record, RecordSet, stored_namespaces, verify
from artifacts.records.store import (
    FORMAT,
    NAME,
    SCHEMES,
    Store,
    check_format,
    open_store,
    prepare_store,
)
from flows.commands.cache.clean import clear, collect, holdings
from flows.commands.cache.rebuild import RebuildOptions, rebuild
from flows.core.console.display import Display
from flows.core.job.prepare import prepare
from flows.core.machine.leases import leased, running_jobs
from flows.core.options.commands import CaptionConfig
from penstock_demo.clips import write_clips
from tests.support.inside import InsideLauncher, Ran, run_inside
from tests.support.media import write_videos
from tests.support.memory_store import memory_named
from tests.support.pipeline import Place
from tests.support.rebuilds import rebuilding
from tests.support.stand_ins import Stages, config_in

NAMESPACE = "ab" * 32
SLOW = [pytest.param("azure", marks=pytest.mark.slow)]


@pytest.fixture(params=["folder", "memory", "bucket", *SLOW])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setitem(SCHEMES, "memory", memory_named)
    folder, kind = tmp_path / "store", request.param
    of_folder = kind == "folder"
    address = f"{folder}" if of_folder else f"memory://{folder}"
    if kind in ("bucket", "azure"):
        address = request.getfixturevalue(f"{kind}_address")
    opened = open_store(address)
    yield opened
    assert folder.exists() == of_folder
    kept = {path.name for path in (tmp_path / "state" / "penstock").glob("*")} - {"review-secret"}
    assert bool(kept) == (not of_folder and opened.local.exists())


@pytest.mark.slow
def test_what_was_put_is_had_whole_or_in_part_until_it_is_deleted(store: Store) -> None:
    assert store.put_if_absent("k/ab/one", [b"hello ", memoryview(b"world")])
    assert not store.put_if_absent("k/ab/one", [b"another"])
    same = open_store(store.url)
    assert same.get("k/ab/one") == b"hello world"
    assert (same.get("k/ab/one", 6, 3), same.get("k/ab/one", 6, 99)) == (b"wor", b"world")
    assert same.get("k/ab/one", 99) == b""
    assert list(same.list("k")) == ["k/ab/one"]
    found = same.stat("k/ab/one")
    assert found is not None and found.size == 11
    for _ in range(2):
        same.delete("k/ab/one")
    assert store.stat("k/ab/one") is None
    with pytest.raises(FileNotFoundError):
        store.get("k/ab/one")


def test_an_object_that_was_used_is_younger(store: Store) -> None:
    store.put_if_absent("one", [b"x"])
    before = store.stat("one")
    time.sleep(0.05)
    store.touch("one")
    store.touch("nothing")
    after = store.stat("one")
    assert before is not None and after is not None
    # A bucket has no such note: the oldest goes first there.
    assert after.modified > before.modified or (after == before and "://" in store.url)


def test_a_writer_that_fails_leaves_nothing(store: Store) -> None:
    def parts() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.put_if_absent("one", parts())
    assert list(store.list()) == []


def test_names_are_listed_below_a_folder_and_to_a_depth(store: Store) -> None:
    for name in ("b/1/x", "a/1/y/2", "a/1/x/1", "a/2/z/1", "a/file"):
        store.put_if_absent(name, [b""])
    assert list(store.list("a")) == ["a/1/x/1", "a/1/y/2", "a/2/z/1", "a/file"]
    assert list(store.list("a", levels=1)) == ["a/1", "a/2", "a/file"]
    assert list(store.list("a", levels=2)) == ["a/1/x", "a/1/y", "a/2/z", "a/file"]
    assert list(store.list(levels=1)) == ["a", "b"]
    assert list(store.list("a/1/x", levels=9)) == ["a/1/x/1"]
    assert list(store.list("nothing")) == list(store.list("a/fil")) == []


def test_a_store_can_be_written_and_says_how_much(store: Store) -> None:
    store.check_writable()
    assert list(store.list()) == []
    assert store.free_bytes() > 0


def test_records_are_published_read_dropped_and_removed(store: Store) -> None:
    record_set = RecordSet(store, "features", NAMESPACE)
    records = [Record(key=k, payload=b"12") for k in "abcd"]
    assert record_set.publish(records[:2]) == ["a", "b"]
    assert record_set.publish(records) == ["c", "d"]
    other = RecordSet(store, "features", NAMESPACE)
    assert [other.read(key) for key in "abcd"] == records
    other.drop(["a", "b"])
    assert other.remove(["c"]) == 2
    record_set.refresh()
    assert record_set.keys() == {"d"}
    assert len(list(store.list("features"))) == 1


def test_namespaces_are_known_without_a_look(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    RecordSet(store, "captions", NAMESPACE).publish([Record(key="a")])
    RecordSet(store, "features", "cd" * 32).publish([Record(key="a")])
    scandir = os.scandir
    looked: list[str] = []

    def watched(path: Any) -> Any:
        looked.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    assert stored_namespaces(store, "captions") == {NAMESPACE}
    assert not [path for path in looked if NAMESPACE in path]


@pytest.mark.parametrize("damage", [b"", b"PENSTOCK", b"garbage" * 100, None])
def test_a_damaged_pack_is_set_aside_and_made_again(store: Store, damage: bytes | None) -> None:
    record_set = RecordSet(store, "features", NAMESPACE)
    record = Record(key="a", payload=b"good bytes")
    record_set.publish([record])
    (name,) = store.list("features")
    if damage is None:  # in its last byte, which is of the payload
        damage = store.get(name)[:-1] + b"?"
    store.delete(name)
    store.put_if_absent(name, [damage])
    with pytest.raises(DamagedRecord, match="quarantined in"):
        record_set.read("a")
    assert store.get(f"quarantine/{name}") == damage
    assert "a" not in record_set
    assert RecordSet(store, "features", NAMESPACE).publish([record]) == ["a"]
    assert dict(verify(store)) == {name: True}


@pytest.mark.parametrize("others", [["b"], ["a", "b"], ["b", "c"]])
def test_a_pack_in_another_s_place_is_set_aside_and_remade(store: Store, others: list[str]) -> None:
    record_set = RecordSet(store, "captions", NAMESPACE)
    record = Record(key="a", meta={"caption": "of a"}, payload=b"bytes")
    record_set.publish([record])
    (name,) = store.list("captions")
    RecordSet(store, "kept", NAMESPACE).publish([Record(key=key) for key in others])
    (other,) = store.list("kept")
    store.delete(name)
    store.put_if_absent(name, [store.get(other)])
    assert dict(verify(store, "captions")) == {name: False}
    store.put_if_absent(name, [store.get(other)])
    assert RecordSet(store, "captions", NAMESPACE).keys() == set()
    store.put_if_absent(name, [store.get(other)])
    with pytest.raises(DamagedRecord, match="quarantined in"):
        record_set.read("a")
    store.put_if_absent(name, [store.get(other)])
    assert record_set.publish([record]) == ["a"]
    assert RecordSet(store, "captions", NAMESPACE).read("a") == record


@pytest.mark.parametrize("folder", ["captions", "failures"])
def test_a_pack_in_another_folder_is_set_aside(store: Store, folder: str) -> None:
    """Another kind with the same namespace, or the same kind with another."""
    other = NAMESPACE if folder == "failures" else "cd" * 32
    RecordSet(store, "captions", NAMESPACE).publish([Record(key="a", meta={"caption": "of a"})])
    (name,) = store.list("captions")
    copied = "/".join([folder, other[:2], other, *name.split("/")[3:]])
    store.put_if_absent(copied, [store.get(name)])
    assert RecordSet(store, folder, other).keys() == set()
    store.put_if_absent(copied, [store.get(name)])
    assert dict(verify(store)) == {name: True, copied: False}


def test_a_pack_with_bytes_behind_it_is_set_aside(store: Store) -> None:
    RecordSet(store, "captions", NAMESPACE).publish([Record(key="a", payload=b"bytes")])
    (name,) = store.list("captions")
    longer = store.get(name) + b"x"
    store.delete(name)
    store.put_if_absent(name, [longer])
    assert dict(verify(store)) == {name: False}


def test_two_holders_share_what_is_to_be_made(store: Store) -> None:
    ours, theirs = RecordSet(store, "k", NAMESPACE), RecordSet(store, "k", NAMESPACE)

    def lacking(batch: list[str]) -> list[str]:
        return [key for key in batch if key not in ours]

    with claims_at(store, ours) as mine, claims_at(store, theirs) as other:
        assert other.take(lambda: ["c"])
        batches = mine.claimed_batches([["a", "b"], ["c", "d"], ["e"]], lacking)
        assert [next(batches), next(batches)] == [["a", "b"], ["e"]]  # the other is at c
        theirs.publish([Record(key="c"), Record(key="d")])
        other.done(["c"])
        assert next(batches, None) is None
    assert "c" in ours


def test_what_a_running_job_holds_is_known_until_it_ends(store: Store) -> None:
    store.check_writable()
    with leased(store, [NAMESPACE], Path("out")) as lease:
        assert lease.needed_elsewhere(NAMESPACE, ["a"]) == set()
        with leased(open_store(store.url), [NAMESPACE], Path("elsewhere"), ["a"]):
            assert lease.needed_elsewhere(NAMESPACE, ["a", "b"]) == {"a"}
            assert [job.namespaces for job in running_jobs(store)] == [{NAMESPACE}, {NAMESPACE}]
            lease.end()
            assert [job.namespaces for job in running_jobs(store)] == [{NAMESPACE}]
    assert running_jobs(store) == []


def test_the_longest_unused_goes_after_rubbish_and_before_what_is_held(store: Store) -> None:
    for kind, namespace, key in (("features", NAMESPACE, "a"), ("features", "cd" * 32, "b")):
        RecordSet(store, kind, namespace).publish([Record(key=key, payload=b"x" * 10_000)])
        time.sleep(0.05)
    RecordSet(store, "features", "ef" * 32).publish([Record(key="c", payload=b"y" * 10_000)])
    store.put_if_absent("quarantine/bad", [b"z" * 10_000])
    with claims_at(store, RecordSet(store, "features", NAMESPACE)) as turns:
        turns.done([])
    stale = store.local / "tmp" / "half"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    with leased(store, [NAMESPACE], Path("out")):
        message = collect(store, 0, dry_run=True)
        assert dict(message.packs) == {"rubbish": 2, "features": 2}
        assert len(list(store.list("features"))) == 3 and stale.exists()
        done = collect(store, message.before - 15_000, dry_run=False)
        assert dict(done.packs) == {"rubbish": 2, "features": 1}
    assert not stale.exists() and not list(store.list("quarantine"))
    assert {leased.namespace for leased in holdings(store)} == {NAMESPACE, "ef" * 32}
    assert dict(collect(store, 0, dry_run=False).packs) == {"rubbish": 1, "features": 2}
    assert [path for path in (store.local / "claims").rglob("*") if path.is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("store", ["memory", "azure"], indirect=True)
def test_a_run_captions_the_demo_and_the_next_finds_all(store: Store, tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", 1, seed=1)
    place = Place(clips=tmp_path / "clips", out=tmp_path / "out", store=tmp_path / "ignored")
    requests: dict[str, Any] = {"store": store.url, "chunk": 2.0, "max_new_tokens": 4}

    def run(**options: Any) -> Ran:
        return run_inside(place, format=("txt",), **requests, **options)

    sources = (str(place.clips),)
    config = CaptionConfig(sources=sources, model="demo", out=str(place.out), **requests)
    before = prepare(config, InsideLauncher())
    assert {before.ledger.frames_to_cut(medium) for medium in before.media} == {None}
    first = run()
    assert (first.result.exit_code, first.started) == (0, ["frames", "encode", "decode"])
    captions = place.captions()
    assert len(captions) == first.result.captions > 1
    assert run().started == []
    assert place.captions() == captions
    after = prepare(config, InsideLauncher())
    assert [after.ledger.frames_to_cut(medium) for medium in after.media] == [[]]
    assert not place.store.exists()
    beside = {"claims", "digests.jsonl", "written.jsonl"} | (
        {"jobs"} if not store.job_leases else set()
    )
    assert {path.name for path in store.local.iterdir()} >= beside


def test_a_rebuild_encodes_what_lacks(store: Store, tmp_path: Path) -> None:
    clips = write_videos(tmp_path / "clips", 3)
    config = replace(config_in(tmp_path, clips, batch_size=2), store=store.url)

    def encoded() -> int:
        options = RebuildOptions()
        return rebuild(rebuilding(config), options, Display(quiet=True), Stages().launcher).encoded

    assert (encoded(), encoded()) == (3, 0)
    assert list(store.list("frames")) == []
    (namespace,) = stored_namespaces(store, "features")
    assert len(RecordSet(store, "features", namespace)) == 3


def test_a_store_gets_the_number_of_its_format_before_its_first_record(store: Store) -> None:
    check_format(store)
    assert store.stat(NAME) is None, "reading an empty store writes nothing"
    prepare_store(store)
    prepare_store(open_store(store.url))
    assert store.get(NAME) == f"{FORMAT}\n".encode()
    assert [*store.list()] == [NAME]


@pytest.mark.parametrize("number", [b"2\n", b"", b"\xff" * 99, None])
def test_a_store_of_another_format_is_refused(store: Store, number: bytes | None) -> None:
    if number is None:
        RecordSet(store, "captions", NAMESPACE).publish([Record(key="a" * 64)])
    else:
        store.put_if_absent(NAME, [number])
    for ask in (check_format, prepare_store):
        says = {b"2\n": "another format", None: "/format is missing"}
        with pytest.raises(UsageError, match=says.get(number, "/format is damaged")) as refused:
            ask(open_store(store.url))
        assert number == b"2\n" or f"write {FORMAT} into {store.url}/{NAME}" in refused.value.hint
        assert f"penstock cache clear --store {store.url}" in refused.value.hint
    assert (store.stat(NAME) is None) == (number is None)


def test_clear_deletes_the_records_of_any_format_and_keeps_what_people_wrote(store: Store) -> None:
    store.put_if_absent(NAME, [b"99\n"])
    for kind in ("captions", "namespaces", "frames"):
        RecordSet(store, kind, NAMESPACE).publish([Record(key="a" * 64, payload=b"x" * 100)])
    store.put_if_absent("quarantine/captions/aa/one.pack", [b"bad"])
    store.local.mkdir(parents=True, exist_ok=True)
    kept = {"corrections.jsonl": b"{}\n", "written.jsonl": b"{}\n", "provenance.jsonl": b"[]\n"}
    for name, content in kept.items():
        (store.local / name).write_bytes(content)
    objects, taken = clear(open_store(store.url))
    assert objects == 4 and taken > 300
    again = open_store(store.url)
    assert not [name for name in again.list() if name.endswith(".pack")]
    assert {name: (store.local / name).read_bytes() for name in kept} == kept
    check_format(again)
    assert again.get(NAME) == f"{FORMAT}\n".encode()


def test_clear_stops_where_a_job_runs(store: Store) -> None:
    store.put_if_absent(NAME, [b"99\n"])
    with leased(store, [NAMESPACE], Path("out")), pytest.raises(UsageError, match="is in use by"):
        clear(store)
    assert store.get(NAME) == b"99\n"


def test_only_prepare_store_begins_to_write_a_store() -> None:
    """So no command writes records into a store before its number."""
    root = Path(__file__).parents[5]
    found = {
        path.relative_to(root).as_posix()
        for package in ("artifacts", "flows", "penstock", "stages")
        for path in (root / package).rglob("*.py")
        if re.search(r"\.check_writable\(\)", path.read_text(encoding="utf-8"))
    }
    assert found == {"artifacts/records/store.py", "artifacts/records/stores/bucket_store.py"}
