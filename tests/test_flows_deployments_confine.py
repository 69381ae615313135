"""Where flow runs may write when their worker says so, and whether they run foreign code."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from flows.deployments.config_checks import REMOTE_CODE, VARIABLE, confine
from flows.options.commands import CaptionConfig


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaptionConfig:
    """A run into the only folder that the worker allows."""
    root = tmp_path / "allowed"
    root.mkdir()
    monkeypatch.setenv(VARIABLE, str(root))
    monkeypatch.chdir(tmp_path)
    return CaptionConfig(sources=("a.mp4",), out=str(root / "new" / "run"))


def test_folders_below_the_root_are_taken_or_made(config: CaptionConfig, tmp_path: Path) -> None:
    confine(config)
    confine(replace(config, out="allowed/x/../y", store=str(tmp_path / "allowed")))
    confine(replace(config, store=f"file://{tmp_path}/allowed/store"))


AWAY = ("/etc", "allowed/../elsewhere", "allowed-too", "~/captions", "allowed/link")
ADDRESSES = ("file://", "file://~", "file:////etc")
ANOTHER_READING = ("file:///../..{0}/allowed/x", "file:{0}/allowed/x", "{0}/new/../allowed/x")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("out", text) for text in (*AWAY, *ANOTHER_READING)),
        *(("store", text) for text in (*AWAY, *ADDRESSES)),
    ],
)
def test_no_parameter_leads_out_of_it(
    config: CaptionConfig, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / "allowed" / "link").symlink_to(tmp_path)
    given: dict[str, Any] = {name: text.format(tmp_path)}
    with pytest.raises(UsageError, match=f"`{name}` leads to .*{VARIABLE}"):
        confine(replace(config, **given))
    assert [path.name for path in tmp_path.iterdir()] == ["allowed"]


@pytest.mark.parametrize("name", ["out", "store"])
@pytest.mark.parametrize("value", ["a\0b", "~nobody-of-this-name/x", "\ud800"])
def test_what_is_no_path_fails_in_one_line(config: CaptionConfig, name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--{name} .* is not a valid path") as caught:
        confine(replace(config, out=value) if name == "out" else replace(config, store=value))
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_a_root_that_is_not_there_yet_can_be_made(
    config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "later" / "allowed"))
    confine(replace(config, out="later/allowed/x"))
    with pytest.raises(UsageError, match="later/else, which is not in"):
        confine(replace(config, out="later/else/../allowed/x"))


def test_there_can_be_several_roots_and_a_root_can_be_a_link(
    config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/allowed:{tmp_path}/store")
    confine(replace(config, store=str(tmp_path / "disk" / "here")))


def test_code_of_a_checkpoint_runs_only_if_the_worker_allows_it_and_outputs_are_anywhere(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting = replace(config, trust_remote_code=True)
    monkeypatch.setenv(REMOTE_CODE, "1")
    with pytest.raises(UsageError, match=f"trust_remote_code.*{VARIABLE}"):
        confine(trusting)
    monkeypatch.delenv(VARIABLE)
    confine(trusting)
    monkeypatch.delenv(REMOTE_CODE)
    for value in (None, "", "0", "true"):
        if value is not None:
            monkeypatch.setenv(REMOTE_CODE, value)
        for out in (True, False):
            with pytest.raises(UsageError, match=f"trust_remote_code.*{REMOTE_CODE}=1"):
                confine(trusting, out=out)


def test_without_the_variable_and_without_outputs_nothing_is_confined(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    confine(replace(config, out="/etc"), out=False)
    beside = replace(config, beside=True, format=("txt",))
    with pytest.raises(UsageError, match="beside"):
        confine(beside)
    monkeypatch.delenv(VARIABLE)
    confine(replace(beside, out="/etc", store="/"))
