"""An index whose writer is killed at every moment at which the disk changes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from artifacts.index import compacting, writing
from artifacts.index.compacting import compact
from artifacts.index.manifest import read_manifest
from artifacts.index.measuring import measure, note_texts
from artifacts.index.verifying import verify_index
from artifacts.index.writing import IndexWriter
from tests.support.indexes import MAKER, drawn, killed_at, paths, rows, write

FULL = 20
"""Rows of a full shard."""
THERE, NEW = 50, 45


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (writing, compacting):
        monkeypatch.setattr(module, "SHARD_ROWS", FULL)
    monkeypatch.setattr(writing, "BATCH_ROWS", FULL // 2)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    write(tmp_path / "index", THERE)
    with writing.writing(tmp_path / "index") as writer:
        writer.remove(np.array([1, 2, 30]))
    return tmp_path / "index"


def add(writer: IndexWriter) -> None:
    # Some are there, one was removed, and one comes twice.
    given = [*rows(NEW, first=THERE - 5), *rows(2, first=2), *rows(1, first=THERE)]
    writer.add([(given, drawn(len(given), seed=1))])


def remove(writer: IndexWriter) -> None:
    writer.remove(np.array([0, 7, 8, 49]))


def fresh_bits(writer: IndexWriter) -> None:
    note_texts(writer, drawn(60, seed=2))
    measure(writer)


def every_moment(index: Path, change: Callable[[IndexWriter], object], step: int) -> Iterator[Path]:
    """Yield a copy of an index for each moment at which the change was killed."""
    for moment in range(1, 1000, step):
        copy = index.parent / f"killed-{moment}"
        shutil.copytree(index, copy)
        if not killed_at(moment, copy, change):
            assert moment > (20 if change is not remove else 5)
            return
        yield copy
        shutil.rmtree(copy)


def after(index: Path, change: Callable[[IndexWriter], object]) -> list[str]:
    """What an undisturbed run leaves."""
    whole = index.parent / "whole"
    shutil.copytree(index, whole)
    with writing.writing(whole, MAKER) as writer:
        change(writer)
    return paths(whole)


SOME, ALL = 5, pytest.param(1, marks=pytest.mark.slow)


@pytest.mark.parametrize("step", [SOME, ALL])
@pytest.mark.parametrize("change", [add, remove, compact, fresh_bits])
def test_a_killed_writer_loses_nothing_and_a_rerun_ends_as_an_undisturbed_one(
    change: Callable[[IndexWriter], object], step: int, index: Path
) -> None:
    before, wanted = paths(index), after(index, change)
    assert len(set(wanted)) == len(wanted)
    for killed in every_moment(index, change, step):
        seen = paths(killed)  # a reader in between
        assert seen in (before, wanted) or (change is add and seen == wanted[: len(seen)])
        with writing.writing(killed, MAKER) as writer:
            change(writer)
        assert paths(killed) == wanted
        assert list(verify_index(killed)) == []
        named = {file.name for file in read_manifest(killed).files()} | {"index.json", ".writer"}
        assert {path.name for path in killed.iterdir()} == named


@pytest.mark.parametrize("step", [SOME, ALL])
def test_the_first_writer_of_an_index_may_be_killed_at_any_moment(
    step: int, tmp_path: Path
) -> None:
    write(tmp_path / "whole", THERE)

    def fill(writer: IndexWriter) -> None:
        writer.add([(rows(THERE), drawn(THERE))])

    for moment in range(1, 1000, step):
        folder = tmp_path / f"killed-{moment}"
        if not killed_at(moment, folder, fill):
            break
        write(folder, THERE)
        assert paths(folder) == paths(tmp_path / "whole")
    assert moment > 20
