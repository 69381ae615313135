"""A run whose model changes is planned again once, and its outputs are of the new model alone."""

import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from artifacts.errors import ModelChanged
from artifacts.model_files import ModelFiles
from flows.console.display import Display
from flows.machine.launch import StageCall
from flows.options.commands import CaptionConfig
from flows.running.run import caption
from tests.support.media import write_video
from tests.support.pipeline import read_lines
from tests.support.stand_ins import Answer, Stages, config_in


class Comparing(Stages):
    """Stages that compare the files of their model as real ones do, after something happened."""

    def __init__(self, stage: str, *happens: Callable[[], object]) -> None:
        super().__init__()
        self._stage, self._happens = stage, [*happens]

    def start(self, call: StageCall) -> Answer:
        if call.name == self._stage and self._happens:
            self._happens.pop(0)()
        getattr(getattr(call.job, "half", call.job), "files", ModelFiles()).check()
        return super().start(call)


def replace_weights(root: Path, text: str) -> None:
    (root / "new").write_text(text)
    os.replace(root / "new", root / "model" / "model.safetensors")


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "clip.mp4", ticks=range(30))
    return config_in(tmp_path, tmp_path / "clips")


def test_outputs_are_of_the_model_planned_last(config: CaptionConfig, tmp_path: Path) -> None:
    heard = StringIO()
    stages = Comparing("decode", lambda: replace_weights(tmp_path, "other"))
    assert caption(config, Display(to=heard), stages.launcher).exit_code == 0
    assert heard.getvalue().count("planning again") == 1
    assert stages.names() == ["frames", "encode", "frames", "encode", "decode"]
    (first,), (second,) = stages.batches("encode")
    assert first != second, "features of the two models have keys of their own"
    (line,) = read_lines(tmp_path / "out" / "captions.jsonl")
    assert line["features"] == second


def test_a_second_change_ends_it_with_5_and_writes_nothing(
    config: CaptionConfig, tmp_path: Path
) -> None:
    changes = [lambda: replace_weights(tmp_path, "two"), lambda: replace_weights(tmp_path, "three")]
    with pytest.raises(ModelChanged, match="changed twice") as caught:
        caption(config, Display(quiet=True), Comparing("decode", *changes).launcher)
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "captions.jsonl").exists()
