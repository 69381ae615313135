"""What commands show on terminals of 80 and 120 columns, and in a log: no line is broken inside a
word, no colour comes where none is wanted, and a log has no control character."""

import io
import os
import sys
from pathlib import Path

import pytest

import penstock_demo
from flows.cli.main import main
from flows.console.display import READING
from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.reports import PLAN, write_run
from tests.support.terminals import Recording, piped, recorded, terminal, too_wide, words

WIDTHS = (80, 120)
LONG = "clips/" + "a very long name of " * 7 + "a clip.mp4"
OUT, NOWHERE = "OUT", "NOWHERE"
COMMANDS = {
    "help": ["--help"],
    "help of caption": ["caption", "--help"],
    "help of export": ["export", "--help"],
    "status": ["status", OUT],
    "report": ["report", OUT],
    "doctor": ["doctor"],
    "empty store": ["cache", "ls", "--store", f"{NOWHERE}/store"],
    "training": ["plan", "--model", "demo", "--train", "lora", "--explain"],
    "too small": ["plan", "--model", "demo", "--train", "full", "--memory", "1MB"],
    "no run": ["status", NOWHERE],
    "no media": ["caption", NOWHERE, "--model", "demo"],
    "no source": ["caption"],
    "no option": ["caption", "VIDEOS/", "--modell", "demo"],
    "no command": ["capton", "VIDEOS/"],
    "no size": ["cache", "gc", "--max", "much"],
    "no index": ["search", "a red circle", "--index", NOWHERE],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with long names, a large plan and failures."""
    folder = tmp_path_factory.mktemp("run") / "out"
    record = write_run(folder, [])
    for stage in ("frames", "encode", "decode"):
        record.expect(stage, 120_000, 1_000)
    record.value["plan"] = PLAN
    record.fail("frames", {"media_path": LONG, "message": "no video in it", "hint": "Convert it"})
    record.finish("interrupted")
    return folder


def said(command: list[str], out: Path, columns: int = 0) -> Recording:
    """What a command says in this process, on a terminal of so many columns; 0: in a log."""
    filled = [word.replace(NOWHERE, f"{out}-nowhere").replace(OUT, str(out)) for word in command]
    with pytest.MonkeyPatch.context() as patch, terminal(columns or 80) as seen:
        log = io.StringIO()
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, seen.to if columns else log)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", str(columns or 1000))  # argparse asks the test's own terminal
        try:
            code = main(filled)
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Recording(seen.close() if columns else log.getvalue(), code)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_is_broken_inside_a_word(name: str, out: Path) -> None:
    log = said(COMMANDS[name], out)
    assert log.text and "\x1b" not in log.text and "\r" not in log.text
    for columns in WIDTHS:
        shown = said(COMMANDS[name], out, columns)
        assert shown.code == log.code
        assert too_wide(shown.lines, columns) == []
        assert words(shown.kept) <= words(log.lines)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for number in (1, 2):
        name = f"clip-{number:02d}.mp4"
        (folder / name).symlink_to(penstock_demo.CLIPS / name)
    (folder / "bad.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of their outputs and their store."""
    return tmp_path_factory.mktemp("place")


def run_commands(media: Path, place: Path) -> dict[str, tuple[int, list[str]]]:
    """What a person does with a folder: name → exit code and command."""
    store, of = ["--store", str(place / "store")], [str(media), "--model", "demo"]

    def out(name: str) -> list[str]:
        return ["--out", str(place / name)]

    return {
        "caption": (1, ["caption", *of, *store, *out("out"), "--format", "txt,csv,webdataset"]),
        "again": (1, ["caption", *of, *store, *out("out"), "--max-new-tokens", "3"]),
        "status": (0, ["status", str(place / "out")]),
        "plan": (0, ["plan", *of, *store, "--explain", "--what-fits"]),
        "label": (1, ["label", *of, *store, *out("labels"), "--labels", "red circle,blue square"]),
        "cache": (0, ["cache", "ls", *store]),
        "rebuild": (1, ["cache", "rebuild", *of, *store, "--dry-run"]),
        "demo": (0, ["demo", "--clips", "3", "--seed", "1"]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 0])
def test_a_person_s_commands_are_not_broken_inside_a_word(
    columns: int, media: Path, place: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("NO_COLOR", None)
    for name, (code, command) in run_commands(media, place).items():
        whole = [*PENSTOCK, *command]
        if not columns:
            log = piped(whole, environment)
            assert log.code == code, (name, log.text)
            assert "\x1b" not in log.text and "\r" not in log.text, name
            if name == "caption":  # printed only where reading took a while
                assert READING not in log.lines[2:]  # the line on bad.mp4 may come first
            continue
        shown = recorded(whole, columns, environment)
        assert shown.code == code, (name, shown.text)
        assert too_wide(shown.lines, columns) == [], name
        if name == "caption":
            assert shown.text.startswith(f"  {READING}\r")
