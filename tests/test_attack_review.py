"""A review attacked by what lies in the folder that it shows, and in the files of its secret."""

import os
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import EnvironmentFault
from artifacts.secret_files import own_secret
from flows.results.recorded_command import is_own_command, signed_command
from flows.reviewing.rewriting import Rewriting, confirmed

pytestmark = pytest.mark.slow

WORDS = ["caption", "clips", "--format", "txt"]


def secret(path: Path) -> bytes:
    return own_secret(path, "secret", "Delete it", lambda: os.urandom(32))


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\t \r\n", b" " * 40, b"\0" * 32, b"short", b"a" * 15]
)
def test_a_secret_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(EnvironmentFault, match=r"holds no secret\. Delete it"):
        secret(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == content


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o640, 0o600])
def test_a_secret_is_closed_to_others_and_stays(tmp_path: Path, mode: int) -> None:
    made = secret(tmp_path / "s")
    (tmp_path / "s").chmod(mode)
    assert secret(tmp_path / "s") == made
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    "changed",
    [
        {"mac": ""},
        {"mac": "0" * 64},
        {"mac": "é" * 64},
        {"words": [*WORDS, "--trust-remote-code"]},
        {"words": ["caption", "clips --format txt"]},
        {"words": ["export", *WORDS[1:]]},
        {"words": []},
        {"folder": "/"},
    ],
)
def test_a_command_that_was_changed_does_not_run(tmp_path: Path, changed: dict[str, Any]) -> None:
    command = {**signed_command(WORDS, "/clips"), **changed}
    assert not is_own_command(command)
    assert confirmed(command, tmp_path) is None


def test_a_command_of_this_user_runs_without_what_lets_code_in(tmp_path: Path) -> None:
    command = signed_command([*WORDS, "--trust-remote-code", "--prefect"], "/clips")
    assert is_own_command(command) and confirmed(command, tmp_path) == command
    assert Rewriting(command).words == WORDS
    assert confirmed(signed_command(["export", "m"], "/"), tmp_path) is None
    assert confirmed(None, tmp_path) is None
