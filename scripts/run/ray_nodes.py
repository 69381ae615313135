"""A Ray cluster whose nodes are processes of this machine with simulated GPUs, for the scripts and
tests that look at what happens on it. It leaves nothing behind.

    with ray_nodes() as nodes:
        nodes.start(gpus=2)
        nodes.start(gpus=1)
        nodes.drive(clips, out).wait()
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.run.prefect_stack import ROOT, free_port
from scripts.run.stage_processes import MARK, CheckFailed, family, stop_all

START_SECONDS = 120
UP = "Ray runtime started"
STORE_BYTES = 80_000_000
DRIVER = """
import sys, penstock.ray
address, out, store, files, sources = sys.argv[1:]
ended = penstock.ray.caption(
    sources, address=address, files=int(files), model="demo", out=out, store=store, format="txt",
    batch_size=1, progress=True,
)
sys.exit(ended.exit_code)
"""


class Nodes:
    """The nodes of a cluster and its drivers. The first node is the head."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        """Each decode stage waits `seconds` first."""
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self._seconds = seconds
        self._numbers = itertools.count(1)
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, gpus: int, home: Path | None = None, cpus: int = 2) -> str:
        """Start a node, and wait until it is up. `home` is its home and temporary folder."""
        name = f"node-{next(self._numbers)}"
        place = [f"--address={self.address}"]
        if not self.nodes:
            port = self.address.rpartition(":")[2]
            place = ["--head", f"--port={port}", "--include-dashboard=false"]
            place.append(f"--temp-dir={self.folder / 'r'}")
        own = {"HOME": str(home), "TMPDIR": str(home)} if home else {}
        words = ["start", *place, f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--block"]
        words += [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        waiting = str(ROOT / "scripts" / "run" / "waiting")
        environment = {
            **self.environment(),
            **own,
            # The GPUs are simulated: tasks must not look for them.
            "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
            "PENSTOCK_CHECK_WAIT": str(self._seconds),
            "PYTHONPATH": os.pathsep.join([waiting, str(ROOT)]),
        }
        self.nodes[name] = node = self._popen(name, environment, "ray.scripts.scripts", *words)

        def up() -> bool:
            return UP in self.log(name)

        wait_until(up, START_SECONDS, lambda: f"{name} did not start\n{self.log(name)[-2000:]}")
        assert node.poll() is None
        return name

    def drive(
        self, sources: Path, out: Path, *, files: int = 1, name: str = "driver"
    ) -> "subprocess.Popen[bytes]":
        """Start a driver that captions on the cluster, with a log of that name."""
        words = (DRIVER, self.address, str(out), f"{out}-store", str(files), str(sources))
        return self._popen(name, self.environment(), *words)

    def kill(self, name: str) -> None:
        """Kill a node with all that it started, as when a machine goes away."""
        kill(self.nodes.pop(name))

    def tasks(self) -> list[int]:
        """Return the workers of Ray that process a partition or write the outputs."""
        return [pid for pid, command in processes() if command.startswith("ray::penstock")]

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PENSTOCK_"))}
        return {
            **kept,
            MARK: str(self.folder),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "RAY_AUTH_MODE": "disabled",
            # Ray's own 15 s are too short for a busy machine.
            "RAY_raylet_start_wait_time_s": str(START_SECONDS),
        }

    def _popen(
        self, name: str, environment: dict[str, str], *words: str
    ) -> "subprocess.Popen[bytes]":
        code = words[0] if "\n" in words[0] else ""
        command = [sys.executable, "-P", *(("-c", code) if code else ("-m", words[0])), *words[1:]]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@contextlib.contextmanager
def ray_nodes(seconds: float = 0.0) -> Iterator[Nodes]:
    """A cluster in a temporary folder; at the end every process of it is gone, and the folder. The
    path is short: it is part of the addresses of sockets."""
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    nodes = Nodes(folder, seconds)
    try:
        yield nodes
    finally:
        stop_all(folder)
        for node in nodes.nodes.values():
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and all that it started."""
    for pid in reversed(family(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def wait_until(holds: Callable[[], bool], seconds: float, message: Callable[[], str]) -> None:
    """Raises CheckFailed if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise CheckFailed(message())
        time.sleep(0.2)


def processes() -> Iterator[tuple[int, str]]:
    """Yield the id and the command line of each process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield (
                int(path.parent.name),
                path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"),
            )
