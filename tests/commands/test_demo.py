"""`penstock demo FILE`: a file of the user's, by the default model of `penstock caption`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import penstock_demo
from flows.commands.demo import demo_command
from flows.core.options.commands import DEFAULT_MODEL, CaptionConfig
from flows.interfaces.cli.main import main

Said = pytest.CaptureFixture[str]


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo, and a demo that shows nothing before it."""
    monkeypatch.setattr(demo_command, "_show_shipped", lambda *_: 0)
    path = tmp_path / "my photo.jpg"
    Image.new("RGB", (64, 48), "orange").save(path)
    return path


def demo(*given: object) -> int:
    return main(["demo", "--clips", "0", *map(str, given)])


def test_without_the_hub_one_line_names_the_command_for_later(photo: Path, capsys: Said) -> None:
    assert demo(photo) == 0
    *_, before, last = capsys.readouterr().out.splitlines()
    assert DEFAULT_MODEL in before
    assert last.startswith(f"{DEFAULT_MODEL} was not downloaded before, and ")
    assert last.endswith(f"Later, run: penstock caption '{photo}'")


def with_default(checkpoint: Path) -> Callable[..., CaptionConfig]:
    """Return a maker of configurations whose default model is one that is here."""

    def config(**given: Any) -> CaptionConfig:
        made = CaptionConfig(**given)
        return replace(made, model=str(checkpoint)) if "model" not in given else made

    return config


@pytest.mark.slow
def test_the_file_is_captioned_by_the_default_model_and_nothing_is_written_beside_it(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(demo_command, "CaptionConfig", with_default(penstock_demo.CHECKPOINT))
    monkeypatch.chdir(photo.parent)
    assert demo(photo.name) == 0
    *_, caption, _, last = capsys.readouterr().out.splitlines()
    assert caption.startswith("A "), caption
    assert last == f"To write them into files: penstock caption '{photo.name}'"
    assert {path.name for path in photo.parent.iterdir()} == {photo.name, "store"}


def test_a_file_that_is_not_there_is_refused_before_the_demo(photo: Path, capsys: Said) -> None:
    assert demo(photo.with_name("none.jpg")) == 2
    assert "none.jpg: no such file. Give a photo or a video" in capsys.readouterr().err
