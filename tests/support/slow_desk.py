"""Commands whose stages are slow, of a user at a machine with simulated GPUs."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support import gpus
from tests.support.fake_gpu.state import Machine
from tests.support.pipeline import ROOT, SECONDS, Place
from tests.support.slow_tower import KILL
from tests.support.slow_tower import SECONDS as CHUNK_SECONDS

START = f"""
import os, sys
from flows.core.machine.launch import ENTRIES
from tests.support.slow_tower import SLOW
ENTRIES.update(SLOW)
if {KILL!r} in os.environ:
    os.environ[{KILL!r}] = os.environ[{KILL!r}].replace("PARENT", str(os.getpid()))
%s
from flows.interfaces.cli.main import main
sys.exit(main())
"""


def slow(command: Sequence[str], patch: str = "") -> list[str]:
    """Return a command of Penstock whose stages are slow; `patch` is run in it first."""
    return [sys.executable, "-c", START % patch, *command[3:]]


class Desk:
    """A user at a machine with GPUs, on which chunks are slow."""

    def __init__(self, folder: Path, chunk_seconds: str, *options: str) -> None:
        self.folder, self.clips = folder, folder / "clips"
        self._seconds, self._options = chunk_seconds, options
        for name in ("XDG_CACHE_HOME", "PENSTOCK_LOCKS"):
            (folder / name).mkdir()

    def place(self, name: str) -> Place:
        return Place(
            clips=self.clips, out=self.folder / f"{name}-out", store=self.folder / f"{name}-store"
        )

    def cards(self, place: Place) -> Path:
        """The folder of the machine that a run has."""
        return self.folder / f"{place.out.name}-gpus"

    def environment(self, place: Place, here: Machine | None, **extra: str) -> dict[str, str]:
        own = {n: str(self.folder / n) for n in ("XDG_CACHE_HOME", "PENSTOCK_LOCKS")}
        more = {**own, "OMP_NUM_THREADS": "1", CHUNK_SECONDS: self._seconds, **extra}
        if here is None:
            return {**os.environ, **more}
        return gpus.environment(here.write(self.cards(place)), **more)

    def run(
        self, place: Place, here: Machine | None, *more: str, patch: str = "", **extra: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command with these GPUs, or with the CPU."""
        return subprocess.run(
            slow(place.command(*self._options, "--keep-frames", *more), patch),
            cwd=ROOT,
            env=self.environment(place, here, **extra),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
