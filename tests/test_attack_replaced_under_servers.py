"""Indexes and models replaced under servers: vectors of one model are never compared with those of
another, an index that is away or damaged is a refusal with the reason, and answers are of the model
that is there."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from artifacts.errors import PenstockError
from artifacts.index.manifest import Maker, read_manifest, write_manifest
from artifacts.index.snapshot import open_snapshot
from artifacts.index.writing import writing
from benchmarks._clip import save_clip
from benchmarks._words import hf
from flows.cli.main import main
from flows.options.vectors import SearchQuery
from flows.serving.refusals import HttpRefusal
from flows.serving.searching import ServedIndex
from penstock_demo import CLIPS
from tests.support.embedding import write_images
from tests.support.indexes import MAKER, WIDTH, drawn, rows
from tests.support.pipeline import PENSTOCK
from tests.support.replaced_models import WEIGHTS, Models
from tests.support.serving import Serving, a_picture, serving

pytestmark = pytest.mark.slow

COUNT = 20
SWAPS = 60
FIRST = np.array([0])


def build(folder: Path, maker: Maker = MAKER, seed: int = 0, count: int = COUNT) -> Path:
    vectors = drawn(count, seed)
    if maker.width != WIDTH:
        vectors = vectors[:, : maker.width].copy()
    with writing(folder, maker, "a test") as writer:
        writer.add([(rows(count), vectors)])
    return folder


def anew(folder: Path, maker: Maker = MAKER, seed: int = 0) -> None:
    shutil.rmtree(folder)
    build(folder, maker, seed)


def told_otherwise(folder: Path, **changes: Any) -> None:
    """Write the book anew, of another maker."""
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, maker=replace(manifest.maker, **changes)))


def book(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Change the book of an index."""

    def changed(folder: Path) -> None:
        path = folder / "index.json"
        path.write_bytes(change(path.read_bytes()))

    return changed


def with_field(name: str, value: Any) -> Callable[[Path], object]:
    return book(lambda data: json.dumps({**json.loads(data), name: value}).encode())


def made_by(**changes: Any) -> Callable[[Path], object]:
    """Another maker builds the index anew."""
    return lambda folder: anew(folder, replace(MAKER, **changes), 1)


def shard(folder: Path, sort: str) -> Path:
    return next(folder.glob(f"{sort}-*"))


def cut(path: Path) -> None:
    """Another file in its place, which lacks the end."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def garbled(folder: Path) -> None:
    path = shard(folder, "rows")
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(b"\xff" * size)
    os.utime(folder / "index.json")


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else is in the place of the book."""

    def changed(folder: Path) -> None:
        (folder / "index.json").unlink()
        make(folder / "index.json")

    return changed


def touched(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        change(folder)
        os.utime(folder / "index.json")

    return changed


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "the folder is away": (shutil.rmtree, "cannot be read"),
    "the book is away": (instead(lambda path: None), "cannot be read"),
    "the book is a folder": (instead(Path.mkdir), ""),
    "half of the book": (book(lambda data: data[:200]), "damaged"),
    "bytes of no text": (book(lambda data: b"\xff" * 99), "damaged"),
    "a book nested without end": (book(lambda data: b"[" * 99_999), ""),
    "a later version": (with_field("format", 99), "version 99"),
    "a changed number": (with_field("deleted_rows", 7), "damaged"),
    "another model": (made_by(half="x"), "not those"),
    "another text half": (made_by(text_half="x"), "not those"),
    "another recipe": (made_by(recipe="x"), "does not make"),
    "another precision": (made_by(precision="bf16"), "does not make"),
    "another width": (made_by(width=64), "64 numbers"),
    "a book of another model": (lambda folder: told_otherwise(folder, half="x"), "not those"),
    "vectors are gone": (
        touched(lambda folder: shard(folder, "embeddings").unlink()),
        "is gone",
    ),
    "identities are cut": (touched(lambda folder: cut(shard(folder, "identities"))), "bytes of"),
    "rows are no parquet": (garbled, "cannot be read"),
}


def found(index: ServedIndex, seed: int = 0) -> list[str]:
    wanted = SearchQuery(what="-", top=3)
    hits = asyncio.run(index.search(drawn(1, seed)[0], "texts", (), wanted))
    return [hit["media_path"] for hit in hits]


@pytest.mark.parametrize("name", REFUSED)
def test_a_server_refuses_with_the_reason_and_goes_on_once_it_is_back(
    tmp_path: Path, name: str
) -> None:
    change, words = REFUSED[name]
    folder = build(tmp_path / "index")
    shutil.copytree(folder, tmp_path / "kept")
    index = ServedIndex(folder, MAKER)
    before = found(index)
    change(folder)
    for _ in range(2):  # the reason is not forgotten
        with pytest.raises(HttpRefusal) as refused:
            found(index)
        assert refused.value.status == 503 and words in refused.value.error
        assert str(folder) in refused.value.error
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "kept", folder)
    assert found(index) == before


def test_an_index_that_was_built_anew_is_searched_and_a_hit_of_before_is_known(
    tmp_path: Path,
) -> None:
    folder = build(tmp_path / "index")
    index = ServedIndex(folder, MAKER)
    stamp = (folder / "index.json").stat()
    first = found(index, seed=1)
    anew(folder, seed=1)
    os.utime(folder / "index.json", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert found(index, seed=1) != first and found(index, seed=1)[0] == "0.jpg"
    wanted = SearchQuery(what="-", top=1)
    (hit,) = asyncio.run(index.search(drawn(1)[0], "pictures", (), wanted))
    anew(folder, MAKER, seed=2)
    assert asyncio.run(index.row(hit["id"])).media_path == hit["media_path"]
    anew(folder, replace(MAKER, half="x"))
    with pytest.raises(HttpRefusal) as refused:
        asyncio.run(index.row(hit["id"]))
    assert refused.value.status == 503


def test_an_index_swapped_while_it_is_opened_is_of_one_model(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        build(tmp_path / name, replace(MAKER, half=name), seed)
    firsts = {name: open_snapshot(tmp_path / name).vectors(FIRST).tolist() for name in "ab"}
    index, done = tmp_path / "index", threading.Event()
    index.symlink_to("a")

    def swap() -> None:
        while not done.is_set():
            for name in "ba":
                (tmp_path / "next").symlink_to(name)
                os.replace(tmp_path / "next", index)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        opened = [snapshot for _ in range(SWAPS) if (snapshot := _opened(index)) is not None]
    finally:
        done.set()
        thread.join()
    assert opened
    for snapshot in opened:
        assert snapshot.vectors(FIRST).tolist() == firsts[snapshot.manifest.maker.half]


def _opened(index: Path) -> Any:
    try:
        return open_snapshot(index)
    except PenstockError:  # it was swapped each time
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a model whose halves lie in files of their own, and an index by it."""
    place = tmp_path_factory.mktemp("indexes")
    (place / "media").mkdir()
    write_images(place / "media")
    clip = save_clip(place / "clip")
    model: Any = hf.CLIPModel.from_pretrained(clip)
    (clip / "model.safetensors").unlink()
    model.save_pretrained(clip, max_shard_size="20KB")
    options = ["--out", str(place / "index"), "--store", str(place / "store"), "--quiet"]
    assert main(["index", "build", str(place / "media"), "--model", str(clip), *options]) == 0
    return place


def other_text_weights(model: Path) -> None:
    """Change files that hold nothing of the vision half."""
    changed = 0
    for path in sorted(model.glob("*.safetensors")):
        tensors = load_file(path)
        if all(name.startswith("text") for name in tensors):
            save_file({n: t * 1.5 for n, t in tensors.items()}, path, {"format": "pt"})
            changed += 1
    assert changed


def other_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    told = json.loads(path.read_text())
    told["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(told))


@pytest.mark.parametrize("change", [other_text_weights, other_tokenizer])
def test_words_are_not_read_by_a_model_that_changed_in_its_folder(
    place: Path, tmp_path: Path, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(place / "clip", tmp_path / "clip")
    change(model)
    where = ["--index", str(place / "index"), "--store", str(tmp_path / "store")]
    capsys.readouterr()
    assert main(["search", "a dog<eos>", "--model", str(model), *where]) == 2
    err = capsys.readouterr().err
    assert "are not those that it was made with" in err and err.count("\n") == 1


def ask_until_answered(server: Serving, medium: bytes) -> dict[str, Any]:
    """The answer to a medium; a server that reads its model again says 503 and when to ask."""
    until = time.monotonic() + 60
    while True:
        answer = server.ask("POST", "/v1/caption", medium)
        assert server.ask("GET", "/healthz").status == 200, "it is alive meanwhile"
        if answer.status == 200:
            return dict(json.loads(answer.body))
        assert answer.status == 503 and int(answer.headers["retry-after"]) > 0, answer.body
        assert WEIGHTS.encode() in answer.body, "it says which file"
        assert time.monotonic() < until, answer.body
        time.sleep(0.1)


def words_of(answer: dict[str, Any]) -> list[str]:
    return [each["caption"] for each in answer["captions"]]


def kill_halves(server: Serving) -> None:
    for stage in ("encode", "decode"):
        for pid in server.pids(stage):
            os.kill(pid, signal.SIGKILL)


def wait_away(server: Serving) -> None:
    until = time.monotonic() + 60
    while server.pids("encode") or server.pids("decode"):
        assert time.monotonic() < until, "its halves stay"
        time.sleep(0.1)


def captioning(
    models: Models, root: Path, *options: str
) -> contextlib.AbstractContextManager[Serving]:
    root.mkdir(exist_ok=True)
    command = [*PENSTOCK, "serve", "--caption-model", str(models.folder)]
    return serving(root, *options, command=command)


def test_a_server_answers_by_the_new_model_after_a_death_and_after_it_was_idle(
    tmp_path: Path,
) -> None:
    models = Models.below(tmp_path)
    seen, new, newer = (path.read_bytes() for path in sorted(CLIPS.glob("*.mp4"))[:3])
    with captioning(models, tmp_path / "first", "--idle", "0.05") as server:
        first = words_of(ask_until_answered(server, seen))
        models.rename_in(models.second)
        kill_halves(server)
        second = {each: words_of(ask_until_answered(server, each)) for each in (new, seen)}
        wait_away(server)
        models.rename_in(models.first)
        ask_until_answered(server, newer)
        again = ask_until_answered(server, seen)
        log = server.log.read_text()
    assert words_of(again) == first and again["cached"], "what it said before is in the store"
    assert log.count("the model is read again") == 2 and "Traceback" not in log
    models.rename_in(models.second)
    with captioning(models, tmp_path / "other") as server:
        undisturbed = {each: words_of(ask_until_answered(server, each)) for each in (new, seen)}
    assert undisturbed == second and undisturbed[seen] != first


def test_a_server_whose_model_changes_on_and_on_ends_in_one_line(
    tmp_path: Path,
) -> None:
    models = Models.below(tmp_path)
    with captioning(models, tmp_path / "first") as server:
        models.rename_in(models.second)
        kill_halves(server)
        with contextlib.suppress(OSError):
            server.ask("POST", "/v1/caption", a_picture())
        until = time.monotonic() + 90
        while server.is_up():
            models.rename_in(models.first)
            time.sleep(0.02)
            assert time.monotonic() < until, "it goes on for ever"
        last = server.log.read_text().strip().splitlines()[-1]
        assert server.process.returncode == 5 and "the model changed twice" in last
