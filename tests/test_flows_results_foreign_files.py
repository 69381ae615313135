"""A command that adds to a folder replaces no file there that no run wrote; texts of people are
joined by each rule of `--existing`: no word is lost, no caption is twice there."""

import os
import random
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flows.media.generated_files
from artifacts.captions import Failure, write_jsonl
from artifacts.errors import EnvironmentFault, Interrupted, UsageError
from artifacts.files import link, write_text
from flows.media.generated_files import GeneratedFiles, JoinedTexts
from flows.options.commands import CaptionConfig, RunOptions
from flows.options.formats import APPEND, PREPEND
from flows.options.vectors import LabelConfig
from flows.results.foreign_files import (
    refuse_replacing,
    refuse_replacing_found,
    refuse_replacing_page,
)
from flows.results.run_result import RunResult
from flows.search.page import page_of
from tests.support.rows import HARD
from tests.support.saying import LONG, make, run

FORMATS = ("jsonl", "txt", "csv", "parquet", "webdataset", "musubi")
NAMES: list[tuple[str, str]] = [
    *(
        ("caption", name)
        for name in ("run.json", "captions.jsonl", "media.jsonl", "failures.jsonl")
    ),
    *(("caption", name) for name in ("summaries.jsonl", "captions.csv", "captions.parquet")),
    *(("caption", name) for name in ("webdataset/index.json", "webdataset/000007.tar")),
    ("caption", "clips/index.json"),
    *(("label", name) for name in ("run.json", "labels.jsonl", "label_report.json", "media.jsonl")),
    *(("label", name) for name in ("label_spans.jsonl", "labels.csv", "labels.parquet")),
    ("label", "labels.coco.json"),
    *(("embed", name) for name in ("embeddings.npy", "embeddings.parquet", "failures.jsonl")),
]


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
    others = tuple(each for _, other in NAMES if (each := other.partition("/")[0]) != top)
    for own in ((), others):
        with pytest.raises(UsageError, match="exists, and penstock did not write it"):
            refused(tmp_path, command, own)
    if not name.endswith(".tar"):  # one of somebody else may lie in the folder of a run
        refused(tmp_path, command, (top,))
    assert (tmp_path / name).read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("name", ["captions.jsonl", "labels.csv", "embeddings.npy", "mine.json"])
def test_what_this_run_does_not_write_may_lie_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused(tmp_path, "label" if name == "captions.jsonl" else "caption")


def test_an_empty_file_and_the_failures_of_a_run_without_media_may_be_replaced(
    tmp_path: Path,
) -> None:
    (tmp_path / "captions.jsonl").touch()
    failure = Failure(
        media_path="a.png", source="a", stage="frames", error="e", message="m", hint="h"
    )
    write_jsonl(tmp_path / "failures.jsonl", [failure])
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
    path = Path(config.sources[0]) / "photo.txt"
    path.write_text("ohwx, best quality\n")
    return path


def ours(prompt: str) -> str:
    """What is said of the picture."""
    return f"{prompt} {HARD[0]}"


def put(config: CaptionConfig, rule: str | None, prompt: str = "A?", **more: Any) -> RunResult:
    photo = str(Path(config.sources[0]) / "photo.PNG")
    options = {"sources": (photo,), "format": ("txt",), "beside": True, **more}
    return run(config, prompt=prompt, existing=rule, **options)


def joined(rule: str, theirs: str, texts: str) -> str:
    """Both in one line, by a rule."""
    return f"{theirs}, {texts}\n" if rule == APPEND else f"{texts}, {theirs}\n"


@pytest.mark.parametrize("rule", [APPEND, PREPEND])
def test_a_caption_is_put_to_a_text_once(config: CaptionConfig, text: Path, rule: str) -> None:
    result = put(config, rule)
    assert text.read_text() == joined(rule, "ohwx, best quality", ours("A?"))
    assert result.warnings == [] and "1 written" in result.line()
    before = text.stat()
    put(config, rule)
    assert text.stat() == before
    text.write_text(text.read_text().replace("best quality", "worst of all. By hand"))
    put(config, rule)
    assert text.read_text() == joined(rule, "ohwx, worst of all. By hand", ours("A?"))
    put(config, rule, "B?")
    assert text.read_text() == joined(rule, "ohwx, worst of all. By hand", ours("B?"))
    put(config, rule, "A?")
    assert text.read_text() == joined(rule, "ohwx, worst of all. By hand", ours("A?"))


@pytest.mark.parametrize("rule", [APPEND, PREPEND])
def test_a_text_edited_by_a_person_is_theirs(config: CaptionConfig, text: Path, rule: str) -> None:
    put(config, rule)
    edited = text.read_text().replace("über dem", "unter dem").replace("best", "worst")
    text.write_text(edited)
    for prompt in ("A?", "B?"):
        result = put(config, rule, prompt)
        assert text.read_text() == edited
        assert any("1 .txt file whose generated part was edited" in n for n in result.warnings)
        assert "1 edited by users kept" in result.line()
    put(config, "replace", "B?")
    assert text.read_text() == f"{ours('B?')}\n"
    put(config, rule, "C?")
    assert text.read_text() == f"{ours('C?')}\n"


def test_the_rule_may_change_between_runs(config: CaptionConfig, text: Path) -> None:
    put(config, APPEND)
    put(config, PREPEND)
    assert text.read_text() == f"{ours('A?')}, ohwx, best quality\n"
    put(config, APPEND, "B?")
    both = f"ohwx, best quality, {ours('B?')}\n"
    assert text.read_text() == both
    for rule in (None, "keep"):
        result = put(config, rule, "C?")
        assert text.read_text() == both
        assert any("that users wrote or edited" in note for note in result.warnings)
    result = put(config, None, "C?", format=(), beside=False)
    assert any("from an earlier run: 1 .txt file beside" in note for note in result.warnings)
    put(config, "replace", "C?")
    assert text.read_text() == f"{ours('C?')}\n"


def test_what_is_ours_or_not_there_is_written_anew(config: CaptionConfig, text: Path) -> None:
    text.unlink()
    for rule, prompt in ((APPEND, "A?"), (APPEND, "B?"), (PREPEND, "C?")):
        put(config, rule, prompt)
        assert text.read_text() == f"{ours(prompt)}\n"
    text.write_text(" \n")
    put(config, APPEND, "D?")
    assert text.read_text() == f"{ours('D?')}\n"
    text.write_text(f"{ours('D?')} and more\n")
    put(config, APPEND, "D?")
    assert text.read_text() == f"{ours('D?')} and more\n"  # it says so already


@pytest.mark.parametrize(
    ("theirs", "texts", "has"),
    [
        ("hundred cats", "red", False),
        ("blueberry, blue", "blue", True),
        ("A largest thing", "A large", False),
        ("cat, dog", "cat", True),
        ("category", "cat", False),
        ("Schönheit", "Schön", False),
        ("so red.", "red.", True),
    ],
)
def test_a_text_has_a_caption_only_as_words_of_its_own(
    tmp_path: Path, theirs: str, texts: str, has: bool
) -> None:
    store: Any = SimpleNamespace(local=tmp_path)
    for rule in (APPEND, PREPEND):
        path = tmp_path / f"{rule}.txt"
        path.write_text(f"{theirs}\n")
        assert JoinedTexts(GeneratedFiles(store), "txt").update(path, ("a",), f"{texts}\n", rule)
        expected = f"{theirs}\n" if has else joined(rule, theirs, texts)
        assert path.read_text() == expected


def test_a_person_s_words_alone_get_the_caption_again(config: CaptionConfig, text: Path) -> None:
    put(config, APPEND)
    both = text.read_text()
    text.write_text("ohwx, best quality")
    put(config, APPEND)
    assert text.read_text() == both


@pytest.mark.parametrize("rule", [APPEND, PREPEND])
def test_a_run_that_was_killed_before_it_wrote_puts_the_caption_once(
    config: CaptionConfig, text: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Interrupted("killed")

    for prompt in ("A?", "B?"):
        with monkeypatch.context() as patch:
            patch.setattr(flows.media.generated_files, "write_text", killed)
            with pytest.raises(Interrupted):
                put(config, rule, prompt)
        put(config, rule, prompt)
        assert text.read_text() == joined(rule, "ohwx, best quality", ours(prompt))


def test_lines_are_joined_at_lines_of_their_own(config: CaptionConfig, tmp_path: Path) -> None:
    video = Path(config.sources[0]) / LONG
    text = video.with_suffix(".txt")
    text.write_text("tags\n")
    for prompt in ("A?", "B?"):
        put(config, APPEND, prompt, sources=(str(video),))
        mine, *texts = text.read_text().splitlines()
        assert mine == "tags" and len(texts) == 3
        assert all(line.startswith(prompt) for line in texts)
    put(config, PREPEND, "B?", sources=(str(video),))
    assert text.read_text().splitlines() == [*texts, "tags"]


@pytest.mark.parametrize(
    ("mine", "both"),
    [
        ("A sentence.", "A sentence. {}\n"),
        ("tag, tag,\r\n", "tag, tag, {}\n"),
        ("one\r\ntwo\r\n", "one\r\ntwo\n{}\n"),
        ("\ufeffÜbung", "\ufeffÜbung, {}\n"),
    ],
)
def test_between_the_two_stands_what_readers_of_tags_and_sentences_expect(
    config: CaptionConfig, text: Path, mine: str, both: str
) -> None:
    text.write_bytes(mine.encode())
    for prompt in ("A?", "B?"):
        put(config, APPEND, prompt)
        assert text.read_bytes().decode() == both.format(ours(prompt))
    put(config, PREPEND)
    assert text.read_bytes().decode().removeprefix("\ufeff").startswith("A?")
    assert text.read_bytes().decode().startswith("\ufeff") == mine.startswith("\ufeff")


def test_what_is_no_text_is_kept(config: CaptionConfig, text: Path, tmp_path: Path) -> None:
    for content in ("Fluß".encode("latin-1"), "x".encode("utf-16"), b"x" * (1 << 17)):
        text.write_bytes(content)
        assert any("kept" in note for note in put(config, APPEND).warnings)
        assert text.read_bytes() == content
    other = tmp_path / "other.txt"
    other.write_text("mine")
    text.unlink()
    text.symlink_to(other)
    put(config, APPEND)
    assert os.path.islink(text) and other.read_text() == "mine"


def test_texts_of_a_moved_folder_are_ours(
    config: CaptionConfig, text: Path, tmp_path: Path
) -> None:
    put(config, APPEND)
    moved = text.parent.rename(tmp_path / "moved")
    put(config, APPEND, "B?", sources=(str(moved / "photo.PNG"),), out=str(tmp_path / "o2"))
    assert (moved / text.name).read_text() == f"ohwx, best quality, {ours('B?')}\n"
    edited = (moved / text.name).read_text().replace("Fluß", "See")
    (moved / text.name).write_text(edited)
    again = moved.rename(tmp_path / "again")
    put(config, APPEND, "C?", sources=(str(again / "photo.PNG"),))
    assert (again / text.name).read_text() == edited


def test_texts_in_the_folder_of_outputs_are_joined_too(config: CaptionConfig) -> None:
    text = Path(config.out) / "photo.txt"
    text.parent.mkdir()
    text.write_text("mine")
    put(config, APPEND, beside=False)
    put(config, APPEND, "B?", beside=False, format=())
    assert text.read_text() == f"mine, {ours('B?')}\n"


def test_through_any_runs_and_edits_no_word_of_a_person_s_is_lost(tmp_path: Path) -> None:
    draw = random.Random(int(os.environ["PENSTOCK_TEST_SEED"]))
    store: Any = SimpleNamespace(local=tmp_path)
    letters = ["a", "b, ", " ", "\n", ".", "é", "🐦", ",", "\t", "'"]
    for number in range(60):
        texts = JoinedTexts(GeneratedFiles(store), "txt")
        path = tmp_path / f"{number}.txt"
        words = [f"w{number}"]
        path.write_text(words[0] + "".join(draw.choices(letters, k=draw.randrange(9))))
        for step in range(8):
            caption = f"said{draw.randrange(3)}" + "".join(draw.choices(letters, k=3)) + "end"
            if draw.random() < 0.5:  # a person adds a word at a border of words
                place = draw.choice([0, len(path.read_text())])
                words.append(f"w{number}x{step}")
                now = path.read_text()
                path.write_text(f"{now[:place]} {words[-1]} {now[place:]}")
            texts.update(path, (f"about {number}",), f"{caption}\n", draw.choice([APPEND, PREPEND]))
            assert all(word in path.read_text() for word in words)
            assert path.read_text().count("said") <= 1
