"""Another process that works on a store, as far as the store can tell."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from artifacts.records.store import FolderStore, prepare_store
from tests.support.pipeline import ROOT

HOLDER = """
import sys
from pathlib import Path
from artifacts.records.store import FolderStore
from flows.core.machine.leases import leased
with leased(FolderStore(Path(sys.argv[1])), [sys.argv[2]], Path("out")):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(store: FolderStore, namespace: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds a namespace until it is killed or the block ends."""
    prepare_store(store)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.url, namespace],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()
