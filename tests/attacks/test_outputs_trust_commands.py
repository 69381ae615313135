"""A folder that another user made, with all that a stranger can plant in it, given to each command
that takes an output folder: it shows the folder, and believes nothing that it says."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from PIL import Image

from artifacts.texts.edits import key_of
from flows.core.options.training import StepOptions
from tests.support.commands import completed
from tests.support.loopback import visited_port
from tests.support.pipeline import PENSTOCK, ROOT, read_lines
from tests.support.strangers import snapshot
from tests.support.studios import OpenStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PLANTED = "PLANTED BY A STRANGER"
ADDRESS = re.compile(r"(?:review|studio) at http://127\.0\.0\.1:(\d+)/([0-9a-f]{32})/")
QUEUE_SECONDS = 4.0
"""Longer than a queue takes to start a run."""


@dataclass(kw_only=True)
class User:
    """A user with a home of its own."""

    home: Path
    asked: list[bytes] = field(default_factory=list)
    """What was asked of the port that the stranger named."""

    @property
    def environment(self) -> dict[str, str]:
        folders = {"XDG_STATE_HOME": "state", "XDG_CACHE_HOME": "cache", "PENSTOCK_STORE": "store"}
        places = {name: str(self.home / folder) for name, folder in folders.items()}
        return {**os.environ, **places, "PYTHONPATH": str(ROOT)}

    def runs(self, *words: Any, code: int | None = 0) -> str:
        """Run a command without a terminal, and return what it printed."""
        return self.does([*PENSTOCK, *map(str, words)], code)

    def does(self, command: list[str], code: int | None = 0) -> str:
        where: dict[str, Any] = {"cwd": self.home, "env": self.environment, "timeout": 200}
        done = completed(command, stdin=subprocess.DEVNULL, **where)
        assert code is None or done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine, and what was sent to it."""
    with visited_port() as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, captioned by me and by a stranger."""
    root = tmp_path_factory.mktemp("made")
    (root / "pictures").mkdir()
    for shade in (40, 200):
        Image.new("RGB", (64, 48), (shade, 30, 30)).save(root / f"pictures/{shade}.png")
    for name in ("me", "stranger"):
        user = User(home=root / name)
        user.home.mkdir()
        user.runs("caption", root / "pictures", "--model", "demo", "--out", user.home / "out")
    return root


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value)
    if isinstance(value, list):
        text = "".join(json.dumps(each) + "\n" for each in value)
    path.write_text(text)


def plant(out: Path, store: Path, ran: Path, port: int) -> None:
    """Put into a folder what a stranger who knows this program could."""
    words = ["caption", str(out.parent / "pictures"), "--model", "demo", "--out", str(ran)]
    words.append("--trust-remote-code")
    (row, *_) = read_lines(out / "captions.jsonl")
    of = key_of(row["features"], row.get("name", ""), row["prompt"], row["caption"])
    change = {"of": of, "caption": PLANTED, "review": "accepted", "said": row["caption"]}
    change |= {name: row[name] for name in ("media_path", "start")}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write(out / "edits.jsonl", [{"id": "a", "time": now, "does": "x", "changes": [change]}])
    record = json.loads((out / "run.json").read_text())
    record["plan"]["store"] = str(store)
    record["command"] = {**(record["command"] or {}), "words": words, "folder": "/"}
    write(out / "run.json", record)
    media = read_lines(out / "media.jsonl")
    media[0]["address"] = f"http://127.0.0.1:{port}/a.png"
    media[1]["url"] = f"file://http%3A//127.0.0.1:{port}/b.png"
    write(out / "media.jsonl", media)
    if (out / ".penstock.json").exists():
        marker = json.loads((out / ".penstock.json").read_text())
        write(out / ".penstock.json", {**marker, "store": str(store), "words": words})
    entry = {"kind": "caption", "state": "queued", "out": str(ran), "folder": "/", "words": words}
    write(out / ".studio/runs.json", {"format": 1, "runs": [entry]})
    example = dict.fromkeys(("key", "name", "media_path"), "x") | {"caption": PLANTED}
    example |= {"features": row["features"], "prompt": row["prompt"]}
    examples = [{**example, "start": 0.0, "corrected": True}]
    round_ = {"round": 1, "phase": "chosen", "started": now, "digest": "d", "enough": True}
    round_ |= {"settings": {**asdict(StepOptions()), "trust_remote_code": True, "lr": 1e-3}}
    round_ |= {"command": {"words": words, "folder": "/"}, "accepted": False}
    round_ |= {**dict.fromkeys(("previous", "trained"), ""), "examples": examples}
    round_ |= {**{key: [] for key in ("differing", "before", "after")}, "held_out": examples}
    round_ |= dict.fromkeys(("captions", "changed", "carried", "lower"), 0)
    write(out / "learn/round-001/round.json", round_)


@dataclass(kw_only=True)
class Case:
    """My home, and the stranger's folder on it."""

    root: Path
    port: int
    asked: list[bytes]

    @property
    def me(self) -> User:
        return User(home=self.root / "me")

    @property
    def theirs(self) -> Path:
        return self.root / "theirs"

    @property
    def mine(self) -> dict[str, Any]:
        """All that is mine, without the program's own state and cache."""
        return snapshot(self.root / "me/out", self.root / "me/store", self.root / "pictures")


@pytest.fixture
def case(made: Path, tmp_path: Path, listener: tuple[int, list[bytes]]) -> Iterator[Case]:
    """The homes as they were made, at the same paths, and the stranger's folder beside them."""
    port, request = listener
    shutil.copytree(made, tmp_path / "as made", symlinks=True)
    found = Case(root=made, port=port, asked=request)
    shutil.copytree(made / "stranger/out", found.theirs)
    plant(found.theirs, made / "me/store", made / "ran", port)
    request.clear()
    yield found
    shutil.rmtree(made)
    shutil.copytree(tmp_path / "as made", made, symlinks=True)


def served(case: Case, *words: Any) -> str:
    """Open a page, ask for all that it shows, correct a caption, and return what was printed."""
    command = [*PENSTOCK, *map(str, words), "--port", "0"]
    options: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    options |= {"cwd": case.root, "env": case.me.environment}
    process: subprocess.Popen[bytes] = subprocess.Popen(command, **options)
    with process, contextlib.ExitStack() as failed:
        failed.callback(process.kill)  # leaving the block waits for the process
        assert process.stdout is not None
        found = ADDRESS.match(line := process.stdout.readline().decode())
        assert found, line
        page = OpenStudio(case.theirs, case.theirs, case.theirs)
        page.port, page.token = int(found[1]), found[2]
        shown = page.captions()
        assert len(shown["media"]) == 2 and PLANTED in str(shown["edits"]), "all is readable"
        for number in (0, 1):
            for kind in ("small", "media"):
                page.ask("GET", f"{page.own}/{kind}/{number}")
        page.ask("GET", f"{page.own}/sets")
        page.done(f"{page.own}/edits", page.deed("My own words."))
        for path in ("write", "learn"):
            assert page.post(f"{page.own}/{path}", {"format": []}).status == 422
        time.sleep(QUEUE_SECONDS)
        assert page.runs() == [], "a queue in the folder is not read"
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
        failed.pop_all()
    return out.decode() + errors.decode()


def by_python(case: Case, line: str) -> str:
    """Run a line of Python, which may raise an error of the program."""
    program = (
        f"import penstock\nfrom artifacts.errors import PenstockError\nOUT = {str(case.theirs)!r}\n"
        f"try:\n    print({line})\nexcept PenstockError as error:\n    print('refused:', error)\n"
    )
    return case.me.does([sys.executable, "-c", program])


def tuned(case: Case) -> str:
    words = ("--model", "demo", "--steps", "1", "--validate", "0", "--out", case.root / "adapter")
    return case.me.runs("tune", case.theirs / "captions.jsonl", *words, code=None)


COMMANDS: dict[str, Callable[[Case], str]] = {
    "caption": lambda case: case.me.runs(
        *("caption", case.root / "pictures", "--model", "demo", "--out", case.theirs), code=2
    ),
    "review": lambda case: served(case, "review", case.theirs),
    "studio": lambda case: served(case, "studio", case.root / "pictures", "--out", case.theirs),
    "learn": lambda case: case.me.runs("learn", case.theirs, "--anyway", code=2),
    "tune": tuned,
    "report": lambda case: case.me.runs("report", case.theirs),
    "status": lambda case: case.me.runs("status", case.theirs),
    "python learn": lambda case: by_python(case, "penstock.learn(OUT, anyway=True)"),
    "python report": lambda case: by_python(case, "penstock.report(OUT)"),
    "python status": lambda case: by_python(case, "penstock.status(OUT)['state']"),
    "python caption": lambda case: by_python(
        case, f"list(penstock.caption({str(case.root / 'pictures')!r}, model='demo', out=OUT))"
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_believes_nothing_that_a_stranger_planted(case: Case, command: str) -> None:
    before, strangers = case.mine, snapshot(case.root / "stranger")
    text = COMMANDS[command](case)
    wrong = []
    if case.asked:
        wrong.append(f"requested: {case.asked}")
    if (case.root / "ran").exists():
        wrong.append("a planted command ran")
    made = {path for path in case.mine if path not in before}
    if command in ("tune",):  # it stores features that it lacks, and its lists
        made = {path for path in made if path.endswith("corrections.jsonl")}
    if made or any(case.mine.get(path) != content for path, content in before.items()):
        wrong.append(f"changed: {made or [p for p in before if case.mine.get(p) != before[p]]}")
    assert snapshot(case.root / "stranger") == strangers
    case.me.runs("caption", case.root / "pictures", "--model=demo", "--out", case.root / "me/out")
    if PLANTED in (case.root / "me/out/captions.jsonl").read_text():
        wrong.append("a stranger's edit is in my captions")
    assert not wrong, wrong
    refused = command in ("caption", "learn", "python learn", "python caption")
    assert ("--trust-folder" in text) == (refused or command in ("review", "studio")), text


def test_the_listener_notices(listener: tuple[int, list[bytes]]) -> None:
    """The checks above can fail."""
    port, request = listener
    with pytest.raises(OSError):
        urlopen(f"http://127.0.0.1:{port}/a", timeout=5)
    assert request
