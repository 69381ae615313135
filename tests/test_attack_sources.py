"""Sources and lists of every odd kind: each is named or captioned, and what lies beside it too."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

import penstock_demo
from flows.cli.main import main
from tests.support.attacks import attacked, seeded
from tests.support.pipeline import read_lines
from tests.test_attack_out_folder import bind

pytestmark = pytest.mark.slow
GOOD = "good.mp4"


def linked(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.parent / "a-pipe")
    path.symlink_to("a-pipe")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


def node(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("takes root")


ODD: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "socket": bind,
    "device": node,
    "link to zero": linked("/dev/zero"),
    "link to stdin": linked("/dev/stdin"),
    "link to a fifo": link_to_fifo,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nowhere": linked("nowhere"),
    "folder": Path.mkdir,
    "link to the folder": linked("."),
    "noise": lambda path: path.write_bytes(seeded(path.suffix).randbytes(4096)),
    "empty": Path.touch,
    "sparse": huge,
}
WAYS = ("folder", "direct", "glob", "list", "as a list")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "videos"
    found.mkdir()
    shutil.copyfile(penstock_demo.CLIPS / "clip-01.mp4", found / GOOD)
    yield found
    subprocess.run(["rm", "-rf", found], check=True)  # names that Python's own stumbles over


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The exit code of a plan of the demo model over sources, and what was said."""

    def of(*sources: str, more: tuple[str, ...] = ()) -> tuple[int, str]:
        store = str(tmp_path.parent / "attacked-store")  # one, so that the model is described once
        code = main(["plan", *sources, "--model", "demo", "--store", store, "--json", *more])
        shown = capsys.readouterr()
        text = shown.out + shown.err
        assert "Traceback" not in text
        assert "unexpected error" not in text
        assert code in (0, 2, 5), text
        return code, text

    return of


def source_of(way: str, folder: Path, name: str) -> str:
    if way == "list":
        (folder / "names.txt").write_text(f"{name}\n{GOOD}\n")
    return {
        "folder": str(folder),
        "direct": str(folder / name),
        "glob": f"{folder}/*.mp4",
        "list": f"@{folder}/names.txt",
        "as a list": f"@{folder}/{name}",
    }[way]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("kind", "way"), [*product(ODD, ("folder", "direct")), *product(("fifo", "noise"), WAYS[2:])]
)
def test_an_odd_file_hides_nothing(
    folder: Path, plan: Callable[..., tuple[int, str]], kind: str, way: str
) -> None:
    ODD[kind](folder / "bad.mp4")
    code, text = plan(source_of(way, folder, "bad.mp4"), str(folder / GOOD))
    assert code == 0, text
    assert json.loads(text)["files"] >= 1


LINES: dict[str, bytes] = {
    "nothing": b"",
    "itself": b"@names.foo\nnames.txt\n@names.txt\n./names.txt\n",
    "a list of lists": b"other.txt\n@other.foo\nother.jsonl\n",
    "bytes": seeded("bytes").randbytes(5000),
    "UTF-16": f"{GOOD}\n".encode("utf-16"),
    "a mark before": b"\xef\xbb\xbf" + f"{GOOD}\n".encode(),
    "nulls": b"a\0b\n\0\n",
    "a line of a megabyte": b"x" * (1 << 20) + b"\n",
    "home of nobody": b"~nobody-at-all/x.mp4\n~/x.mp4\n",
    "stars": b"*\n**\n[\n[!\n" + b"*/" * 200 + b"*\n",
    "devices": b"/dev/zero\n/dev/stdin\n/dev/fd/0\n",
    "parents": b"../" * 500 + b"etc/passwd\n",
    "options": b"--model\n-h\n--\n",
}
ENTRIES: dict[str, str] = {
    "nested lists": "[" * 100_000,
    "no object": "7",
    "no path": '{"prompt": "What?"}',
    "a path that is a list": '{"path": ["a.mp4"]}',
    "half a character": '{"path": "\\ud800.mp4"}',
    "an empty path": '{"path": ""}',
    "a prompt of numbers": '{"path": "good.mp4", "prompt": 7}',
    "no number": '{"path": NaN}',
    "twice": '{"path": "good.mp4", "path": "/dev/zero"}',
}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", [*LINES, *ENTRIES])
def test_a_list_of_anything_hides_nothing(
    folder: Path,
    plan: Callable[..., tuple[int, str]],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    name = "names.jsonl" if kind in ENTRIES else "names.txt"
    good = json.dumps({"path": GOOD}) if kind in ENTRIES else GOOD
    content = ENTRIES[kind].encode() + b"\n" if kind in ENTRIES else LINES[kind]
    Path(name).write_bytes(content)
    Path("names.foo").write_bytes(content)
    code, text = plan(name, "@names.foo", str(folder / GOOD))
    assert code == 0, text
    with Path(name).open("ab") as file:
        file.write(b"\n" + good.encode() + b"\n")
    plan(name)


NAMES: dict[str, bytes] = {
    "a new line": b"a\nb.mp4",
    "an escape": b"\x1b[2J\x07.mp4",
    "no UTF-8": b"\xff\xfe.mp4",
    "255 bytes": b"x" * 251 + b".mp4",
    "a star": b"*[!].mp4",
    "a tilde": b"~root.mp4",
    "an at": b"@list.mp4",
    "a dash": b"-v.mp4",
    "spaces": b" .mp4",
    "right to left": "\u202e4pm.mp4".encode(),
    "a backslash": b"a\\b.mp4",
}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", NAMES)
def test_a_name_of_anything_is_found(
    folder: Path, plan: Callable[..., tuple[int, str]], kind: str
) -> None:
    os.rename(folder / GOOD, os.fsencode(folder) + b"/" + NAMES[kind])
    code, text = plan(str(folder))
    assert code == 0, text
    assert json.loads(text)["files"] == 1


@pytest.mark.parametrize("kind", ["fifo", "link to zero", "noise"])
def test_a_whole_run_captions_what_is_good(folder: Path, tmp_path: Path, kind: str) -> None:
    ODD[kind](folder / "bad.mp4")
    out = tmp_path / "out"
    where = ("--out", out, "--store", tmp_path / "store")
    attacked("caption", folder, "--model", "demo", *where).holds(1)
    assert [row["media_path"] for row in read_lines(out / "captions.jsonl")] == [GOOD]
    assert [row["media_path"] for row in read_lines(out / "failures.jsonl")] == ["bad.mp4"]


@pytest.mark.parametrize("kind", ["fifo", "link to zero", "socket", "folder", "sparse"])
def test_a_prompt_is_read_from_files_alone(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ODD[kind](folder / "prompt")
    asked = ["--model", "demo", "--prompt-file", str(folder / "prompt")]
    assert main(["plan", str(folder), *asked]) == 2
    assert "cannot be read" in capsys.readouterr().err
