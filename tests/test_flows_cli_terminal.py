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
    "no media": ["caption", NOWHERE, "--model", "demo", "--out", f"{OUT}-none"],
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


@pytest.mark.slow
def test_a_person_s_commands_are_not_broken_inside_a_word(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for name in ("clip-01.mp4", "clip-02.mp4"):
        (media / name).symlink_to(penstock_demo.CLIPS / name)
    (media / "bad.mp4").write_text("no video")
    store, out = ["--store", str(tmp_path / "store")], ["--out", str(tmp_path / "out")]
    of = [str(media), "--model", "demo", *store]
    labels = ["--out", str(tmp_path / "labels"), "--labels", "red circle,blue square"]
    commands = {
        "caption": (1, ["caption", *of, *out, "--format", "txt,csv,webdataset"]),
        "again": (1, ["caption", *of, *out, "--max-new-tokens", "3"]),
        "status": (0, ["status", out[1]]),
        "plan": (0, ["plan", *of, "--explain", "--what-fits"]),
        "label": (1, ["label", *of, *labels]),
        "cache": (0, ["cache", "ls", *store]),
        "rebuild": (1, ["cache", "rebuild", *of, "--dry-run"]),
        "demo": (0, ["demo", "--clips", "3", "--seed", "1"]),
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("NO_COLOR", None)
    for name, (code, command) in commands.items():
        shown = recorded([*PENSTOCK, *command], 80, environment)
        assert shown.code == code, (name, shown.text)
        assert too_wide(shown.lines, 80) == [], name
        log = piped([*PENSTOCK, *command], environment)
        assert log.code == code, (name, log.text)
        assert "\x1b" not in log.text and "\r" not in log.text, name
        if name == "caption":
            assert shown.text.startswith(f"  {READING}\r")
            # A log has it only where reading took a while; the line on bad.mp4 may come first.
            assert READING not in log.lines[2:]
