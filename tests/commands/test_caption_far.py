"""Whole runs of real processes on a store in a bucket, and over media that lie in a bucket or on
the web: the bytes of a run on folders of this machine, whatever is answered and whatever goes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.records.packs import RecordSet, verify
from artifacts.records.store import open_store
from artifacts.records.stores.bucket_client import Bucket
from flows.core.machine.leases import running_jobs
from tests.support.buckets import CLIPS, Between, environment
from tests.support.commands import completed
from tests.support.pipeline import PENSTOCK, ROOT, SECONDS, Place, place_below, read_lines
from tests.support.web import Web, web_server

MOMENTS = 12
NAMESPACE = "ab" * 32
WRITER = """
import json, sys
from pathlib import Path
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.records.stores import bucket_store
from flows.core.machine.leases import leased
bucket_store.JOINED = 4
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
def expected_bytes(twelve_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The captions of a run on a folder."""
    return bytes_of(place_below(tmp_path_factory.mktemp("local"), twelve_clips))


def bytes_of(place: Place, *more: str) -> bytes:
    """The captions of a run that succeeds."""
    done = place.run(*more)
    assert done.returncode == 0, done.stderr
    return (place.out / "captions.jsonl").read_bytes()


def test_a_run_on_a_bucket_gives_the_bytes_of_a_local_one_for_few_requests(
    twelve_clips: Path,
    expected_bytes: bytes,
    bucket_address: str,
    way: Between,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = place_below(tmp_path, twelve_clips)
    assert bytes_of(place, "--store", bucket_address) == expected_bytes
    assert way.total <= 8 * CLIPS, way.counts  # some of them by the clock
    secret = environment(0)["AWS_SECRET_ACCESS_KEY"].encode()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20 and not [path for path in written if secret in path.read_bytes()]

    way.clear()
    assert bytes_of(place, "--store", bucket_address) == expected_bytes
    assert way.total <= 11, way.names  # one reads the format of the store

    # Another machine has nothing of it but the bucket, and gathers.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / "elsewhere" / "nearby"))
    other = place_below(tmp_path / "elsewhere", twelve_clips)
    way.clear()
    assert bytes_of(other, "--store", bucket_address) == expected_bytes
    assert sum(stage["items"] for stage in other.stages().values()) == 0
    assert way.total <= 6 * CLIPS


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


@pytest.fixture
def there(twelve_clips: Path, bucket_address: str) -> str:
    """The twelve_clips, in a folder of a bucket."""
    bucket = Bucket(bucket_address)
    for path in twelve_clips.glob("*.mp4"):
        bucket.write(f"videos/{path.name}", path.read_bytes())
    return f"{bucket_address}/videos/"


@pytest.fixture(scope="module")
def names(twelve_clips: Path) -> list[str]:
    return sorted(path.name for path in twelve_clips.glob("*.mp4"))


@pytest.fixture
def web(twelve_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / "nearby"))
    with web_server(twelve_clips) as server:
        yield server


def run(folder: Path, *words: str, code: int = 0) -> str:
    environment = {**os.environ, "PENSTOCK_STORE": str(folder / "store")}
    done = completed([*PENSTOCK, *words], env=environment, timeout=SECONDS)
    assert done.returncode == code, done.stderr
    return done.stdout


def without_source(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of a run but for where its media were taken from."""
    return [{k: v for k, v in line.items() if k != "source"} for line in lines]


def captions_of(out: Path) -> list[dict[str, Any]]:
    return without_source(read_lines(out / "captions.jsonl"))


@pytest.fixture(scope="module")
def expected(expected_bytes: bytes) -> list[dict[str, Any]]:
    return without_source([json.loads(line) for line in expected_bytes.splitlines()])


def test_a_bucket_of_media_and_of_the_store_gives_the_bytes_of_folders(
    there: str, way: Between, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    store, out = there.replace("videos", "store"), tmp_path / "out"
    words = ("caption", there, "--model", "demo", "--out", str(out), "--store", store)
    run(tmp_path, *words)
    assert captions_of(out) == expected
    media = [path for kind, path in way.names if kind == "get" and "/videos/" in path]
    assert len(media) == CLIPS  # each is read once
    assert way.total <= 8 * CLIPS, way.counts
    way.clear()
    run(tmp_path, *words)
    assert captions_of(out) == expected and way.total <= 13, way.names


@pytest.mark.parametrize("silent", ["when it is asked", "in the middle"])
def test_who_stops_a_run_does_not_wait_for_a_silent_server(
    silent: str, web: Web, tmp_path: Path
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "large.mp4").write_bytes(os.urandom(40 << 20))
    web.folder, begun, ended = tmp_path / "clips", threading.Event(), threading.Event()
    place = 0 if silent == "when it is asked" else 8 << 20

    def silently(_: str, at: int) -> bool:
        if at == place:
            begun.set()
            ended.wait(100)
        return False

    web.during = silently
    words = ["caption", f"{web.address}/large.mp4", "--model", "demo", "--out", str(tmp_path / "o")]
    words += ["--store", str(tmp_path / "store")]
    with subprocess.Popen([*PENSTOCK, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        assert begun.wait(60)
        time.sleep(1)
        run.send_signal(signal.SIGINT)
        stopped = time.monotonic()
        assert run.wait(60) == 4 and run.stderr is not None
        assert time.monotonic() - stopped < 10
        assert "Traceback" not in run.stderr.read()
    ended.set()
    sizes = [part.stat().st_size for part in (tmp_path / "nearby" / "media").glob("*/*/*.part")]
    assert sizes == [] if not place else 6 << 20 <= sizes[0] <= place


def test_a_plan_and_another_machine_fetch_nothing_of_what_is_done(
    web: Web, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*(f"{web.address}/{name}" for name in names), "--model", "demo"]
    before = run(tmp_path, "plan", *words)
    assert f"{CLIPS} files not downloaded, so estimated" in before
    assert not any(map(web.ranges, names))
    run(tmp_path, "caption", *words, "--out", str(tmp_path / "out"))
    web.asked.clear()
    after = json.loads(run(tmp_path, "plan", *words, "--json"))
    assert after["done"] == {"features": CLIPS, "captions": CLIPS}
    assert "guessed" not in str(after["notes"]) and not any(map(web.ranges, names))
    monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / "elsewhere"))
    run(tmp_path, "caption", *words, "--out", str(tmp_path / "gathered"))
    assert captions_of(tmp_path / "gathered") == captions_of(tmp_path / "out")
    assert not any(map(web.ranges, names))


def test_media_far_away_are_indexed_found_and_shown(there: str, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    build = ("index", "build", there, "--model", "demo", "--out", index)
    run(tmp_path, *build)
    page = tmp_path / "page.html"
    words = ("search", "a red circle", "--index", index, "--html", str(page))
    values = json.loads(run(tmp_path, *words, "--json").splitlines()[0])
    assert values["path"].startswith(there)
    assert "not readable" not in page.read_text() and values["path"] in page.read_text()
    run(tmp_path, *words, "--copy", str(tmp_path / "found"))
    assert list((tmp_path / "found").glob("001-*.mp4"))
    assert "gone" not in run(tmp_path, *build)
