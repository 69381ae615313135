"""`penstock index` and `penstock search`: pictures and videos go in once, and are found."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.index.manifest import read_manifest
from artifacts.index.moments import single
from artifacts.index.search import Query, Searcher
from artifacts.index.snapshot import open_snapshot
from flows.commands.search import build as filling
from flows.commands.search import query
from flows.commands.search.query import is_image_query, to_hit
from flows.core.machine.launch import DirectLauncher, StageCall
from flows.interfaces.cli.main import main
from flows.outputs.folder.run_lock import only_run_in
from stages.embed_texts.in_numpy import text_vectors
from tests.support.away import disk
from tests.support.builders.clip import save_clip
from tests.support.builders.words import hf
from tests.support.embedding import SIZES, write_images
from tests.support.indexes import paths, write
from tests.support.inside import Ended, InsideLauncher
from tests.support.media import write_video
from tests.support.pipeline import read_lines

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def stages_in_this_process() -> Iterator[None]:
    """None of these tests is about processes."""

    def start(launcher: DirectLauncher, call: StageCall) -> Ended:
        return InsideLauncher(listen=launcher._on_event).start(call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectLauncher, "start", start)
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A folder with pictures (one of them twice), a video, the store and the index."""
    place = tmp_path_factory.mktemp("built")
    media = place / "media"
    media.mkdir()
    write_images(media)
    shutil.copy(media / "p2.png", media / "twin.png")
    write_video(media / "film.mp4", ticks=range(0, 20 * 30, 3))
    assert build(place, clip) == 0
    return place


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    """A copy of the index alone, to be changed."""
    shutil.copytree(built / "index", tmp_path / "index")
    (tmp_path / "store").symlink_to(built / "store")
    return tmp_path


@pytest.fixture
def empty(built: Path, tmp_path: Path) -> Path:
    """A place without an index, whose store has all of the built one."""
    (tmp_path / "store").symlink_to(built / "store")
    (tmp_path / "media").mkdir()
    return tmp_path


def build(place: Path, model: Path, *more: str, sources: Path | None = None) -> int:
    where = ["--store", str(place / "store"), "--out", str(place / "index")]
    sources = sources or place / "media"
    return main(["index", "build", str(sources), "--model", str(model), *where, *more])


def index(action: str, place: Path, *more: str) -> int:
    return main(["index", action, "--index", str(place / "index"), *more])


def search(place: Path, *more: str) -> int:
    where = ["--store", str(place / "store"), "--index", str(place / "index")]
    return main(["search", *more, *where])


def found(place: Path, capsys: Said, *more: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert search(place, *more, "--json") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_a_picture_finds_itself_and_its_twin(built: Path, capsys: Said) -> None:
    first, second, *_ = found(built, capsys, str(built / "media" / "p2.png"))
    assert (first["rank"], first["media_path"], first["time"]) == (1, "p2.png", None)
    assert first["score"] == pytest.approx(1, abs=2e-3) and first["box"] is None
    assert first["copies"] == 1 and first["copy_paths"] == [str(built / "media" / "twin.png")]
    assert second["score"] < first["score"] and len(first["key"]) == 64


def test_conditions_moments_and_numbers_of_hits(built: Path, capsys: Said) -> None:
    picture = str(built / "media" / "p0.png")
    where = ["--where", "path like '%.mp4' and time < 10", "--top", "50"]
    films = found(built, capsys, picture, "--each-frame", *where)
    assert 9 <= len(films) <= 11 and all(hit["time"][0] < 10 for hit in films)
    joined = found(built, capsys, picture, "--where", "time is not null")
    assert all(hit["time"][0] < hit["time"][1] for hit in joined)
    assert len(found(built, capsys, picture, "--top", "3")) == 3


def test_texts_are_read_by_the_text_half_alone_and_searches_for_them_measured(
    built: Path, clip: Path, place: Path, capsys: Said
) -> None:
    assert {"pictures", "texts"} == set(read_manifest(place / "index").measured)
    every = ["--each-frame", "--top", "50"]
    hits = found(place, capsys, "a dog<eos>", *every)
    processor: Any = hf.AutoProcessor.from_pretrained(clip)
    picture = Image.open(built / "media" / "p4.png")
    inputs = processor(images=[picture], text=["a dog<eos>"], return_tensors="pt")
    with torch.inference_mode():
        whole = hf.CLIPModel.from_pretrained(clip).eval()(**inputs)
    expected = float(whole.text_embeds[0] @ whole.image_embeds[0])
    near = {hit["media_path"]: hit["score"] for hit in hits}
    assert near["p4.png"] == pytest.approx(expected, abs=2e-3)
    dogs = found(place, capsys, "a dog<eos>", "--not", "a much longer text<eos>", *every)
    others = found(place, capsys, "a much longer text<eos>", "--not", "a dog<eos>", *every)
    named = [(hit["path"], hit["at"]) for hit in (*dogs, *others)]
    assert sorted(map(str, named)) == sorted(str((hit["path"], hit["at"])) for hit in hits)


def test_a_text_query_starts_a_stage_only_where_numpy_gives_other_vectors(
    built: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage is the independent source: it runs the model's own code."""
    started: list[str] = []
    start = DirectLauncher.start

    def counting(launcher: DirectLauncher, call: StageCall) -> Any:
        started.append(call.name)
        return start(launcher, call)

    monkeypatch.setattr(DirectLauncher, "start", counting)
    words = ["A new Text", "--not", "some other"]
    in_numpy = found(built, capsys, *words)
    assert not started

    def others(folder: Path, texts: list[str]) -> Any:
        vectors = text_vectors(folder, texts)
        return None if vectors is None else -vectors

    monkeypatch.setattr(query, "text_vectors", others)
    by_stage = found(built, capsys, *words)
    assert started == ["embed_texts"]
    assert [hit["key"] for hit in in_numpy] == [hit["key"] for hit in by_stage]
    scores = [[hit["score"] for hit in hits] for hits in (in_numpy, by_stage)]
    assert scores[0] == pytest.approx(scores[1], abs=2e-6)


def test_the_page_opens_a_video_at_the_start_of_the_hit(built: Path, tmp_path: Path) -> None:
    picture = str(built / "media" / "p3.png")
    copy = tmp_path / "copy"
    assert search(built, picture, "--html", str(tmp_path / "p.html"), "--copy", str(copy)) == 0
    page = (tmp_path / "p.html").read_text()
    starts = re.findall(r'href="[^"]*/film\.mp4#t=([\d.]+),[\d.]+"', page)
    hits = read_lines(copy / "search.jsonl")
    films = [hit["time"] for hit in hits if hit["media_path"] == "film.mp4"]
    assert films and list(map(float, starts)) == [time[0] for time in films]
    assert 'p3.png">' in page


def test_an_index_is_built_where_no_text_half_is_and_measured_once_it_is(
    built: Path, clip: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def no_texts(*_: Any) -> Any:
        raise EnvironmentFault("no text half is here")

    with monkeypatch.context() as patch:
        patch.setattr(filling, "read_texts", no_texts)
        assert build(empty, clip, sources=built / "media") == 0
    assert set(read_manifest(empty / "index").measured) == {"pictures"}
    assert build(empty, clip, sources=built / "media") == 0
    assert set(read_manifest(empty / "index").measured) == {"pictures", "texts"}


@pytest.mark.slow
def test_tiles_are_rows_and_a_picture_is_told_once_with_the_nearest_of_them(
    clip: Path, empty: Path, capsys: Said
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    whole = Image.fromarray(pixels)
    whole.save(empty / "media" / "whole.png")
    whole.crop((0, 64, 64, 128)).save(empty / "part.png")
    assert build(empty, clip, "--tiles", "2") == 0
    assert len(paths(empty / "index")) == 10
    (hit,) = found(empty, capsys, str(empty / "part.png"))
    assert hit["box"] == [0, 64, 64, 128] and hit["score"] == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_rows_of_other_options_are_not_told_to_be_of_changed_files(
    clip: Path, empty: Path, capsys: Said
) -> None:
    write_video(empty / "media" / "film.mp4", ticks=range(0, 90, 3))
    Image.new("RGB", (60, 60), "green").save(empty / "media" / "p.png")
    assert build(empty, clip) == 0
    rows = len(paths(empty / "index"))
    Image.new("RGB", (60, 60), "red").save(empty / "media" / "p.png")
    capsys.readouterr()
    store = ("--store", str(empty / "store"))
    assert index("add", empty, str(empty / "media"), *store, "--fps", "2") == 0
    # Every other frame of the film stands at a time of before, in chunks of other options.
    told = f"1 of files that changed were removed; {rows - 1} made with other options"
    assert told in capsys.readouterr().out


def test_scores_are_cosines_of_at_most_one(tmp_path: Path) -> None:
    """Vectors of 16 bit may be longer than one."""
    vectors = write(tmp_path, 300)
    snapshot = open_snapshot(tmp_path)
    hits = [
        to_hit(snapshot, 1, moment).score
        for vector in vectors
        for moment in single(Searcher(snapshot), Searcher(snapshot).find(Query(vector=vector), 1))
    ]
    assert len(hits) == 300 and max(hits) <= 1 and min(hits) > 0.999, max(hits)


def test_a_second_build_adds_what_is_new_replaces_what_changed_and_tells_what_is_gone(
    clip: Path, empty: Path, capsys: Said
) -> None:
    media = empty / "media"
    write_images(media)
    assert build(empty, clip) == 0
    before = (empty / "index" / "index.json").read_bytes()
    assert build(empty, clip) == 0
    assert (empty / "index" / "index.json").read_bytes() == before
    (media / "p0.png").unlink()
    Image.new("RGB", (50, 50), "red").save(media / "p1.png")
    Image.new("RGB", (50, 60), "blue").save(media / "new.png")
    capsys.readouterr()
    assert build(empty, clip, "--json") == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["added"], printed["replaced"]) == (2, 1)
    assert printed["vanished"] == [str(media / "p0.png")]
    assert len(paths(empty / "index")) == len(SIZES) + 1
    assert index("remove", empty, "--gone") == 0
    names = sorted(Path(path).name for path in paths(empty / "index"))
    assert names == ["new.png", *(f"p{n}.png" for n in range(1, len(SIZES)))]


def test_files_of_a_renamed_folder_are_found_where_they_are_now(
    clip: Path, empty: Path, capsys: Said
) -> None:
    media, moved = empty / "Porträts im Mai", empty / "moved"
    media.mkdir()
    write_images(media)
    (media / "raw.cr2").touch()
    assert build(empty, clip, sources=media) == 0
    assert capsys.readouterr().err.count("not taken: 1 .cr2") == 1
    media.rename(moved)
    assert build(empty, clip, sources=moved) == 1
    (note,) = (line for line in capsys.readouterr().err.splitlines() if "index remove" in line)
    (hit, *_) = found(empty, capsys, str(moved / "p2.png"))
    assert hit["path"] == str(moved / "p2.png") and hit["copy_paths"] == [str(media / "p2.png")]
    assert main(shlex.split(note.partition("penstock ")[2])) == 0  # the command that it gives
    assert {Path(path).parent for path in paths(empty / "index")} == {moved}


def test_rows_of_a_disk_that_is_not_mounted_are_kept_and_counted(
    clip: Path, empty: Path, capsys: Said
) -> None:
    media, files = empty / "media" / "disk", empty / "files"
    with disk(media, files) as mounted:
        write_images(files)
        mounted.unmount()
        (media / "NOT MOUNTED").touch()
        Image.new("RGB", (50, 50), "red").save(empty / "media" / "near.png")
        mounted.mount()
        assert build(empty, clip, "--recursive") == 0
        rows = read_manifest(empty / "index").live_rows
        mounted.unmount()
        capsys.readouterr()
        assert build(empty, clip, "--recursive") == 1
        said = capsys.readouterr()
        assert f"; away: {media} (not mounted (" in said.out and "of 2 files failed" not in said.out
        assert f"failed: {media}: not mounted (" in said.err and "gone:" not in said.err
        assert f"rows of {len(SIZES)} files kept" in said.out
        assert main(["status", str(empty / "index" / "run")]) == 0
        assert f"rows of {len(SIZES)} files kept" in capsys.readouterr().out
        assert index("remove", empty, "--gone") == 0
        assert read_manifest(empty / "index").live_rows == rows


def test_a_busy_index_names_the_option_that_the_command_has(
    place: Path, clip: Path, built: Path, capsys: Said
) -> None:
    with only_run_in(place / "index" / "run", "embedding into", ""):
        assert build(place, clip, sources=built / "media") == 2
        assert "or give another --out" in capsys.readouterr().err
        store = ("--store", str(place / "store"), "--quiet")
        assert index("add", place, str(built / "media" / "p0.png"), *store) == 2
        assert "or give another --index" in capsys.readouterr().err


def test_rows_are_removed_by_file_folder_and_key(built: Path, place: Path, capsys: Said) -> None:
    film = str(built / "media" / "film.mp4")
    key = found(built, capsys, str(built / "media" / "p0.png"))[0]["key"]
    before = len(paths(place / "index"))
    assert index("remove", place, film, "nothing.png") == 2
    assert "nothing.png" in capsys.readouterr().err and len(paths(place / "index")) == before
    assert index("remove", place, film, key, "p1.png") == 0
    assert "film.mp4" not in {Path(path).name for path in paths(place / "index")}
    assert index("compact", place) == 0 and index("verify", place) == 0
    assert index("stats", place, "--json") == 0
    printed = json.loads(capsys.readouterr().out.partition("{")[2].join(("{", "")))
    assert printed["rows"] == len(SIZES) - 1 and printed["removed"] == 0
    assert index("remove", place, str(built / "media")) == 0
    assert index("remove", place) == 2
    assert search(place, str(built / "media" / "p0.png")) == 2
    assert "is empty" in capsys.readouterr().err


def test_a_page_and_copies_hold_what_was_found_and_are_written_again(
    built: Path, tmp_path: Path
) -> None:
    more = ["--html", str(tmp_path / "p.html"), "--copy", str(tmp_path / "copy"), "--top"]
    assert search(built, str(built / "media" / "p3.png"), *more, "50") == 0
    page = (tmp_path / "p.html").read_text()
    hits = read_lines(tmp_path / "copy" / "search.jsonl")
    assert page.count('<img src="data:image/jpeg;base64,') == len(hits) > 20
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page
    copied = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert copied[0] == "001-p3.png" and "search.jsonl" in copied
    assert sum("film" in name for name in copied) == 1  # however many of its frames are found
    original = (built / "media" / "p3.png").read_bytes()
    assert (tmp_path / "copy" / "001-p3.png").read_bytes() == original
    assert search(built, str(built / "media" / "p1.png"), *more, "1") == 0
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {*copied, "001-p1.png"}


def test_a_copy_that_was_edited_is_not_replaced(built: Path, tmp_path: Path) -> None:
    options = ["--copy", str(tmp_path), "--top", "1"]
    original = built / "media" / "p3.png"
    assert search(built, str(original), *options) == 0
    (tmp_path / "001-p3.png").write_bytes(b"cropped")
    for _ in range(2):
        assert search(built, str(original), *options) == 0
        assert (tmp_path / "001-p3.png").read_bytes() == b"cropped"
        assert (tmp_path / "001-p3-2.png").read_bytes() == original.read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"001-p3.png", "001-p3-2.png", "search.jsonl"}


@pytest.mark.parametrize("option", ["--html", "--copy"])
def test_searches_replace_no_files(place: Path, tmp_path: Path, capsys: Said, option: str) -> None:
    mine = tmp_path / "mine" / "001-p3.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    given = mine if option == "--html" else mine.parent
    assert search(place, "a red circle", option, str(given)) == 2
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1) and str(given) in printed.err
    assert mine.read_text() == "mine" and len(list(mine.parent.iterdir())) == 1


def test_add_takes_the_model_of_the_index_and_a_file_that_goes_is_named(
    built: Path, place: Path, tmp_path: Path, capsys: Said
) -> None:
    media, before = tmp_path / "a<b", len(paths(place / "index"))
    media.mkdir()
    Image.new("RGB", (50, 50), "green").save(media / "&.png")
    (media / "broken.png").write_text("no picture")
    assert index("add", place, str(media), "--store", str(place / "store")) == 1
    assert "broken.png" in capsys.readouterr().err
    assert len(paths(place / "index")) == before + 1
    (media / "&.png").unlink()
    picture = str(built / "media" / "p3.png")
    more = ["--html", str(tmp_path / "p.html"), "--copy", str(tmp_path / "copy"), "--top", "50"]
    assert search(place, picture, *more) == 1
    assert "cannot be copied" in capsys.readouterr().err
    page = (tmp_path / "p.html").read_text()
    assert "not readable" in page and "&amp;.png" in page and "a<b" not in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["gone.png"], "gone.png: no such image"),
        (["{media}/film.mp4"], "is a video"),
        (["{media}/p0.png", "--where", "size > 3"], "--where cannot be read"),
        (["{media}/p0.png", "--top", "0"], "invalid --top 0"),
        (["{media}/p0.png", "--top", "1", "--vtt", "{media}/t.vtt"], "no hit is a moment"),
        (["  "], "is empty"),
    ],
)
def test_senseless_searches_are_told(
    more: list[str], words: str, built: Path, capsys: Said
) -> None:
    assert search(built, *(word.format(media=built / "media") for word in more)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_word_is_a_text_also_beside_a_folder_or_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dogs").mkdir()
    (tmp_path / "cats").write_text("a list")
    (tmp_path / "cat.png").write_bytes(b"")
    asked = ("dogs", "cats", "a dog. ", "cat.png", "./cats")
    assert [*map(is_image_query, asked)] == [False, False, False, True, True]
    with pytest.raises(UsageError, match="no such image"):
        is_image_query("./dogs")


def test_a_wrong_index_is_one_line(
    built: Path, place: Path, clip: Path, tmp_path: Path, capsys: Said
) -> None:
    picture = str(built / "media" / "p0.png")
    assert build(place, clip, "--precision", "auto", sources=built / "media") == 2
    assert "--precision auto" in capsys.readouterr().err
    assert index("stats", tmp_path / "none") == 2
    assert "there is no index" in capsys.readouterr().err
    rows = next((place / "index").glob("rows-*"))
    rows.write_bytes(rows.read_bytes()[:-3])
    for command, words in ((search, (picture,)), (partial(index, "remove"), ("p0.png",))):
        assert command(place, *words) == 5
        error = capsys.readouterr().err
        assert rows.name in error and "index verify" in error and error.count("\n") == 1
    assert index("verify", place) == 1
    assert rows.name in capsys.readouterr().out
