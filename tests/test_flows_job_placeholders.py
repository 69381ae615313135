"""The model's own word for a picture is refused before anything is encoded, wherever a person wrote
it; where a file's name put it into a prompt, that file fails alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.errors import UsageError
from flows.console.display import Display
from flows.options.commands import CaptionConfig
from flows.results.run_result import RunResult
from flows.running.run import caption
from tests.support.stand_ins import PROFILE, Stages, config_in

WORD = "<|image_pad|>"


def write_images(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for at, name in enumerate(names):
        Image.fromarray(np.full((32, 32, 3), 40 * at, np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write_images(tmp_path / "clips", "a.png")


def run(config: CaptionConfig, **profile: Any) -> tuple[RunResult, list[str]]:
    """What a run gives, and the stages that it started."""
    stages = Stages()
    stages.profile = replace(PROFILE, **{"placeholders": (WORD,), **profile})
    try:
        return caption(config, Display(quiet=True), stages.launcher), stages.names()
    except UsageError:
        assert stages.names() == []
        raise


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("What is {name}?", ("a.png", f"{WORD}.png", "b.png")),
        ("What is <|image_{name}|>?", ("a.png", "pad.png", "b.png")),
        ("{name} and {folder}?", ("a.png", f"x {WORD} y.png", "b.png")),
    ],
)
def test_a_file_so_named_fails_alone(prompt: str, names: tuple[str, ...], tmp_path: Path) -> None:
    folder = write_images(tmp_path / "clips", *names)
    result, stages = run(config_in(tmp_path, folder, prompt=prompt))
    (failure,) = result.failures
    assert failure.media_path == names[1] and failure.error == "placeholder"
    assert WORD in failure.message and "{name}" in failure.hint
    assert result.captions == 2 and "decode" in stages


def test_tags_beside_a_file_fail_it_alone_and_once(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "clips", "a.png", "b.png")
    (folder / "b.txt").write_text(f"red, {WORD}\n")
    prompts = {"one": "Of {tags}?", "two": "What of {tags}?", "three": "What?"}
    result, _ = run(config_in(tmp_path, folder, prompts=prompts))
    (failure,) = result.failures
    assert failure.media_path == "b.png" and result.captions == 4


def test_nothing_is_left_where_every_name_is_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "clips", f"{WORD}.png")
    with pytest.raises(UsageError, match="nothing to caption"):
        run(config_in(tmp_path, folder, prompt="{name}"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("system", f"You see {WORD}."),
        ("start_with", WORD),
        ("prompt", f"What is {WORD} in {{name}}?"),
    ],
)
def test_what_a_person_wrote_is_refused(option: str, value: str, one: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run(config_in(tmp_path, one, **{option: value}))
    assert WORD in caught.value.message and "an image placeholder" in caught.value.message
    assert option == "prompt" or f"--{option.replace('_', '-')}" in caught.value.message
    assert "Leave it out" in caught.value.hint


def test_a_control_token_that_captions_would_lack_is_refused(one: Path, tmp_path: Path) -> None:
    tokens = ("<s>", "<|im_end|>")
    config = config_in(tmp_path, one, start_with="A photo.<|im_end|>")
    with pytest.raises(UsageError, match=r"--start-with holds <\|im_end\|>, a control token"):
        run(config, control_tokens=tokens)
    config = replace(config, start_with="<think> A photo", prompt="<|im_end|>?")
    assert run(config, control_tokens=tokens)[0].captions == 1


def test_a_system_text_without_a_place_is_refused(one: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--system: not supported"):
        run(config_in(tmp_path, one, system="Be brief."), takes_system=False)
