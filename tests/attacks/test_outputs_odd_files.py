"""Files of every odd kind as outputs: what reads a folder of outputs says so in a line, and a run
writes it anew."""

import copy
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from flows.interfaces.cli.main import main
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


@pytest.fixture
def messages(capsys: pytest.CaptureFixture[str]) -> Told:
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
def test_a_file_of_another_kind_is_named(out: Path, messages: Told, name: str, kind: str) -> None:
    (out / name).unlink(missing_ok=True)
    KINDS[kind](out / name)
    messages(out)


ODD_VALUES: dict[str, Any] = {
    "null": None,
    "huge": 1 << 62,
    "text": "x\x1b\n<script>",
    "half a character": "\ud800",
    "a list": [],
}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a value with each of its keys; of a long list the first."""
    for key in list(value) if isinstance(value, dict) else list(range(min(len(value), 2))):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@pytest.mark.timeout(280, func_only=True)
@pytest.mark.parametrize("kind", [*ODD_VALUES, "left out"])
@pytest.mark.parametrize("name", FILES)
def test_every_value_may_be_another(out: Path, messages: Told, name: str, kind: str) -> None:
    whole = (out / name).read_text()
    rows = [json.loads(whole)] if name == "run.json" else list(map(json.loads, whole.splitlines()))
    for at in range(0, len(list(places(rows[0]))), 3):
        changed = copy.deepcopy(rows)
        holder, key = list(places(changed[0]))[at]
        if kind == "left out":
            del holder[key]
        else:
            holder[key] = ODD_VALUES[kind]
        (out / name).write_text("".join(json.dumps(row) + "\n" for row in changed))
        messages(out)


WRITTEN = {
    "lock is a fifo": (".lock", "fifo", 5),
    "lock is a link": (".lock", "link to nowhere", 5),
    "logs is a fifo": ("logs", "fifo", 1),
    "logs is bytes": ("logs", "bytes", 1),
    "record is a folder": ("run.json", "folder", 5),
    "captions are a fifo": ("captions.jsonl", "fifo", 2),
    "captions are a device": ("captions.jsonl", "link to a device", 2),
    "media lead to themselves": ("media.jsonl", "link to itself", 2),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_run_renews_it_or_says_what_is_in_the_way(real: Path, tmp_path: Path, kind: str) -> None:
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
    if kind.startswith("captions"):  # what is no file is never replaced
        assert f"{name} is a" in ended.err and not place.is_file()
        return
    if code == 2:
        assert ".penstock.json is not one that this user" in ended.err
        attacked(*run_into(tmp_path, "--replace", "--trust-folder")).holds(1)
    if code in (1, 2):
        assert len(read_lines(tmp_path / "out" / "captions.jsonl")) == 2
    else:
        assert name in ended.err


def test_an_out_folder_that_goes_away_is_told_as_such(real: Path, tmp_path: Path) -> None:
    """Whatever moves it: the run is not told of a stage that failed, but of its folder."""
    shutil.copytree(real / "clips", tmp_path / "clips")
    watch = (
        "import shutil, sys, threading, time\n"
        "from pathlib import Path\n"
        "from flows.interfaces.cli.main import main\n"
        "out = Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "def remove():\n"
        "    while not (out / 'logs' / 'encode.items.jsonl').exists(): time.sleep(0.001)\n"
        "    shutil.rmtree(out)\n"
        "threading.Thread(target=remove, daemon=True).start()\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = run_into(tmp_path, "--batch-size", "1")
    ended = attacked(*command, command=[sys.executable, "-c", watch])
    assert "FileNotFoundError" not in ended.text
    ended.holds(1, 5)
