"""Where a user's folders are, and what is said to one who has no home."""

from pathlib import Path

import pytest

from artifacts.errors import UsageError
from artifacts.user_folders import user_cache, user_state


def test_they_are_where_the_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("XDG_STATE_HOME", "states")
    assert user_cache() == tmp_path / "home" / ".cache" / "penstock"
    assert user_state() == tmp_path / "states" / "penstock"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    assert user_cache() == tmp_path / "home" / "caches" / "penstock"


def test_a_user_without_a_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-of-that-name/cache")
    with pytest.raises(UsageError, match="has no home") as raised:
        user_cache()
    assert "XDG_CACHE_HOME" in raised.value.hint
