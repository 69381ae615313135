"""Which media of this machine sources mean, and in which order."""

import csv
import errno
import io
import json
import os
import shlex
import socket
import subprocess
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from artifacts.disk.files import OURS
from flows.core.media.media_file import MediaFile, Selection
from flows.core.media.sources import find_media, left_out_note, texts_among
from tests.support.faults import failing

PLAIN = Selection(recursive=False, extensions=())
DEEP = Selection(recursive=True, extensions=())
CHOSEN = Selection(recursive=True, extensions=("webm", ".DOCX"))


def write_all(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = ("b.mp4", "a.MKV", "notes.docx", "photo.jpg", "deep/c.webm", ".hidden.mp4")
    return write_all(tmp_path / "videos", *files)


def names(found: list[MediaFile]) -> list[str]:
    return [file.media_path for file in found]


def asked(found: list[MediaFile]) -> list[tuple[str, str | None]]:
    return [(file.media_path, file.prompt) for file in found]


@pytest.mark.parametrize(
    ("sources", "selection", "expected"),
    [
        (["{}"], PLAIN, ["a.MKV", "b.mp4", "photo.jpg"]),
        (["{}"], DEEP, ["a.MKV", "b.mp4", "photo.jpg", "deep/c.webm"]),
        (["{}", "{}/b.mp4"], CHOSEN, ["notes.docx", "deep/c.webm", "b.mp4"]),
        (["{}/**/*.webm"], PLAIN, ["c.webm"]),
        (["{}/b.mp4", "{}/b.mp4"], PLAIN, ["b.mp4"]),
    ],
)
def test_media_of_folders_and_patterns_are_found_in_name_order(
    folder: Path, sources: list[str], selection: Selection, expected: list[str]
) -> None:
    if selection.recursive:
        (folder / "deep" / "back").symlink_to(folder)  # a loop
    given = [source.format(folder) for source in sources]
    found, failures = find_media(given, selection)
    assert names(found) == expected and failures == []
    assert {file.source for file in found} <= {*given}
    kinds = {".webm": "video", ".MKV": "video", ".mp4": "video", ".jpg": "image"}
    assert all(file.kind == kinds.get(file.path.suffix, file.kind) for file in found)
    limited, _ = find_media(given, selection, limit=2)
    assert names(limited) == [expected[0], expected[len(expected) // 2]][: len(expected)]


def test_a_limit_takes_files_of_every_folder(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{folder}/{number}.jpg" for folder in "abcd" for number in range(10)))
    found, _ = find_media([str(tmp_path)], DEEP, limit=4)
    assert names(found) == ["a/0.jpg", "b/0.jpg", "c/0.jpg", "d/0.jpg"]


def test_subfolders_with_media_that_are_not_read_are_named(folder: Path) -> None:
    write_all(folder, ".hidden/a.mp4", "texts/a.txt", "clips/a.mp4", f"clips/{OURS}")
    sources = (str(folder), str(folder / "b.mp4"), "missing", "https://example.org/a.mp4")
    note = left_out_note(sources, PLAIN)
    assert note == f"1 subfolder with media not read ({folder}/deep/); add --recursive"
    assert left_out_note(sources, DEEP) == left_out_note(sources[1:], PLAIN) == ""


def test_a_folder_two_levels_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path, "films/one.mp4", "films/a/b/two.mp4", "films/a/c/d/three.mp4")
    (tmp_path / "films" / "a" / "back").symlink_to(tmp_path / "films")
    found, failures = find_media(["films"], PLAIN)
    assert (names(found), failures) == (["one.mp4"], [])
    note = left_out_note(["films"], PLAIN)
    assert note == "2 subfolders with media not read (films/a/b/, …); add --recursive"
    found, _ = find_media(["films"], DEEP)
    assert len(found) == 3 and left_out_note(["films"], DEEP) == ""


def test_media_of_less_common_suffixes_are_taken_and_others_are_counted(tmp_path: Path) -> None:
    taken = {"a.MPO": "image", "b.jp2": "image", "c.tga": "image", "d.apng": "video"}
    taken |= {"e.jpe": "image", "f.hif": "image", "g.qt": "video", "h.m2t": "video"}
    others = ["x.NEF", "y.nef", "z.jxl", "a.txt", "list.json", "b.srt", "w.safetensors", ".k.nef"]
    write_all(tmp_path, *taken, *others, "in/i.psd")
    found, failures = find_media([str(tmp_path)], PLAIN)
    assert {file.media_path: file.kind for file in found} == taken and failures == []
    note = left_out_note([str(tmp_path)], PLAIN)
    assert note == "not taken: 2 .nef, 1 .jxl; convert them, for example to .png or .mp4"
    assert "not taken: 2 .nef, 1 .jxl, 1 .psd;" in left_out_note([str(tmp_path)], DEEP)
    assert left_out_note([str(tmp_path)], CHOSEN) == ""


def test_files_of_sound_alone_are_counted(tmp_path: Path) -> None:
    write_all(tmp_path, "a.mp4", "a.mp3", "b.MP3", "c.wav")
    assert left_out_note([str(tmp_path)], PLAIN) == "not taken: 2 .mp3, 1 .wav (sound alone)"
    write_all(tmp_path, "d.nef")
    note = "not taken: 2 .mp3, 1 .wav, 1 .nef; convert them, for example to .png or .mp4"
    assert left_out_note([str(tmp_path)], PLAIN) == note


@pytest.mark.parametrize("pattern", ["", "/*.dng"])
def test_a_source_with_other_media_alone_says_what_they_are(tmp_path: Path, pattern: str) -> None:
    write_all(tmp_path, "a.dng", "b.DNG" if not pattern else "b.dng")
    (failure,) = find_media([f"{tmp_path}{pattern}"], PLAIN)[1]
    assert failure.message.startswith("not taken: 2 .dng; convert them")


@pytest.mark.parametrize("pattern", ["", "/**/*.jpg"])
def test_what_a_file_server_keeps_for_itself_is_only_named(tmp_path: Path, pattern: str) -> None:
    kept = ["@eaDir/photo.jpg/SYNOPHOTO_THUMB_XL.jpg", "in/@eaDir/b.jpg/SYNOPHOTO_THUMB_M.jpg"]
    kept += [".@__thumb/s800photo.jpg", ".thumbnails/photo.jpg", "#recycle/old.jpg"]
    names = ["#snapshot", "$RECYCLE.BIN", "$Recycle.Bin", "@Recently-Snapshot", "@Snapshots"]
    names += ["@SynoResource", "@tmp", "System Volume Information", "__MACOSX", "lost+found"]
    kept += [f"{name}/photo.jpg" for name in names]
    write_all(tmp_path, "photo.jpg", "in/b.jpg", *kept)
    found, failures = find_media([f"{tmp_path}{pattern}"], DEEP)
    assert sorted(file.path for file in found) == [tmp_path / "in/b.jpg", tmp_path / "photo.jpg"]
    assert failures == []
    named = ", ".join(sorted([*names, "#recycle", ".@__thumb", ".thumbnails", "@eaDir"]))
    assert left_out_note([str(tmp_path)], DEEP).endswith(f" for themselves ({named})")
    assert left_out_note([str(tmp_path)], PLAIN).startswith("1 subfolder with media not read (")
    for one in kept:  # whoever names such a folder means it
        found, _ = find_media([str((tmp_path / one).parent)], PLAIN)
        assert [file.path for file in found] == [tmp_path / one]
    found, _ = find_media([f"{tmp_path}/@eaDir/*/*.jpg"], PLAIN)
    assert [file.path for file in found] == [tmp_path / kept[0]]


def test_a_list_names_files_relative_to_itself(folder: Path) -> None:
    text = "b.mp4\r\n# a comment\n\ndeep/c.webm\n"
    (folder / "list.txt").write_text(text, encoding="utf-8-sig", newline="")
    (folder / "list.jsonl").write_text(json.dumps({"path": "a.MKV"}) + "\n")
    found, failures = find_media([f"@{folder}/list.txt", str(folder / "list.jsonl")], PLAIN)
    assert names(found) == ["b.mp4", "c.webm", "a.MKV"]
    assert failures == []


def write_list(folder: Path, *lines: object) -> str:
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    (folder / "list.jsonl").write_text(text, encoding="utf-8")
    return str(folder / "list.jsonl")


def test_a_line_may_ask_something_of_its_own(folder: Path) -> None:
    request = "How many?\u2028And who?\n"
    source = write_list(
        folder,
        {"path": "b.mp4", "prompt": request},
        {"path": "a.MKV"},
        {"path": "deep", "prompt": "Where?", "licence": "CC0"},
        {"path": "photo.jpg", "prompt": None},
    )
    found, failures = find_media([source], PLAIN)
    assert failures == []
    rows = [("b.mp4", request), ("a.MKV", None), ("c.webm", "Where?"), ("photo.jpg", None)]
    assert asked(found) == rows


def test_a_file_is_taken_once_for_each_thing_asked(folder: Path) -> None:
    requests = ({"prompt": "Who?"}, {"prompt": "Where?"}, {"prompt": "Who?"}, {"prompt": "What?"})
    source = write_list(folder, *({"path": "b.mp4", **each} for each in (*requests, {}, {})))
    found, _ = find_media([source], PLAIN, prompt_for=lambda kind: "What?")
    assert [file.prompt for file in found] == ["Who?", "Where?", "What?"]


BAD = "names no path"
HOSTILE = (
    "a\0b.mp4", "a\0/*.mp4", "\0", "a\nb.mp4", "../" * 40 + "nothing.mp4", "/dev/null/x.mp4",
    "@/etc/passwd", "x" * 5000 + ".mp4", "{a,b}.mp4", "[" * 100_000, "gone.mp4",
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        *((json.dumps({"path": "b.mp4", "prompt": p}), "list", "") for p in ("", " \n", 5, ["?"])),
        *((json.dumps(odd), "list", "") for odd in ({"path": 7}, {"path": ""}, ["b.mp4"], "b", {})),
        ('{"path": ' + "[" * 100_000 + "]" * 100_000 + "}", "list", BAD),
        ('{"path": "x\\ud83d", "prompt": "Who?"}', "list", "holds half of a surrogate pair"),
        ('{"path": "b.mp4", "prompt": "x\\ud83d"}', "list", "holds half of a surrogate pair"),
        *((json.dumps({"path": path}), "", "") for path in HOSTILE),
    ],
)
def test_a_bad_line_of_a_list_fails_alone(folder: Path, line: str, error: str, says: str) -> None:
    path = folder / "list.jsonl"
    path.write_text('{"path": "a.MKV"}\n' + line + '\n{"path": "photo.jpg"}\n')
    found, (failure,) = find_media([str(path)], PLAIN)
    assert names(found) == ["a.MKV", "photo.jpg"] and failure.stage == "sources"
    if error:
        assert failure.error == error and says in failure.message and failure.hint
        assert failure.message.startswith("line 2 of the list ")


def test_what_cannot_be_found_is_named_with_a_hint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sources = [str(tmp_path / "gone.mp4"), str(tmp_path / "empty"), str(tmp_path / "*.avi")]
    found, failures = find_media([*sources, str(folder)], PLAIN)
    assert len(found) == 3
    assert [failure.error for failure in failures] == ["missing", "no-media", "no-match"]
    assert all(failure.hint and failure.stage == "sources" for failure in failures)


@pytest.mark.parametrize(("disk", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_in_another_unicode_form_is_told_as_the_disk_has_it(
    tmp_path: Path, disk: Literal["NFC", "NFD"], typed: Literal["NFC", "NFD"]
) -> None:
    there = Path(unicodedata.normalize(disk, f"{tmp_path}/Zürich im Mai/Übung.jpg"))
    there.parent.mkdir()
    there.touch()
    for place in (there, there.parent):
        _, (failure,) = find_media([unicodedata.normalize(typed, str(place))], PLAIN)
        (meant,) = [word for word in shlex.split(failure.hint) if word.startswith("/")]
        assert failure.error == "missing" and meant.removesuffix("?") == str(place)
    (tmp_path / "link").symlink_to("gone")
    for name in ("Zürich im Juni", "link", "link/a.jpg"):
        _, (failure,) = find_media([f"{tmp_path}/{name}"], PLAIN)
        assert "Did you mean" not in failure.hint
        assert ("a link to gone" in failure.message) == (name == "link")


def test_a_relative_source_is_made_absolute_and_a_file_with_brackets_is_no_pattern(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    name = "[1] Übung - teil 2.mp4"
    (folder / name).touch()
    (file,), failures = find_media([name], PLAIN)
    assert (file.path, file.media_path, file.source) == (folder / name, name, name)
    assert failures == []


def test_listed_files_bear_their_own_name_wherever_they_lie(tmp_path: Path) -> None:
    (folder := tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a\nb.mp4", "c.mp4", "...mp4"):
        (tmp_path / name).touch()
    given = ["../../a\nb.mp4", str(tmp_path / "c.mp4"), "../er/../../...mp4", "../.."]
    files, failures = find_media([write_list(folder, *({"path": name} for name in given))], PLAIN)
    assert names(files) == ["a\nb.mp4", "c.mp4", "...mp4"] and failures == []


def odd(path: Path, kind: str) -> Path:
    """A thing at `path` that is no file."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path.with_suffix(".pipe"))
        path.symlink_to(path.with_suffix(".pipe").name)
    return path


@pytest.mark.parametrize("kind", ["fifo", "socket", "link to a device", "link to a fifo"])
@pytest.mark.parametrize("way", ["folder", "direct", "glob", "list", "as a list", "by its suffix"])
def test_what_is_no_file_is_named_and_never_opened(folder: Path, kind: str, way: str) -> None:
    suffix = ".txt" if way == "by its suffix" else ".mp4"
    thing = odd(folder / f"odd{suffix}", kind)
    (folder / "the.txt").write_text("odd.mp4\nb.mp4\n") if way == "list" else None
    source = {
        "folder": str(folder),
        "glob": f"{folder}/*.mp4",
        "list": f"{folder}/the.txt",
        "as a list": f"@{thing}",
    }.get(way, str(thing))
    found, failures = find_media([source, str(folder / "b.mp4")], PLAIN)
    assert "b.mp4" in names(found)
    assert "odd.mp4" not in names(found)
    assert [failure.error for failure in failures] == ["not-a-file"]
    assert failures[0].hint
    if kind == "link to a device":
        assert failures[0].message == "this is a device, not a file"


def test_a_list_of_itself_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("l.foo").write_text("@l.foo\nb.mp4\n")
    Path("m.foo").write_text("@n.foo\na.MKV\n")
    Path("n.foo").symlink_to("m.foo")
    found, failures = find_media(["@l.foo", "@m.foo"], PLAIN)
    assert names(found) == ["b.mp4", "a.MKV"]
    assert [failure.media_path for failure in failures] == ["@l.foo", "@n.foo"]
    assert {failure.message for failure in failures} == {"line 1 names another list"}


ROWS = [["b.mp4", "Who?\u2028And why?"], ["deep/c.webm", 'How many, and "what"?\nWhere?']]
OBJECTS = [{"path": path, "prompt": prompt} for path, prompt in ROWS]


def table(delimiter: str, *header: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([[*header], *([*row, ""] for row in ROWS)])
    return text.getvalue()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", json.dumps(OBJECTS, indent=2, ensure_ascii=False)),
        ("list.csv", "\ufeff" + table(",", "path", "prompt", "licence")),
        ("LIST.CSV", table(";", "Path", " prompt", "note")),
        ("list.tsv", table("\t", "path", "prompt", "note")),
    ],
)
@pytest.mark.parametrize("mark", ["", "@"])
def test_lists_of_other_programs_are_read(folder: Path, name: str, text: str, mark: str) -> None:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    found, failures = find_media([f"{mark}{folder / name}"], PLAIN)
    assert failures == []
    assert asked(found) == [("b.mp4", ROWS[0][1]), ("c.webm", ROWS[1][1])]


@pytest.mark.parametrize(("name", "mark"), [("l.csv", ","), ("l.csv", ";"), ("l.tsv", "\t")])
def test_a_row_with_more_cells_than_columns_fails_alone(folder: Path, name: str, mark: str) -> None:
    rows = ["path,prompt,", "b.mp4,What is it, and where?", "a.MKV,Who?,,", ",,"]
    rows += ['b.mp4,"An ""x"""', 'b.mp4,"x" y', 'a.MKV,"never closed', "b.mp4,lost"]
    (folder / name).write_text("\n".join(rows).replace(",", mark))
    found, failures = find_media([str(folder / name)], PLAIN)
    assert asked(found) == [("a.MKV", "Who?"), ("b.mp4", 'An "x"')]
    cells, quote, end = (failure.message for failure in failures)
    why = "more cells than columns ('and where?' is in none)"
    assert cells == f"the list: line 2 cannot be read: {why}"
    assert "line 6 cannot be read" in quote and "line 7 cannot be read: unexpected end" in end
    assert all("Quote a cell" in failure.hint for failure in failures)
    (folder / name).write_text(f"path{mark}prompt{mark}prompt\nb.mp4{mark}a{mark}b\n")
    found, (failure,) = find_media([str(folder / name)], PLAIN)
    assert found == [] and "two columns are named 'prompt'" in failure.message


def test_a_column_prompts_of_a_table_is_noted(folder: Path) -> None:
    (folder / "l.csv").write_text("path,Prompts\nb.mp4,What is it?\n")
    for source in (str(folder / "l.csv"), f"@{folder / 'l.csv'}"):
        (found,), failures = find_media([source], PLAIN)
        assert (found.prompt, failures) == (None, [])
        advice = "name it `prompt`, or write prompts in a .jsonl list"
        note = left_out_note([source, str(folder / "b.mp4")], PLAIN)
        assert note == f"{source}: column `prompts` not read; {advice}"


def test_an_array_of_paths_is_a_list(folder: Path) -> None:
    (folder / "list.json").write_text(json.dumps(["b.mp4", "deep", "", "other.json", 7]))
    found, failures = find_media([str(folder / "list.json")], PLAIN)
    assert names(found) == ["b.mp4", "c.webm"]
    assert [failure.message for failure in failures] == [
        "entry 3 of the list names no path",
        "entry 4 names another list",
        "entry 5 of the list names no path",
    ]


@pytest.mark.parametrize(
    ("form", "text", "says"),
    [
        ("json", '{"path": "b.mp4"}\n{"path": "a.MKV"}', "the list cannot be read: Extra data"),
        ("json", '["b.mp4"', "the list cannot be read: Expecting ',' delimiter: line 1"),
        ("json", '{"a.mp4": {"caption": ""},\n "b.mp4": {}}', "entry 1 of the list names"),
        ("json", "[" * 100_000, "the list cannot be read: maximum recursion depth"),
        ("csv", "url,text\na.mp4,ring\n", "its first line names no column `path`"),
        ("csv", "", "its first line names no column `path`"),
        ("csv", "path,text\n" + "x" * 200_000 + ",ring\n", "field larger than field limit"),
        ("csv", "path,text\n,ring\n", "line 2 of the list names no path"),
    ],
)
def test_a_list_without_paths_is_one_failure(folder: Path, form: str, text: str, says: str) -> None:
    (path := folder / f"list.{form}").write_text(text)
    found, (failure,) = find_media([str(path)], PLAIN)
    assert found == [] and failure.error == "list"
    assert says in failure.message and failure.hint


def test_a_list_longer_than_any_list_is_refused_unread(folder: Path) -> None:
    with (folder / "list.txt").open("wb") as file:
        file.truncate(1 << 40)
    found, failures = find_media([str(folder / "list.txt"), str(folder / "b.mp4")], PLAIN)
    assert names(found) == ["b.mp4"]
    assert "larger than the limit of 256 MiB" in failures[0].message


def test_a_file_of_overlapping_sources_counts_once(folder: Path) -> None:
    """The first source names it; with another prompt it is another row."""
    deep, b = str(folder / "deep"), str(folder / "b.mp4")
    alone, _ = find_media([str(folder)], DEEP)
    (plain := folder.parent / "list.txt").write_text(f"{deep}\n{b}\n")
    assert find_media([str(folder), deep, f"@{plain}", b], DEEP) == (alone, [])
    asking = write_list(folder.parent, {"path": b, "prompt": "Who?"})
    found, _ = find_media([str(folder), f"@{asking}"], DEEP)
    assert [each.prompt for each in found] == [None] * len(alone) + ["Who?"]


def test_an_unreadable_folder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As for anybody but root.
    refusing = failing(errno.EACCES, os.scandir, lambda path: os.path.basename(path) == "deep")
    monkeypatch.setattr(os, "scandir", refusing)
    found, failures = find_media([str(folder)], DEEP)
    assert names(found) == ["a.MKV", "b.mp4", "photo.jpg"]
    assert [(f.error, f.message) for f in failures] == [
        ("unreadable", "the folder cannot be read (Permission denied)")
    ]


@pytest.mark.parametrize("name", ["disk", "disk.2", "deep/disk"])
def test_a_link_to_a_disk_that_is_away_is_a_failure_if_it_would_be_read_and_else_a_note(
    folder: Path, name: str
) -> None:
    (folder / name).symlink_to("/mnt/away/films")
    found, failures = find_media([str(folder)], DEEP)
    assert len(found) == 4
    assert [(f.error, f.media_path) for f in failures] == [("unreadable", str(folder / name))]
    assert "leads nowhere" in failures[0].message and "disk" in failures[0].hint
    assert find_media([str(folder)], PLAIN)[1] == []
    assert f"{folder / name}: the link leads nowhere" in left_out_note([str(folder)], PLAIN)
    (folder / name).unlink()
    (folder / name).symlink_to(folder)
    assert find_media([str(folder)], DEEP)[1] == []


def test_a_folder_with_nothing_but_a_link_that_leads_nowhere_has_no_media(tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to("/mnt/away")
    assert [f.error for f in find_media([str(tmp_path)], PLAIN)[1]] == ["no-media"]
    assert [f.error for f in find_media([str(tmp_path)], DEEP)[1]] == ["unreadable"]


def test_folders_in_folders_end_only_where_names_do(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=descriptor)
        before, descriptor = descriptor, os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(before)
    os.close(os.open("z.mp4", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    found, failures = find_media([str(folder)], DEEP)
    subprocess.run(["rm", "-rf", folder / "d"], check=True)  # too deep for Python's own
    assert len(found) == 5
    assert failures == []


def test_names_that_begin_with_a_dash_are_files_in_lists_and_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("--out.mp4", "x"), ("-list.txt", "--out.mp4\n")):
        (tmp_path / name).write_text(content)
    for source in ("--out.mp4", "-list.txt", "@-list.txt"):
        found, failures = find_media([source], PLAIN)
        assert [file.path for file in found] == [tmp_path / "--out.mp4"] and failures == []


def test_a_text_beside_a_medium_of_its_stem_is_no_list(folder: Path) -> None:
    for name in ("b.txt", "photo.jpg.txt", "a.TXT", "other.txt"):
        (folder / name).write_text("a ring moves left\n")
    (folder / "other.txt").write_text("deep/c.webm\n")
    every = sorted(str(path) for path in folder.iterdir() if path.is_file())
    found, failures = find_media([e for e in every if ".docx" not in e], PLAIN)
    assert names(found) == [".hidden.mp4", "a.MKV", "b.mp4", "c.webm", "photo.jpg"]
    assert failures == []
    for place, selection in ((folder, PLAIN), (folder.parent, DEEP)):
        assert find_media([str(place), f"{folder}/b.txt"], selection)[1] == []


def test_a_text_is_a_list_where_its_medium_is_not_named_or_an_at_says_so(folder: Path) -> None:
    (text := folder / "b.txt").write_text("photo.jpg\n")
    for sources in ([f"{text}"], [f"@{text}", f"{folder}/b.mp4"], [f"{folder.parent}", f"{text}"]):
        found, _ = find_media(sources, PLAIN)
        assert "photo.jpg" in names(found)
    assert find_media([f"{folder}/\0.txt", f"{folder}/b.mp4"], PLAIN)[0]


def test_a_text_named_after_a_prompt_is_no_list(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.short.txt", "a.short.mp4.txt", "a.list.txt"):
        (tmp_path / name).write_text("a.mp4")
    given = [str(tmp_path / name) for name in ("a.mp4", "a.short.txt", "a.short.mp4.txt")]
    for sources, texts in (
        ([*given, str(tmp_path / "a.list.txt")], given[1:]),
        ([str(tmp_path), given[1]], [given[1]]),
    ):
        assert texts_among(sources, recursive=False, names=["short"]) == {*texts}
    assert not texts_among(given, recursive=False)
