"""What a command says last: the first captions of a run that is over, or an unforeseen error."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from artifacts.user_folders import user_cache
from flows.cli import caption_command as caption_command
from flows.cli import main as cli
from flows.cli.caption_command import first_captions
from flows.cli.main import main
from flows.console.lines import columns_of, shortened
from flows.results.run_result import RunResult
from tests.support.terminals import terminal

SECRET = ValueError("https://me:hunter2@host/x")


@pytest.mark.parametrize(
    "error", [TypeError("a\nb"), RecursionError("deep"), MemoryError(), SECRET]
)
def test_what_nobody_foresaw_is_one_line_and_exit_5(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "run", fails)
    before = {*(user_cache() / "errors").glob("*.txt")}
    assert main(["doctor"]) == 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith(f"penstock: unexpected error: {type(error).__name__}")
    (path,) = {*(user_cache() / "errors").glob("*.txt")} - before
    assert str(path) in shown.err
    assert "Traceback" in path.read_text()
    assert "hunter2" not in shown.err + path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()


def test_an_error_that_can_be_kept_nowhere_is_still_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    monkeypatch.setattr(cli, "run", lambda _: 1 // 0)
    assert main(["doctor"]) == 5
    assert "could not be written" in capsys.readouterr().err


def row(name: str, caption: str, **more: str) -> str:
    return json.dumps({"media_path": name, "caption": caption, **more}, ensure_ascii=False) + "\n"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    rows = [
        row("videos/a.mp4", "Nobody wants this.", review="rejected"),
        row("videos/a.mp4", "A red\ncircle \x1b[31mmoves\u202e up."),
        row("videos/a.mp4", "A second chunk."),
        row("b.mp4", "一个红色的圆圈" * 40),
        row("a very long name of a clip " * 8 + ".mp4", "A star."),
        row("d.mp4", "A fourth."),
    ]
    (tmp_path / "captions.jsonl").write_text("".join(rows), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("columns", [20, 80, 120])
def test_first_captions_fit_a_terminal(
    columns: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(columns) as seen:
        monkeypatch.setattr(sys, "stdout", seen.to)
        lines = first_captions(out)
    assert len(lines) == 3
    assert all(columns_of(line) <= columns and line.isprintable() for line in lines)
    assert lines[1].endswith("…") and "b.mp4: " in lines[1]
    if columns > 60:
        assert lines[0] == "  a.mp4: A red circle \\u001b[31mmoves\\u202e up."


@pytest.mark.parametrize("text", ["", "{"])
def test_a_file_without_captions_shows_none(text: str, tmp_path: Path) -> None:
    assert first_captions(tmp_path) == []
    (tmp_path / "captions.jsonl").write_text(text)
    assert first_captions(tmp_path) == []


def test_a_text_is_shortened_by_columns() -> None:
    assert shortened("four", 4) == "four" and shortened("five!", 4) == "fiv…"
    assert shortened("e\u0301" * 10, 10) == "e\u0301" * 10
    assert columns_of(shortened("圆" * 10, 7)) <= 7


@pytest.mark.parametrize(
    ("quiet", "as_json", "shows"),
    [(False, False, True), (True, False, False), (False, True, False)],
)
def test_captions_are_shown_to_people_before_the_last_line(
    quiet: bool,
    as_json: bool,
    shows: bool,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(caption_command, "config_of", lambda *_: None)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ended = RunResult(out=out, files=4, limit=9)
    monkeypatch.setattr("flows.running.run.caption", lambda *_, **__: ended)
    given = argparse.Namespace(quiet=quiet, json=as_json, dry_run=False, prefect=False, words=[])
    assert caption_command.caption_command(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  a.mp4: A red circle") for line in lines) == shows
    if shows:
        assert "captions.jsonl" in lines[-1]
