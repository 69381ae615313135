"""Where flow runs may write when their worker says so."""

from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.errors import UsageError
from flows.config import CaptionConfig
from flows.confine import VARIABLE, confine


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaptionConfig:
    """A run into the only folder that the worker allows."""
    root = tmp_path / "allowed"
    root.mkdir()
    monkeypatch.setenv(VARIABLE, str(root))
    monkeypatch.chdir(tmp_path)
    return CaptionConfig(sources=("a.mp4",), out=str(root / "new" / "run"))


def test_folders_below_the_root_are_taken_whether_they_are_there_or_not(
    config: CaptionConfig, tmp_path: Path
) -> None:
    confine(config)
    confine(replace(config, out="allowed/x/../y", store=str(tmp_path / "allowed")))
    confine(replace(config, store=f"file://{tmp_path}/allowed/store"))


@pytest.mark.parametrize(
    "out",
    ["/etc", "elsewhere", "allowed/../elsewhere", "allowed-too", "~/captions", ".", "allowed/link"],
)
def test_no_parameter_leads_out_of_it(config: CaptionConfig, tmp_path: Path, out: str) -> None:
    (tmp_path / "allowed" / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=f"`out` leads to .*{VARIABLE}"):
        confine(replace(config, out=out))
    with pytest.raises(UsageError, match=f"`store` leads to .*{VARIABLE}"):
        confine(replace(config, store=out))


def test_what_could_write_anywhere_is_refused(config: CaptionConfig) -> None:
    with pytest.raises(UsageError, match="beside"):
        confine(replace(config, beside=True, format=("txt",)))
    with pytest.raises(UsageError, match="trust_remote_code"):
        confine(replace(config, trust_remote_code=True))


def test_there_can_be_several_roots_and_a_root_can_be_a_link(
    config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/allowed:{tmp_path}/store")
    confine(replace(config, store=str(tmp_path / "disk" / "here")))


def test_without_the_variable_runs_write_where_they_are_told(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    confine(replace(config, out="/etc", store="/", beside=True, format=("txt",)))


def test_a_job_without_outputs_is_not_asked_for_them(config: CaptionConfig) -> None:
    confine(replace(config, out="/etc"), out=False)
