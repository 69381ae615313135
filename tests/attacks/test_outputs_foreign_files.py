"""A command that adds to a folder replaces no file there that no run wrote; texts of people are
treated by each rule of `--existing`."""

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from artifacts.disk.files import link, write_text
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.texts.captions import Failure, write_jsonl
from flows.commands.search.page import page_of
from flows.core.options.commands import CaptionConfig, RunOptions
from flows.core.options.vectors import LabelConfig
from flows.outputs.folder.foreign_files import (
    refuse_replacing,
    refuse_replacing_found,
    refuse_replacing_page,
)
from flows.outputs.run_result import RunResult
from tests.support.rows import HARD
from tests.support.saying import make, run

FORMATS = ("jsonl", "txt", "csv", "parquet", "webdataset", "musubi")
FILES = {
    "caption": "run.json captions.jsonl media.jsonl failures.jsonl summaries.jsonl captions.csv "
    "captions.parquet webdataset/index.json webdataset/000007.tar clips/index.json",
    "label": "run.json labels.jsonl label_report.json media.jsonl label_spans.jsonl labels.csv "
    "labels.parquet labels.coco.json",
    "embed": "embeddings.npy embeddings.parquet failures.jsonl",
}
NAMES = [(command, name) for command, names in FILES.items() for name in names.split()]


def refused(folder: Path, command: str = "caption", own: tuple[str, ...] = ()) -> None:
    forms = ("jsonl", "csv", "parquet", "coco")
    config: RunOptions = CaptionConfig(sources=("x",), format=FORMATS, summary=True)
    if command != "caption":
        config = LabelConfig(sources=("x",), model="m", labels="a", format=forms)
    refuse_replacing(folder, config, command, own)


@pytest.mark.parametrize(("command", "name"), NAMES)
def test_a_file_that_no_run_wrote_is_refused_also_beside_those_that_runs_wrote(
    tmp_path: Path, command: str, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"mine": 1}\n')
    top = name.partition("/")[0]
    for own in ((), tuple(each for _, other in NAMES if (each := other.partition("/")[0]) != top)):
        with pytest.raises(UsageError, match="exists, and penstock did not write it"):
            refused(tmp_path, command, own)
    if not name.endswith(".tar"):  # one of somebody else may lie in the folder of a run
        refused(tmp_path, command, (top,))
    assert (tmp_path / name).read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("name", ["captions.jsonl", "labels.csv", "embeddings.npy", "mine.json"])
def test_what_this_run_does_not_write_may_lie_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused(tmp_path, "label" if name == "captions.jsonl" else "caption")


def test_an_empty_file_and_failures_of_a_run_without_media_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").touch()
    place = {"media_path": "a.png", "source": "a", "stage": "frames"}
    write_jsonl(tmp_path / "failures.jsonl", [Failure(error="e", message="m", hint="h", **place)])
    refused(tmp_path)


def test_a_folder_in_the_place_of_an_output_is_named_before_work_begins(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").mkdir()
    for own in ((), ("captions.jsonl",)):
        with pytest.raises(EnvironmentFault, match="it is a folder"):
            refused(tmp_path, own=own)


@pytest.mark.parametrize("to", ["a file", "nowhere", "itself"])
def test_a_link_of_a_person_s_is_not_replaced(tmp_path: Path, to: str) -> None:
    if to == "a file":
        (tmp_path / "other").write_text("mine")
    elif to == "itself":
        (tmp_path / "other").symlink_to(tmp_path / "other")
    (tmp_path / "captions.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match=r"captions\.jsonl"):
        refused(tmp_path)


def node(place: Path, kind: str) -> Path:
    """Make something that is no file, below `place`."""
    path = place / "node"
    if kind == "a device":
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only the administrator makes devices")
    else:
        os.mkfifo(path)
    if kind == "a link to a FIFO":
        (place / "link").symlink_to(path)
    return place / "link" if kind == "a link to a FIFO" else path


@pytest.mark.parametrize("kind", ["a device", "a FIFO", "a link to a FIFO"])
def test_what_is_no_file_is_replaced_by_no_output(tmp_path: Path, kind: str) -> None:
    path = node(tmp_path, kind)
    before = os.lstat(path)
    for refuse in (refuse_replacing_page, partial(refuse_replacing_found, folder=None)):
        with pytest.raises(UsageError, match=f"is a {kind.split()[-1]}, not a file"):
            refuse(path)
    (tmp_path / "out").mkdir()
    os.link(path, tmp_path / "out" / "captions.jsonl", follow_symlinks=False)
    for own in ((), ("captions.jsonl",)):
        with pytest.raises(UsageError, match=f"is a {kind.split()[-1]}, not a file"):
            refused(tmp_path / "out", own=own)
    (tmp_path / "text").write_text("x")
    for write in (partial(write_text, path, ["x"]), partial(link, tmp_path / "text", path)):
        with pytest.raises(EnvironmentFault, match="is not replaced"):
            write()
    after = os.lstat(path)
    assert stat.S_IFMT(after.st_mode) == stat.S_IFMT(before.st_mode), "it was replaced by a file"


def test_the_file_that_the_output_of_the_command_goes_to_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "to").touch()
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    saved = os.dup(1)
    opened = os.open(tmp_path / "to", os.O_WRONLY)
    try:
        os.dup2(opened, 1)
        with pytest.raises(UsageError, match="is an open stream of this command"):
            refuse_replacing_found(tmp_path / "stdout", None)
        with pytest.raises(EnvironmentFault, match="is not replaced"):
            write_text(tmp_path / "stdout", ["x"])
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(opened)
    assert (tmp_path / "stdout").is_symlink(), "the link was replaced by a file"


@pytest.mark.parametrize(
    ("refuse", "ours", "option"),
    [
        (refuse_replacing_page, "<!doctype html>\n<title>Penstock report</title>\n", "--to"),
        (partial(refuse_replacing_found, folder=None), page_of("a cat", "photos", []), "--html"),
    ],
    ids=["report", "search"],
)
def test_a_page_takes_the_place_of_such_a_page_alone(
    tmp_path: Path, refuse: Callable[[Path], None], ours: str, option: str
) -> None:
    page = tmp_path / "page.html"
    refuse(page)
    page.touch()
    refuse(page)
    page.write_text(ours)
    refuse(page)
    page.write_text("<!doctype html>\n<title>My page</title>\n")
    with pytest.raises(UsageError, match=option):
        refuse(page)


@pytest.mark.parametrize("line", ["", '{"rank": 1, "score": 0.5, "media_path": "a", "path": "a"}'])
def test_copies_go_into_a_folder_that_is_empty_or_a_search_s(tmp_path: Path, line: str) -> None:
    refuse_replacing_found(None, tmp_path / "new")
    refuse_replacing_found(None, tmp_path)
    (tmp_path / "001-cat.png").touch()
    (tmp_path / "search.jsonl").write_text(line)
    refuse_replacing_found(None, tmp_path)


@pytest.mark.parametrize("name", ["001-cat.png", "search.jsonl"])
def test_copies_replace_no_file_of_somebody_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(UsageError, match=name):
        refuse_replacing_found(None, tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return make(tmp_path)


@pytest.fixture
def text(config: CaptionConfig) -> Path:
    """What lies beside the picture, with a person's words in it."""
    (path := Path(config.sources[0]) / "photo.txt").write_text("ohwx, best quality\n")
    return path


def ours(prompt: str) -> str:
    """What is said of the picture."""
    return f"{prompt} {HARD[0]}"


def put(config: CaptionConfig, rule: str | None, prompt: str = "A?", **more: Any) -> RunResult:
    photo = str(Path(config.sources[0]) / "photo.PNG")
    options = {"sources": (photo,), "format": ("txt",), "beside": True, **more}
    return run(config, prompt=prompt, existing=rule, **options)


def test_a_text_by_a_person_is_kept_or_replaced(config: CaptionConfig, text: Path) -> None:
    for rule in (None, "keep"):
        result = put(config, rule)
        assert text.read_text() == "ohwx, best quality\n"
        assert any("that users wrote or edited" in note for note in result.warnings)
    put(config, "replace", "B?")
    assert text.read_text() == f"{ours('B?')}\n"
    put(config, None, "C?")
    assert text.read_text() == f"{ours('C?')}\n"
    text.write_text(" \n")
    put(config, None, "D?")
    assert text.read_text() == f"{ours('D?')}\n", "a blank text is nobody's"


def test_what_is_no_text_is_kept(config: CaptionConfig, text: Path, tmp_path: Path) -> None:
    for content in ("Fluß".encode("latin-1"), "x".encode("utf-16"), b"x" * (1 << 17)):
        text.write_bytes(content)
        assert any("kept" in note for note in put(config, None).warnings)
        assert text.read_bytes() == content
    (other := tmp_path / "other.txt").write_text("mine")
    text.unlink()
    text.symlink_to(other)
    put(config, None)
    assert os.path.islink(text) and other.read_text() == "mine"


def test_texts_of_moved_folders_are_ours(config: CaptionConfig, text: Path, tmp_path: Path) -> None:
    text.unlink()
    put(config, None)
    moved = text.parent.rename(tmp_path / "moved")
    put(config, None, "B?", sources=(str(moved / "photo.PNG"),), out=str(tmp_path / "o2"))
    assert (moved / text.name).read_text() == f"{ours('B?')}\n"
    edited = (moved / text.name).read_text().replace("Fluß", "See")
    (moved / text.name).write_text(edited)
    again = moved.rename(tmp_path / "again")
    put(config, None, "C?", sources=(str(again / "photo.PNG"),))
    assert (again / text.name).read_text() == edited
