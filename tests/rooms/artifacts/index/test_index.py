"""The index on disk: what is added, removed, merged, refused, and survives a killed writer."""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from artifacts.disk.files import write_text
from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.index import manifest, writing
from artifacts.index.gone_files import GoneFiles, rows_gone
from artifacts.index.manifest import SearchMethod, described, read_manifest, write_manifest
from artifacts.index.named_rows import rows_named
from artifacts.index.search import Query
from artifacts.index.shard import MEDIUM, medium_of
from artifacts.index.snapshot import open_snapshot, paths_of
from artifacts.index.stats import stats_of
from artifacts.index.upkeep import measure, note_texts
from artifacts.index.verify import verify_index
from artifacts.index.where import Condition, matching
from artifacts.index.writing import IndexWriter, compact, merge_small
from tests.support.faults import failing
from tests.support.indexes import MAKER, WIDTH, drawn, killed_at, paths, row, rows, searcher, write


def test_rows_are_added_once_whatever_they_come_with(tmp_path: Path) -> None:
    vectors = write(tmp_path, 30)
    one = row(7, key="0" * 64, time=1.5, box=(1.0, 2.0, 3.0, 4.0), level=1)
    again = [one, one, *rows(30), row(7, time=1.0), row(7, path="/else/7.jpg")]
    with writing.writing(tmp_path, MAKER) as writer:
        assert writer.add([(again, drawn(len(again)))]) == 3
        assert writer.add([(again, drawn(len(again)))]) == 0
    snapshot = open_snapshot(tmp_path)
    (found,) = snapshot.read(np.array([30]))
    assert found == one
    near = snapshot.vectors(np.arange(30))
    assert np.allclose(near, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-3)


def test_a_name_that_utf8_cannot_hold_is_the_same_row_again(tmp_path: Path) -> None:
    odd = [row(0, path="/in/\udcff.jpg")]
    with writing.writing(tmp_path, MAKER) as writer:
        assert writer.add([(odd, drawn(1))]) == 1
        assert writer.add([(odd, drawn(1))]) == 0
    (path,) = paths(tmp_path)
    assert path == "/in/\udcff.jpg"
    assert open_snapshot(tmp_path).positions_of(MEDIUM, medium_of(path)).tolist() == [0]


ODD = ("/in/caf\udce8.png", "/in/caf\udce9.png", "/in/caf?.png", "/in/caf\ufffd.png")
"""Paths that a lossy encoding makes one, two of them no UTF-8."""


def test_files_whose_names_are_no_utf8_have_rows_of_their_own(tmp_path: Path) -> None:
    given = [row(0, path=path, media_path=path[4:]) for path in ODD]
    with writing.writing(tmp_path, MAKER) as writer:
        assert writer.add([(given, drawn(len(given)))]) == len(ODD)
        snapshot = writer.snapshot()
        assert snapshot.read(np.arange(len(ODD))) == given
        assert list(paths_of(tmp_path)) == list(ODD)
        for at, path in enumerate(ODD):
            for name in (path, path[4:]):
                assert rows_named(snapshot, [name]).tolist() == [at], ascii(name)
            assert snapshot.positions_of(MEDIUM, medium_of(path)).tolist() == [at]
            condition = Condition(f"path = '{path}' or path in ('{path}')")
            assert np.flatnonzero(matching(snapshot, condition)).tolist() == [at], ascii(path)
    table = pq.read_table(next(tmp_path.glob("rows-*"))).to_pylist()
    assert [each["path"] for each in table[2:]] == list(ODD[2:])  # as UTF-8 has them


def test_gone_files_whose_names_are_no_utf8_are_told_from_those_there(tmp_path: Path) -> None:
    folder, index = tmp_path / "caf\udce8", tmp_path / "index"
    folder.mkdir()
    there, gone = folder / "\udce8.png", folder / "\udce9.png"
    there.touch()
    given = [row(0, path=str(path), media_path=path.name) for path in (there, gone)]
    with writing.writing(index, MAKER) as writer:
        writer.add([(given, drawn(2))])
        snapshot = writer.snapshot()
        assert rows_gone(snapshot, GoneFiles({})).tolist() == [1]
        assert rows_named(snapshot, [str(folder)]).tolist() == [0, 1]


def test_a_name_stands_for_one_kind_of_thing_and_removes_no_file_of_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cats, dogs = tmp_path / "cats", tmp_path / "dogs"
    dogs.mkdir()
    given = [row(n, path=f"{f}/{n % 2}.png", media_path=f"{n % 2}.png", key=f"k{n}")
             for n, f in enumerate((cats, cats, dogs, dogs))]  # fmt: skip
    given.append(row(4, path="s3://b/in/x.png", media_path="k0", key="x"))
    given += [row(5 + n, path=f"/{n}/same", media_path="same", key="") for n in range(7)]
    with writing.writing(tmp_path / "index", MAKER) as writer:
        writer.add([(given, drawn(len(given)))])
        snapshot = writer.snapshot()
    monkeypatch.chdir(dogs)
    for name, expected in {
        "0.png": [2], "./0.png": [2], "../cats": [0, 1], ".": [2, 3], "k0": [0], "k3": [3],
        "s3://b/in/": [4], "s3://b/in/x.png": [4], "x": [4],
    }.items():  # fmt: skip
        assert rows_named(snapshot, [name]).tolist() == expected, name
    assert rows_named(snapshot, ["./0.png", "0.png", "k3", "x", "x"]).tolist() == [2, 3, 4]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as several:
        rows_named(snapshot, [str(cats / "0.png"), "1.png"])
    assert f"{cats / '1.png'}, {dogs / '1.png'}. " in str(several.value)
    with pytest.raises(UsageError, match=r"/0/same, .*/4/same, …\. "):
        rows_named(snapshot, ["same"])
    for empty in ("", "../nothing"):
        with pytest.raises(UsageError, match="empty name" if not empty else "no row of"):
            rows_named(snapshot, [str(cats), empty])


def test_vectors_without_direction_are_near_to_nothing(tmp_path: Path) -> None:
    vectors = drawn(3)
    vectors[0], vectors[1] = 0, np.nan
    with writing.writing(tmp_path, MAKER) as writer:
        writer.add([(rows(3), vectors)])
    found = searcher(tmp_path).find(Query(vector=vectors[2]), 3)
    assert found.positions.tolist() == [2, 0, 1] and found.scores[1] == 0


def test_vectors_of_another_shape_fail(tmp_path: Path) -> None:
    with writing.writing(tmp_path, MAKER) as writer, pytest.raises(ValueError, match="shape"):
        writer.add([(rows(2), drawn(3))])
    assert read_manifest(tmp_path).rows == 0


def test_removed_rows_are_not_seen_and_come_back_when_added(tmp_path: Path) -> None:
    vectors = write(tmp_path, 10)
    with writing.writing(tmp_path) as writer:
        assert writer.remove(np.array([3, 4])) == 2
        assert writer.remove(np.array([4])) == 0
    assert "/in/3.jpg" not in paths(tmp_path) and len(paths(tmp_path)) == 8
    assert 3 not in searcher(tmp_path).find(Query(vector=vectors[3]), 10).positions
    assert write(tmp_path, 10) is not None
    assert paths(tmp_path)[-2:] == ["/in/3.jpg", "/in/4.jpg"]


def test_compact_keeps_order_and_full_shards(tmp_path: Path, small_shards: None) -> None:
    for count in (25, 30, 45, 90):
        write(tmp_path, count)
    with writing.writing(tmp_path) as writer:
        writer.remove(np.array([50, 89]))
        before = paths(tmp_path)
        first = read_manifest(tmp_path).shards[0]
        done = compact(writer)
        assert compact(writer).rows_dropped == 0
    assert done.rows_dropped == 2 and done.shards < done.shards_before
    after = read_manifest(tmp_path)
    assert after.shards[0] == first and after.deleted is None
    assert paths(tmp_path) == before and len(before) == 88
    assert all(shard.rows >= FULL for shard in after.shards[:-1])


def test_all_rows_can_be_removed_and_the_index_filled_again(tmp_path: Path) -> None:
    write(tmp_path, 5)
    with writing.writing(tmp_path) as writer:
        writer.remove(np.arange(5))
        compact(writer)
        assert not read_manifest(tmp_path).shards
        measure(writer)
    assert len(searcher(tmp_path).find(Query(vector=drawn(1)[0]), 3).positions) == 0
    write(tmp_path, 5)
    assert len(paths(tmp_path)) == 5


def test_a_reader_of_an_earlier_generation_reads_on(tmp_path: Path) -> None:
    vectors = write(tmp_path, 40)
    old = searcher(tmp_path)
    with writing.writing(tmp_path) as writer:
        writer.remove(np.arange(39))
        compact(writer)
        measure(writer)
    method = SearchMethod(queries=0, recall=1.0, candidates=10)
    found = old.find(Query(vector=vectors[5]), 1, method)
    assert [r.path for r in old.snapshot.read(found.positions)] == ["/in/5.jpg"]
    assert paths(tmp_path) == ["/in/39.jpg"]


def test_a_reader_then_takes_the_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 40)
    stale = read_manifest(tmp_path)
    with writing.writing(tmp_path) as writer:
        writer.remove(np.arange(10))
        compact(writer)
    books, now = iter([stale]), read_manifest(tmp_path)
    monkeypatch.setattr("artifacts.index.snapshot.read_manifest", lambda _: next(books, now))
    assert open_snapshot(tmp_path).rows == 30


def test_many_small_shards_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST_SMALL", 3)
    for count in (2, 4, 6, 8):
        write(tmp_path, count)
    with writing.writing(tmp_path) as writer:
        merge_small(writer)
    assert len(read_manifest(tmp_path).shards) == 1 and len(paths(tmp_path)) == 8


TWO_USERS = pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")


@pytest.mark.slow
@pytest.mark.parametrize("user", [None, pytest.param(65534, marks=TWO_USERS)])
def test_a_second_writer_waits_for_the_first_and_loses_nothing(user: int | None) -> None:
    """The second one is another user, who may write the folder, but not the lock's file."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    write(folder, 3)
    began = os.pipe()
    with writing.writing(folder) as writer:
        child = os.fork()
        if child == 0:
            try:
                if user is not None:
                    os.setuid(user)
                os.write(began[1], b".")
                with writing.writing(folder) as second:
                    second.remove(np.array([0]))
                os._exit(0)
            finally:
                os._exit(1)
        os.read(began[0], 1)
        time.sleep(0.5)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it wrote beside the first writer"
        writer.add([(rows(5), drawn(5))])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert paths(folder) == [f"/in/{number}.jpg" for number in (1, 2, 3, 4)]
    assert [damage.line() for damage in verify_index(folder)] == []
    shutil.rmtree(folder)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES, errno.ENOTCONN])
def test_rows_of_files_on_a_disk_that_is_away_stay(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "media" / name for name in ("there.png", "deleted.png", "hidden.png")]
    places += [tmp_path / "unmounted" / "far.png", tmp_path / "media" / "there.png" / "inside.png"]
    (tmp_path / "media").mkdir()
    places[0].touch()
    given = [row(n, path=str(path)) for n, path in enumerate(places)]
    with writing.writing(tmp_path / "index", MAKER) as writer:
        writer.add([(given, drawn(len(given)))])
    hiding = failing(code, os.lstat, lambda path: os.path.basename(path) == "hidden.png")
    monkeypatch.setattr(os, "lstat", hiding)
    gone = GoneFiles({})
    positions = rows_gone(open_snapshot(tmp_path / "index"), gone)
    assert [Path(places[at]).name for at in positions] == ["deleted.png"]
    text = "\n".join(gone.notes(tmp_path / "index"))
    assert os.strerror(code) in text and str(tmp_path / "unmounted") in text
    assert text.count("rows of 1 file in") == 3, "there.png is no folder any more, either"


def test_rows_of_an_empty_folder_stay(tmp_path: Path) -> None:
    """It is where a disk belongs that is not mounted."""
    (folder := tmp_path / "disk").mkdir()
    given = [row(n, path=str(folder / f"{n}.png")) for n in range(3)]
    with writing.writing(tmp_path / "index", MAKER) as writer:
        writer.add([(given, drawn(3))])
    gone, snapshot = GoneFiles({}), open_snapshot(tmp_path / "index")
    assert rows_gone(snapshot, gone).tolist() == []
    (note,) = gone.notes(tmp_path / "index")
    assert f"3 files in {folder}" in note and "empty" in note
    (folder / "another.png").touch()
    assert rows_gone(snapshot, GoneFiles({})).tolist() == [0, 1, 2]


def test_vectors_of_another_model_or_precision_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 3)
    same = replace(MAKER, model="other")
    with writing.writing(tmp_path, same):  # the same weights by another name
        pass
    other = writing.writing(tmp_path, replace(same, precision="int8"))
    with pytest.raises(UsageError, match=f"drawn in fp32, {WIDTH} numbers.*other in int8"), other:
        pass


def test_no_index_another_version_and_a_damaged_book_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no index in .*index build"):
        read_manifest(tmp_path / "none")
    (tmp_path / "begun" / "run").mkdir(parents=True)
    write_text(tmp_path / "captions" / "captions.jsonl", [])
    for name, out in (("begun", "begun"), ("captions", "captions-index")):
        with pytest.raises(UsageError) as error:
            read_manifest(tmp_path / name)
        assert error.value.hint.endswith(f" --out {tmp_path / out}")
    write(tmp_path, 3)
    book = tmp_path / "index.json"
    whole = book.read_text()
    book.write_text(json.dumps({**json.loads(whole), "format": 9}))
    with pytest.raises(UsageError, match="an index of version 9"):
        read_manifest(tmp_path)
    for wrong in (whole.replace('"rows": 3', '"rows": 4'), whole[:-20], "[]", "{}", "\0"):
        book.write_text(wrong)
        with pytest.raises(EnvironmentFault, match=r"index\.json is damaged"):
            read_manifest(tmp_path)
    book.unlink()
    with pytest.raises(EnvironmentFault, match=r"no index\.json"), writing.writing(tmp_path, MAKER):
        pass


def test_every_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "index", 30)
    with writing.writing(tmp_path / "index") as writer:
        writer.remove(np.array([1]))
    names = [file.name for file in read_manifest(tmp_path / "index").files()]
    assert len(names) == 5 and list(verify_index(tmp_path / "index")) == []
    for number, name in enumerate(names * 3):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(tmp_path / "index", copy)
        content = bytearray((copy / name).read_bytes())
        if number < len(names):
            content[len(content) // 2] ^= 1
        else:
            del content[-9:]
        (copy / name).write_bytes(content)
        if number >= 2 * len(names):
            (copy / name).unlink()
        (found,) = verify_index(copy)
        assert found.path == copy / name
        assert ("compact" in found.hint) == name.startswith("bits")
        if number >= len(names):
            reason = "is gone" if number >= 2 * len(names) else "(bytes|removed rows) of"
            with pytest.raises(PenstockError, match=f"{name}.* {reason}"):
                open_snapshot(copy)


def test_damaged_bits_are_made_again(tmp_path: Path) -> None:
    write(tmp_path, 30)
    next(tmp_path.glob("bits-*")).unlink()
    with writing.writing(tmp_path) as writer:
        compact(writer)
        measure(writer)
    assert list(verify_index(tmp_path)) == [] and len(paths(tmp_path)) == 30


def test_stats_tell_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, 30)
    assert stats_of(tmp_path)["rows"] == 30
    with writing.writing(tmp_path) as writer:
        writer.remove(np.array([1]))
        measure(writer)
    message = stats_of(tmp_path)
    assert message["rows"] == 29 and message["removed"] == 1 and message["shards"] == 1
    assert message["measured"]["pictures"]["candidates"] == 0  # so few are scanned exactly
    assert json.loads((tmp_path / "index.json").read_text())["format"] == manifest.FORMAT


def test_rows_are_read_by_many_threads_at_once(tmp_path: Path) -> None:
    """A server reads a row for each small picture that it draws."""
    write(tmp_path, 500)
    snapshot = open_snapshot(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda at: snapshot.read(np.array([at]))[0].path, range(500)))
    assert found == [f"/in/{at}.jpg" for at in range(500)]


FULL = 20
"""Rows of a full shard."""
THERE, NEW = 50, 45


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_ROWS", FULL)
    monkeypatch.setattr(writing, "BATCH_ROWS", FULL // 2)


@pytest.fixture
def index(tmp_path: Path, small_shards: None) -> Path:
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


def fill(writer: IndexWriter) -> None:
    """The first writer of an index."""
    writer.add([(rows(THERE), drawn(THERE))])


@pytest.mark.slow
@pytest.mark.parametrize("step", [9, 1])
@pytest.mark.parametrize("change", [add, compact, remove, fresh_bits, fill])
def test_a_killed_writer_loses_nothing_and_a_rerun_ends_as_an_undisturbed_one(
    change: Callable[[IndexWriter], object], step: int, index: Path
) -> None:
    before, whole = [] if change is fill else paths(index), index.parent / "whole"
    if change is fill:
        shutil.rmtree(index)
    else:
        shutil.copytree(index, whole)
    with writing.writing(whole, MAKER) as writer:
        change(writer)
    expected = paths(whole)
    assert len(set(expected)) == len(expected)
    for moment in range(1, 1000, step):
        killed = index.parent / f"killed-{moment}"
        if change is not fill:
            shutil.copytree(index, killed)
        if not killed_at(moment, killed, change):
            break
        if change is not fill:
            seen = paths(killed)  # a reader in between
            assert seen in (before, expected) or (change is add and seen == expected[: len(seen)])
        with writing.writing(killed, MAKER) as writer:
            change(writer)
        assert paths(killed) == expected
        assert list(verify_index(killed)) == []
        named = {file.name for file in read_manifest(killed).files()} | {"index.json", ".writer"}
        assert {path.name for path in killed.iterdir()} == named
    assert moment > (20 if change is not remove else 5)


def signed_anew(folder: Path) -> None:
    """Let the manifest state the files as they are now."""
    manifest = read_manifest(folder)
    shards = []
    for shard in manifest.shards:
        files = {sort: described(folder / file.name) for sort, file in shard.files.items()}
        shards.append(replace(shard, files=files))
    write_manifest(folder, replace(manifest, shards=tuple(shards)))


@pytest.mark.parametrize("factor", [np.nan, 30.0, 0.01])
def test_vectors_that_a_search_refuses_are_damage(tmp_path: Path, factor: float) -> None:
    write(tmp_path, 40)
    (path,) = tmp_path.glob("embeddings-*.f16")
    vectors = np.fromfile(path, np.float16).reshape(40, -1)
    vectors[7] *= factor
    vectors.tofile(path)
    signed_anew(tmp_path)
    (damage,) = verify_index(tmp_path)
    assert damage.path == path and "1 vector of another length than 1" in damage.what


def test_a_manifest_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "index", 4)
    (outside := tmp_path / "embeddings-00000.f16").write_bytes(bytes(8))
    manifest = read_manifest(tmp_path / "index")
    (shard,) = manifest.shards
    for name in (f"../{outside.name}", str(outside)):
        file = replace(described(outside), name=name)
        moved = replace(shard, files={**shard.files, "embeddings": file})
        write_manifest(tmp_path / "index", replace(manifest, shards=(moved,)))
        with pytest.raises(EnvironmentFault, match=r"index\.json is damaged"):
            read_manifest(tmp_path / "index")
