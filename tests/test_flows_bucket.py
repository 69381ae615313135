"""Whole runs on a store in a bucket, of real processes against a real server: the bytes of a local
run, whatever the service answers now and then and whoever is killed."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from artifacts.pack_object import verify
from artifacts.packs import RecordSet
from artifacts.store import open_store
from artifacts.stores.bucket_client import Bucket
from flows.machine.leases import running_jobs
from tests.support.buckets import CLIPS, Between, environment
from tests.support.pipeline import ROOT, Place

MOMENTS = 12
NAMESPACE = "ab" * 32
WRITER = """
import json, sys
from pathlib import Path
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from artifacts.stores import catalogs, bucket_store
from flows.machine.leases import leased
catalogs.JOINED = bucket_store.JOINED = 4
store = open_store(sys.argv[1])
store.check_writable()
with leased(store, ["ab" * 32], Path("out")):
    watched = RecordSet(store, "features", "ab" * 32)
    record_set = RecordSet(store, "features", "ab" * 32)
    for number in range(8):
        record_set.publish([Record(key=f"{number}/{n}", payload=b"p" * 5000) for n in range(2)])
        watched.refresh()
    record_set.remove(["7/1"])
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(twelve_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The captions of a run on a folder."""
    folder = tmp_path_factory.mktemp("local")
    place = Place(clips=twelve_clips, out=folder / "out", store=folder / "store")
    done = place.run()
    assert done.returncode == 0, done.stderr
    return (place.out / "captions.jsonl").read_bytes()


def place_in(twelve_clips: Path, folder: Path) -> Place:
    return Place(clips=twelve_clips, out=folder / "out", store=folder / "nowhere")


def test_a_run_on_a_bucket_gives_the_bytes_of_a_local_one_for_few_requests(
    twelve_clips: Path,
    expected: bytes,
    bucket_address: str,
    way: Between,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = place_in(twelve_clips, tmp_path)
    done = place.run("--store", bucket_address)
    assert done.returncode == 0, done.stderr
    assert (place.out / "captions.jsonl").read_bytes() == expected
    assert way.total <= 6 * CLIPS, way.counts
    secret = environment(0)["AWS_SECRET_ACCESS_KEY"].encode()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20 and not [path for path in written if secret in path.read_bytes()]

    way.clear()
    again = place.run("--store", bucket_address)
    assert again.returncode == 0, again.stderr
    assert way.total <= 10, way.names
    assert (place.out / "captions.jsonl").read_bytes() == expected

    # Another machine has nothing of it but the bucket, and gathers.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / "elsewhere" / "nearby"))
    other = place_in(twelve_clips, tmp_path / "elsewhere")
    way.clear()
    gathered = other.run("--store", bucket_address)
    assert gathered.returncode == 0, gathered.stderr
    assert (other.out / "captions.jsonl").read_bytes() == expected
    assert other.stages() == {} or sum(s["items"] for s in other.stages().values()) == 0
    assert way.total <= 6 * CLIPS


def test_answers_that_go_wrong_now_and_then_change_no_byte(
    twelve_clips: Path,
    expected: bytes,
    bucket_address: str,
    way: Between,
    tmp_path: Path,
) -> None:
    way.spoil, way.draw = 0.2, random.Random(1)
    place = place_in(twelve_clips, tmp_path)
    for _ in range(2):
        done = place.run("--store", bucket_address)
        assert done.returncode == 0, done.stderr
        assert (place.out / "captions.jsonl").read_bytes() == expected
    assert sum(way.spoilt.values()) >= 4
    way.spoil = 0.0
    assert list(open_store(bucket_address).list("quarantine")) == []


@pytest.mark.parametrize("kind", ["media", "captions"])
def test_a_run_that_is_killed_while_it_writes_goes_on_where_it_was(
    twelve_clips: Path,
    expected: bytes,
    bucket_address: str,
    way: Between,
    tmp_path: Path,
    kind: str,
) -> None:
    place = place_in(twelve_clips, tmp_path)
    running: list[subprocess.Popen[bytes]] = []
    killed = threading.Event()

    def watch(of: str, path: str, after: bool) -> None:
        if of == "put" and f"/{kind}/" in path and not killed.is_set():
            killed.set()
            os.killpg(running[0].pid, signal.SIGKILL)

    way.watch = watch
    running.append(
        subprocess.Popen(
            place.command("--store", bucket_address),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )
    assert running[0].wait(280) == -signal.SIGKILL and killed.is_set()
    store = open_store(bucket_address)
    before = {name for name, good in verify(store) if good}
    assert list(store.list("quarantine")) == []
    way.clear()
    done = place.run("--store", bucket_address)
    assert done.returncode == 0, done.stderr
    assert (place.out / "captions.jsonl").read_bytes() == expected
    put = {path.split("/", 3)[3] for of, path in way.names if of == "put"}
    assert not put & before
    assert list(open_store(bucket_address).list("quarantine")) == []


def test_a_writer_killed_at_any_moment_leaves_nothing_torn(
    bucket_address: str, way: Between, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The moments are before and after each request that it makes."""
    writing: list[subprocess.Popen[bytes]] = []
    left = [0]

    def watch(of: str, path: str, after: bool) -> None:
        left[0] -= 1
        if left[0] == 0:
            writing[-1].kill()

    def write(address: str, moment: int) -> int:
        way.watch = lambda *_: None
        writing.append(subprocess.Popen([sys.executable, "-c", WRITER, address], cwd=ROOT))
        left[0] = moment
        way.watch = watch
        return writing[-1].wait(120)

    ended: Counter[int] = Counter()
    for moment in range(1, MOMENTS + 1):
        address = f"{bucket_address}/{moment}"
        ended[write(address, 2 * moment - moment % 2)] += 1
        way.watch = lambda *_: None
        monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / str(moment)))
        store = open_store(address)
        there = dict(verify(store))
        assert all(there.values())
        way.clear()
        assert write(address, 0) == 0
        put = {path.split("/", 4)[4] for of, path in way.names if of == "put"}
        assert not put & there.keys()
        record_set = RecordSet(open_store(address), "features", NAMESPACE)
        assert record_set.keys() == {f"{n}/{m}" for n in range(8) for m in range(2)} - {"7/1"}
        assert all(record_set.read(key).payload == b"p" * 5000 for key in sorted(record_set.keys()))
        assert list(store.list("quarantine")) == []
        assert running_jobs(store) == []
        assert [found.name for found in Bucket(address).below("jobs")] == []
    assert ended[-signal.SIGKILL] >= MOMENTS - 3
