"""Files of every odd kind, as outputs and as sources: what reads a folder of outputs says so in a
line, and a run writes it anew; each source is named or captioned, and what lies beside it too."""

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from flows.cli.main import main
from tests.support.attacks import attacked, seeded
from tests.support.pipeline import read_lines

pytestmark = pytest.mark.slow
FILES = ("run.json", "captions.jsonl", "media.jsonl", "failures.jsonl")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outputs of a run, one of whose files failed, and its store beside it."""
    root = tmp_path_factory.mktemp("real")
    (root / "clips").mkdir()
    for name in ("clip-01.mp4", "clip-02.mp4"):
        shutil.copyfile(penstock_demo.CLIPS / name, root / "clips" / name)
    (root / "clips" / "bad.mp4").write_bytes(b"no video")
    attacked(*run_into(root), seconds=280).holds(1)
    return root


def run_into(root: Path, *more: str) -> list[str]:
    where = ["--out", str(root / "out"), "--store", str(root / "store")]
    return ["caption", str(root / "clips"), "--model", "demo", *where, *more]


@pytest.fixture
def out(real: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(real / "out", tmp_path / "out"))


Told = Callable[[Path], None]
Plan = Callable[..., tuple[int, str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """`status`, `status --json` and `report` of a folder end in at most one line."""

    def of(out: Path) -> None:
        for command in (["status"], ["status", "--json"], ["report"]):
            code, shown = main([*command, str(out)]), capsys.readouterr()
            assert "Traceback" not in shown.err
            assert "unexpected error" not in shown.err, shown.err
            assert code in (0, 2, 5)
            assert code == 0 or len(shown.err.splitlines()) == 1, shown.err

    return of


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def sparse(path: Path, size: int = 1 << 42) -> None:
    path.touch()
    os.truncate(path, size)


KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "socket": bind,
    "folder": Path.mkdir,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "empty": Path.touch,
    "sparse": sparse,
    "bytes": lambda path: path.write_bytes(seeded("out").randbytes(3000)),
    "nested lists": lambda path: path.write_text("[" * 100_000),
    "nested and whole": lambda path: path.write_text("[" * 900 + "]" * 900),
    "a list": lambda path: path.write_text("[1, 2]"),
    "no number": lambda path: path.write_text('{"a": NaN}'),
    "text": lambda path: path.write_text('"\\ud800"'),
    "UTF-16": lambda path: path.write_bytes("{}".encode("utf-16")),
    "an empty object": lambda path: path.write_text("{}"),
}


@pytest.mark.timeout(60, func_only=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FILES, "report.html"])
def test_a_file_of_another_kind_is_named(out: Path, told: Told, name: str, kind: str) -> None:
    (out / name).unlink(missing_ok=True)
    KINDS[kind](out / name)
    told(out)


@pytest.mark.timeout(120, func_only=True)
@pytest.mark.parametrize("how", ["flipped", "cut", "doubled", "mixed"])
@pytest.mark.parametrize("name", FILES)
def test_random_damage_is_borne(out: Path, told: Told, name: str, how: str) -> None:
    draw = seeded(name, how)
    whole = (out / name).read_bytes()
    for _ in range(6):
        at = draw.randrange(len(whole))
        changed = bytearray(whole)
        if how == "flipped":
            changed[at] ^= 1 << draw.randrange(8)
        elif how == "cut":
            del changed[at:]
        elif how == "doubled":
            changed[at:at] = changed[: draw.randrange(len(whole))]
        else:
            changed[at : at + 8] = draw.randbytes(8)
        (out / name).write_bytes(changed)
        told(out)


ODD_VALUES: dict[str, Any] = {
    "null": None,
    "huge": 1 << 62,
    "text": "x\x1b\n<script>",
    "half a character": "\ud800",
    "a list": [],
}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a value with each of its keys; of a long list the first."""
    keys = list(value) if isinstance(value, dict) else list(range(min(len(value), 2)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@pytest.mark.timeout(280, func_only=True)
@pytest.mark.parametrize("kind", [*ODD_VALUES, "left out"])
@pytest.mark.parametrize("name", FILES)
def test_every_value_may_be_another(out: Path, told: Told, name: str, kind: str) -> None:
    whole = (out / name).read_text()
    rows = [json.loads(whole)] if name == "run.json" else list(map(json.loads, whole.splitlines()))
    count = len(list(places(rows[0])))
    for at in range(0, count, 3):
        changed = copy.deepcopy(rows)
        holder, key = list(places(changed[0]))[at]
        if kind == "left out":
            del holder[key]
        else:
            holder[key] = ODD_VALUES[kind]
        (out / name).write_text("".join(json.dumps(row) + "\n" for row in changed))
        told(out)


WRITTEN = {
    "lock is a fifo": (".lock", "fifo", 5),
    "lock is a link": (".lock", "link to nowhere", 5),
    "logs is a fifo": ("logs", "fifo", 1),
    "logs is bytes": ("logs", "bytes", 1),
    "record is a folder": ("run.json", "folder", 5),
    "captions are a fifo": ("captions.jsonl", "fifo", 1),
    "captions are a device": ("captions.jsonl", "link to a device", 1),
    "media lead to themselves": ("media.jsonl", "link to itself", 2),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_run_writes_it_anew_or_says_what_is_in_the_way(
    real: Path, tmp_path: Path, kind: str
) -> None:
    for name in ("out", "store", "clips"):
        shutil.copytree(real / name, tmp_path / name)
    name, thing, code = WRITTEN[kind]
    place = tmp_path / "out" / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    KINDS[thing](place)
    # The folder is a copy, and what it was made of is still there.
    ended = attacked(*run_into(tmp_path, "--replace"))
    ended.holds(code)
    assert "unexpected error" not in ended.text
    if code == 2:
        assert ".penstock.json is not signed" in ended.err
        attacked(*run_into(tmp_path, "--replace", "--trust-folder")).holds(1)
    if code in (1, 2):
        assert len(read_lines(tmp_path / "out" / "captions.jsonl")) == 2
    else:
        assert name in ended.err


def test_a_report_is_not_written_in_the_place_of_a_device(out: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        assert main(["report", str(out), "--to", str(tmp_path / name)]) == 2
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_an_out_folder_that_goes_away_is_told_as_such(real: Path, tmp_path: Path) -> None:
    """Whatever moves it: the run is not told of a stage that failed, but of its folder."""
    shutil.copytree(real / "clips", tmp_path / "clips")
    watch = (
        "import shutil, sys, threading, time\n"
        "from pathlib import Path\n"
        "from flows.cli.main import main\n"
        "out = Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "def remove():\n"
        "    while not (out / 'logs' / 'encode.items.jsonl').exists(): time.sleep(0.001)\n"
        "    shutil.rmtree(out)\n"
        "threading.Thread(target=remove, daemon=True).start()\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    ended = attacked(
        *run_into(tmp_path, "--batch-size", "1"), command=[sys.executable, "-c", watch]
    )
    assert "FileNotFoundError" not in ended.text
    ended.holds(1, 5)


# Sources, lists of sources and prompts.

GOOD = "good.mp4"


NO_FILES = ("fifo", "socket", "folder", "link to a device", "link to nowhere", "link to itself")
ODD: dict[str, Callable[[Path], object]] = {
    **{kind: KINDS[kind] for kind in NO_FILES},
    "link to the folder": lambda path: path.symlink_to("."),
    "noise": KINDS["bytes"],
    "empty": Path.touch,
    "sparse": lambda path: sparse(path, 1 << 30),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "videos"
    found.mkdir()
    shutil.copyfile(penstock_demo.CLIPS / "clip-01.mp4", found / GOOD)
    yield found
    subprocess.run(["rm", "-rf", found], check=True)  # names that Python's own stumbles over


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
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


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["", "bad.mp4"], ids=["folder", "direct"])
@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_hides_nothing(folder: Path, plan: Plan, name: str, kind: str) -> None:
    ODD[kind](folder / "bad.mp4")
    code, text = plan(str(folder / name), str(folder / GOOD))
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
    folder: Path, plan: Plan, kind: str, monkeypatch: pytest.MonkeyPatch
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
def test_a_name_of_anything_is_found(folder: Path, plan: Plan, kind: str) -> None:
    os.rename(folder / GOOD, os.fsencode(folder) + b"/" + NAMES[kind])
    code, text = plan(str(folder))
    assert code == 0, text
    assert json.loads(text)["files"] == 1


@pytest.mark.parametrize("kind", ["fifo", "link to a device", "bytes"])
def test_a_whole_run_captions_what_is_good(folder: Path, tmp_path: Path, kind: str) -> None:
    KINDS[kind](folder / "bad.mp4")
    out = tmp_path / "out"
    where = ("--out", out, "--store", tmp_path / "store")
    attacked("caption", folder, "--model", "demo", *where).holds(1)
    assert [row["media_path"] for row in read_lines(out / "captions.jsonl")] == [GOOD]
    assert [row["media_path"] for row in read_lines(out / "failures.jsonl")] == ["bad.mp4"]


@pytest.mark.parametrize("kind", ["fifo", "link to a device", "socket", "folder", "sparse"])
def test_a_prompt_is_read_from_files_alone(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS[kind](folder / "prompt")
    asked = ["--model", "demo", "--prompt-file", str(folder / "prompt")]
    assert main(["plan", str(folder), *asked]) == 2
    assert "cannot be read" in capsys.readouterr().err
