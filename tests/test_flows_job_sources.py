import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flows.job.media_files import MediaFile, Selection
from flows.job.source_texts import texts_among
from flows.job.sources import find_media

PLAIN = Selection(recursive=False, extensions=())
DEEP = Selection(recursive=True, extensions=())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for name in ("b.mp4", "a.MKV", "notes.docx", "photo.jpg", "deep/c.webm", ".hidden.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def names(found: list[MediaFile]) -> list[str]:
    return [file.media_path for file in found]


def test_a_folder_gives_its_media_in_name_order(folder: Path) -> None:
    found, failures = find_media([str(folder)], PLAIN)
    assert names(found) == ["a.MKV", "b.mp4", "photo.jpg"]
    assert [file.kind for file in found] == ["video", "video", "image"]
    assert {file.source for file in found} == {str(folder)}
    assert failures == []


def test_recursive_looks_into_folders_and_names_them_relative(folder: Path) -> None:
    found, _ = find_media([str(folder)], DEEP)
    assert names(found) == ["a.MKV", "b.mp4", "photo.jpg", "deep/c.webm"]


def test_a_symlink_loop_ends(folder: Path) -> None:
    (folder / "deep" / "back").symlink_to(folder)
    found, _ = find_media([str(folder)], DEEP)
    assert names(found) == ["a.MKV", "b.mp4", "photo.jpg", "deep/c.webm"]


def test_extensions_choose_files_of_folders_but_not_named_ones(folder: Path) -> None:
    chosen = Selection(recursive=True, extensions=("webm", ".DOCX"))
    found, _ = find_media([str(folder), str(folder / "b.mp4")], chosen)
    assert names(found) == ["notes.docx", "deep/c.webm", "b.mp4"]


def test_a_glob_is_expanded_here_when_no_shell_did(folder: Path) -> None:
    found, _ = find_media([f"{folder}/**/*.webm"], PLAIN)
    assert names(found) == ["c.webm"]


def test_a_file_named_twice_is_taken_once(folder: Path) -> None:
    path = str(folder / "b.mp4")
    found, _ = find_media([path, path], PLAIN)
    assert names(found) == ["b.mp4"]


def test_a_list_names_files_relative_to_itself(folder: Path) -> None:
    (folder / "list.txt").write_text("# two\nb.mp4\n\ndeep/c.webm\n")
    (folder / "list.jsonl").write_text(json.dumps({"path": "a.MKV"}) + "\n")
    found, failures = find_media([f"@{folder}/list.txt", str(folder / "list.jsonl")], PLAIN)
    assert names(found) == ["b.mp4", "c.webm", "a.MKV"]
    assert failures == []


@pytest.mark.parametrize(
    ("line", "error"),
    [("gone.mp4", "missing"), ("{}", "list"), ("other.txt", "list")],
)
def test_a_bad_line_of_a_list_fails_alone(folder: Path, line: str, error: str) -> None:
    suffix = "jsonl" if line == "{}" else "txt"
    good = json.dumps({"path": "b.mp4"}) if suffix == "jsonl" else "b.mp4"
    path = folder / f"list.{suffix}"
    path.write_text(f"{line}\n{good}\n")
    found, failures = find_media([str(path)], PLAIN)
    assert names(found) == ["b.mp4"]
    assert [failure.error for failure in failures] == [error]


def write_list(folder: Path, *lines: object) -> str:
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    (folder / "list.jsonl").write_text(text, encoding="utf-8")
    return str(folder / "list.jsonl")


def test_a_line_may_ask_something_of_its_own(folder: Path) -> None:
    asked = "How many?\u2028And who?\n"
    source = write_list(
        folder,
        {"path": "b.mp4", "prompt": asked},
        {"path": "a.MKV"},
        {"path": "deep", "prompt": "Where?", "licence": "CC0"},
        {"path": "photo.jpg", "prompt": None},
    )
    found, failures = find_media([source], PLAIN)
    assert failures == []
    assert [(file.media_path, file.prompt) for file in found] == [
        ("b.mp4", asked),
        ("a.MKV", None),
        ("c.webm", "Where?"),
        ("photo.jpg", None),
    ]


def test_a_file_is_taken_once_for_each_thing_asked(folder: Path) -> None:
    lines = [{"path": "b.mp4", "prompt": asked} for asked in ("Who?", "Where?", "Who?", "What?")]
    source = write_list(folder, *lines, {"path": "b.mp4"}, {"path": "b.mp4"})
    found, _ = find_media([source], PLAIN, prompt_for=lambda kind: "What?")
    assert [file.prompt for file in found] == ["Who?", "Where?", "What?"]


@pytest.mark.parametrize(
    "line",
    [
        {"path": "b.mp4", "prompt": ""},
        {"path": "b.mp4", "prompt": " \n"},
        {"path": "b.mp4", "prompt": 5},
        {"path": "b.mp4", "prompt": ["Who?"]},
        {"path": 7},
        {"path": ""},
        ["b.mp4"],
        "b.mp4",
    ],
)
def test_a_line_that_makes_no_sense_fails_by_its_number(folder: Path, line: object) -> None:
    found, (failure,) = find_media([write_list(folder, {"path": "a.MKV"}, line)], PLAIN)
    assert names(found) == ["a.MKV"]
    assert (failure.error, failure.stage) == ("list", "sources")
    assert failure.message.startswith("line 2 of the list ") and '"prompt"' in failure.hint


@pytest.mark.parametrize("field", ["path", "prompt"])
def test_half_a_character_in_a_line_fails_by_its_number(folder: Path, field: str) -> None:
    line = {"path": "b.mp4", "prompt": "Who?", field: "x\ud83d"}
    (folder / "list.jsonl").write_text(json.dumps(line))
    found, (failure,) = find_media([str(folder / "list.jsonl")], PLAIN)
    assert found == [] and failure.message.startswith("line 1 of the list holds half a character")


def test_a_list_that_begins_with_a_byte_order_mark_is_read(folder: Path) -> None:
    (folder / "list.txt").write_bytes("b.mp4\r\na.MKV\r\n".encode("utf-8-sig"))
    found, failures = find_media([str(folder / "list.txt")], PLAIN)
    assert names(found) == ["b.mp4", "a.MKV"] and failures == []


def test_what_cannot_be_found_is_named_with_a_hint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sources = [str(tmp_path / "gone.mp4"), str(tmp_path / "empty"), str(tmp_path / "*.avi")]
    found, failures = find_media([*sources, str(folder)], PLAIN)
    assert len(found) == 3
    assert [failure.error for failure in failures] == ["missing", "no-media", "no-match"]
    assert all(failure.hint and failure.stage == "sources" for failure in failures)


def test_limit_counts_files(folder: Path) -> None:
    found, _ = find_media([str(folder)], PLAIN, limit=2)
    assert names(found) == ["a.MKV", "b.mp4"]


def test_names_with_brackets_spaces_and_umlauts_are_files_not_patterns(tmp_path: Path) -> None:
    name = "[1] Übung - teil 2.mp4"
    (tmp_path / name).write_bytes(b"x")
    found, failures = find_media([str(tmp_path / name)], PLAIN)
    assert names(found) == [name]
    assert failures == []


def test_a_relative_source_gives_an_absolute_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found, _ = find_media(["b.mp4"], PLAIN)
    assert found[0].path == Path(os.getcwd(), "b.mp4")
    assert found[0].source == "b.mp4"


@pytest.mark.parametrize(
    "line",
    [
        "a\0b.mp4",
        "a\0/*.mp4",
        "\0",
        "a\nb.mp4",
        "../" * 40 + "nothing.mp4",
        "/dev/null/x.mp4",
        "@/etc/passwd",
        "x" * 5000 + ".mp4",
        "{a,b}.mp4",
        "[",
    ],
)
def test_a_hostile_line_of_a_list_is_a_failure_and_no_more(tmp_path: Path, line: str) -> None:
    (tmp_path / "here.mp4").touch()
    rows = [{"path": line}, {"path": "here.mp4"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files, failures = find_media(
        [str(tmp_path / "list.jsonl")], Selection(recursive=False, extensions=())
    )
    assert [file.media_path for file in files] == ["here.mp4"]
    assert len(failures) == 1


def test_listed_files_bear_their_own_name_wherever_they_lie(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for name in ("a\nb.mp4", "c.mp4", "...mp4"):
        (tmp_path / name).touch()
    names = ["../../a\nb.mp4", str(tmp_path / "c.mp4"), "../er/../../...mp4", "../.."]
    (folder / "list.jsonl").write_text("\n".join(json.dumps({"path": name}) for name in names))
    files, failures = find_media(
        [str(folder / "list.jsonl")], Selection(recursive=False, extensions=())
    )
    assert [f.media_path for f in files] == ["a\nb.mp4", "c.mp4", "...mp4"]
    assert failures == []


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


ODD = ("fifo", "socket", "link to a device", "link to a fifo")


@pytest.mark.parametrize("kind", ODD)
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


@pytest.mark.parametrize("source", ["/dev/zero", "@/dev/zero", "/dev/null", "@/dev/null"])
def test_a_device_is_named_and_never_opened(source: str) -> None:
    found, failures = find_media([source], PLAIN)
    assert found == []
    assert [(failure.error, failure.message) for failure in failures] == [
        ("not-a-file", "this is a device, not a file")
    ]


def test_a_list_of_itself_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("l.foo").write_text("@l.foo\nb.mp4\n")
    Path("m.foo").write_text("@n.foo\na.MKV\n")
    Path("n.foo").symlink_to("m.foo")
    found, failures = find_media(["@l.foo", "@m.foo"], PLAIN)
    assert names(found) == ["b.mp4", "a.MKV"]
    assert [failure.media_path for failure in failures] == ["@l.foo", "@n.foo"]
    assert {failure.message for failure in failures} == {"line 1 names another list"}


def test_a_line_of_a_list_nested_deeply_fails_alone(folder: Path) -> None:
    deep = '{"path": ' + "[" * 100_000 + "]" * 100_000 + "}"
    (folder / "list.jsonl").write_text(deep + "\n" + json.dumps({"path": "b.mp4"}) + "\n")
    found, failures = find_media([str(folder / "list.jsonl")], PLAIN)
    assert names(found) == ["b.mp4"]
    assert [failure.message for failure in failures] == [
        "line 1 of the list is no JSON object with a path"
    ]


def test_a_list_longer_than_any_list_is_refused_unread(folder: Path) -> None:
    with (folder / "list.txt").open("wb") as file:
        file.truncate(1 << 40)
    found, failures = find_media([str(folder / "list.txt"), str(folder / "b.mp4")], PLAIN)
    assert names(found) == ["b.mp4"]
    assert "larger than the 256 MiB" in failures[0].message


def test_a_folder_that_cannot_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if os.path.basename(path) == "deep":  # as for anybody but root
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found, failures = find_media([str(folder)], DEEP)
    assert names(found) == ["a.MKV", "b.mp4", "photo.jpg"]
    assert [(f.error, f.message) for f in failures] == [
        ("unreadable", "the folder cannot be read (Permission denied)")
    ]


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


@pytest.mark.timeout(30)
def test_a_line_of_brackets_is_no_pattern_that_takes_minutes(folder: Path) -> None:
    (folder / "list.txt").write_text("[" * 100_000 + "\nb.mp4\n")
    found, failures = find_media([f"@{folder}/list.txt"], PLAIN)
    assert names(found) == ["b.mp4"]
    assert [failure.error for failure in failures] == ["missing"]


def test_a_text_beside_a_medium_of_its_stem_is_no_list(folder: Path) -> None:
    for name in ("b.txt", "photo.jpg.txt", "a.TXT", "other.txt"):
        (folder / name).write_text("a ring moves left\n")
    (folder / "other.txt").write_text("deep/c.webm\n")
    every = sorted(str(path) for path in folder.iterdir() if path.is_file())
    found, failures = find_media([e for e in every if ".docx" not in e], PLAIN)
    assert names(found) == [".hidden.mp4", "a.MKV", "b.mp4", "c.webm", "photo.jpg"]
    assert failures == []
    for sources, selection in (
        ([str(folder), f"{folder}/b.txt"], PLAIN),
        ([str(folder.parent), f"{folder}/b.txt"], DEEP),
    ):
        assert find_media(sources, selection)[1] == []


def test_a_text_is_a_list_where_its_medium_is_not_named_or_an_at_says_so(folder: Path) -> None:
    (folder / "b.txt").write_text("photo.jpg\n")
    for sources in (
        [f"{folder}/b.txt"],
        [f"@{folder}/b.txt", f"{folder}/b.mp4"],
        [str(folder.parent), f"{folder}/b.txt"],
    ):
        found, _ = find_media(sources, PLAIN)
        assert "photo.jpg" in names(found)
    assert find_media([f"{folder}/\0.txt", f"{folder}/b.mp4"], PLAIN)[0]


def test_a_text_named_after_a_prompt_is_no_list(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.short.txt", "a.short.mp4.txt", "a.list.txt"):
        (tmp_path / name).write_text("a.mp4")
    given = [str(tmp_path / name) for name in ("a.mp4", "a.short.txt", "a.short.mp4.txt")]
    assert texts_among(
        [*given, str(tmp_path / "a.list.txt")], recursive=False, names=["short"]
    ) == {*given[1:]}
    assert texts_among([str(tmp_path), given[1]], recursive=False, names=["short"]) == {given[1]}
    assert not texts_among(given, recursive=False)
