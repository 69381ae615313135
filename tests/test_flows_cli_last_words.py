import os
from pathlib import Path

import pytest

from artifacts.user_folders import user_cache
from flows.cli import main as cli
from flows.cli.main import main


def kept() -> list[Path]:
    return sorted((user_cache() / "errors").glob("*.txt"))


@pytest.mark.parametrize(
    "error", [TypeError("a\nb"), RecursionError("deep"), MemoryError(), KeyError("x")]
)
def test_what_nobody_foresaw_is_one_line_and_exit_5(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "run", fails)
    before = set(kept())
    assert main(["doctor"]) == 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith(f"penstock: an unforeseen error: {type(error).__name__}")
    (path,) = set(kept()) - before
    assert str(path) in shown.err
    assert "Traceback" in path.read_text()
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
    assert "could not be written anywhere" in capsys.readouterr().err


def test_words_of_an_error_hold_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> int:
        raise ValueError("https://me:hunter2@host/x")

    monkeypatch.setattr(cli, "run", fails)
    assert main(["doctor"]) == 5
    (path,) = kept()
    assert (
        "secret" not in capsys.readouterr().err + path.read_text().split("raise ValueError")[1][40:]
    )
    os.unlink(path)
