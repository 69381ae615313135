"""What a store in a bucket asks of its service, in requests, bytes and seconds; prints a table.

The service is moto's on this machine, behind a proxy that counts, and lets each answer wait. No
cloud is asked.

    python -m benchmarks.bucket [--packs 1000] [--clips 12] [--delay 0.02]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from artifacts.packs import Record, RecordSet
from artifacts.store import Store, open_store
from benchmarks._common import run_penstock
from tests.support.buckets import BUCKET, Between, between, bucket_server, environment

NAMESPACE = "ab" * 32
RECORDS = 8
"""Records a pack."""
ROW = "{:44s}{:>9} requests  {:>9.2f} MB out  {:>9.2f} MB in  {:>7.2f} s  {}"


def measured(way: Between, what: str, do: Callable[[], object]) -> None:
    """Do something, and print what it took."""
    way.clear()
    started = time.monotonic()
    do()
    seconds = time.monotonic() - started
    kinds = ", ".join(f"{count} {kind}" for kind, count in way.counts.most_common())
    print(ROW.format(what, way.total, way.sent / 1e6, way.received / 1e6, seconds, kinds))


def store_of(machine: str, folder: Path) -> Store:
    """Open the store as a machine that keeps what is nearby in a folder of its own."""
    os.environ["PENSTOCK_NEARBY"] = str(folder / machine)
    os.environ["XDG_STATE_HOME"] = str(folder / f"{machine}-state")
    return open_store(f"s3://{BUCKET}/packs")


def publish(store: Store, packs: int) -> None:
    """Publish packs of the size of a batch's features in small, eight at a time."""
    record_set = RecordSet(store, "features", NAMESPACE)

    def one(number: int) -> None:
        names = (f"{number}-{n}" for n in range(RECORDS))
        record_set.publish([Record(key=name, payload=os.urandom(5000)) for name in names])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(packs)))


def opening(way: Between, folder: Path, packs: int, delay: float) -> None:
    """Open a record set of so many packs, on the machine that made them and on others."""
    first = store_of("first", folder)
    measured(way, f"publish {packs} packs", lambda: publish(first, packs))

    def opened(store: Store) -> None:
        assert len(RecordSet(store, "features", NAMESPACE)) == packs * RECORDS

    second = store_of("second", folder)
    way.delay = delay
    wait = f"at +{delay * 1000:g} ms"
    measured(way, f"open by another machine, no catalog, {wait}", lambda: opened(second))
    measured(way, f"open again there, {wait}", lambda: opened(store_of("second", folder)))
    measured(way, f"open by a third, catalogs, {wait}", lambda: opened(store_of("third", folder)))
    way.delay = 0.0


def runs(way: Between, folder: Path, clips: int) -> None:
    """Caption the demo clips: the first run, the same again, and gathered by another machine."""
    from penstock_demo.clips import write_clips

    write_clips(folder / "clips", clips, 1)

    def run(machine: str) -> None:
        store_of(machine, folder)
        out, store = folder / f"out-{machine}", f"s3://{BUCKET}/runs"
        run_penstock("caption", folder / "clips", "demo", out, store)

    measured(way, f"caption {clips} clips", lambda: run("one"))
    measured(way, "the same command again", lambda: run("one"))
    measured(way, "the same by another machine, which gathers", lambda: run("two"))
    first, second = (folder / f"out-{m}" / "captions.jsonl" for m in ("one", "two"))
    same = first.read_bytes() == second.read_bytes()
    print("captions of both: " + ("the same bytes" if same else "OTHER BYTES"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--packs", type=int, default=1000)
    options.add_argument("--clips", type=int, default=12)
    options.add_argument("--delay", type=float, default=0.02, help="seconds a request, of opening")
    given = options.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        bucket_server() as port,
        between(port) as way,
    ):
        os.environ.update(environment(way.port))
        runs(way, Path(name), given.clips)
        opening(way, Path(name), given.packs, given.delay)


if __name__ == "__main__":
    main()
