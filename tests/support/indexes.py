"""Small indexes of drawn vectors, and processes that are killed while they change one."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.index.manifest import Maker
from artifacts.index.search import Searcher
from artifacts.index.shard import IndexRow
from artifacts.index.snapshot import open_snapshot
from artifacts.index.writing import IndexWriter, writing

WIDTH = 240
MAKER = Maker(
    model="drawn",
    revision=None,
    half="half",
    text_half="texts",
    recipe="recipe",
    precision="fp32",
    width=WIDTH,
)
Vectors = NDArray[np.float32]


def drawn(count: int, seed: int = 0, shift: float = 0.5) -> Vectors:
    draw = np.random.default_rng(seed)
    found: Vectors = draw.standard_normal((count, WIDTH)).astype(np.float32) + np.float32(shift)
    return found


def rows(count: int, first: int = 0, **fields: Any) -> list[IndexRow]:
    return [row(number, **fields) for number in range(first, first + count)]


def row(number: int, **fields: Any) -> IndexRow:
    name = f"{number}.jpg"
    given = {"key": f"{number:064x}", "path": f"/in/{name}", "media_path": name, "digest": "0" * 64}
    return IndexRow(**{**given, **fields})


def write(folder: Path, count: int, seed: int = 0) -> Vectors:
    vectors = drawn(count, seed)
    with writing(folder, MAKER, "a test") as writer:
        writer.add([(rows(count), vectors)])
    return vectors


def paths(folder: Path) -> list[str]:
    """Of every live row, in order."""
    snapshot = open_snapshot(folder)
    return [row.path for row in snapshot.read(np.flatnonzero(snapshot.live()))]


def searcher(folder: Path) -> Searcher:
    return Searcher(open_snapshot(folder))


def killed_at(moment: int, folder: Path, change: Callable[[IndexWriter], object]) -> bool:
    """Change an index in a process that is killed as it is about to sync, rename or delete a file
    for the `moment`th time; returns whether it came to that."""

    def work() -> None:
        with writing(folder, MAKER, "a test") as writer:
            change(writer)

    return killed_in(moment, work)


def killed_in(moment: int, work: Callable[[], object]) -> bool:
    """Do the same with any work."""
    child = os.fork()
    if child == 0:
        _die_at(moment)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL
    return True


def _die_at(moment: int) -> None:
    moments = itertools.count(1)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        return call

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
