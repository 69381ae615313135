"""The benchmark of budgets makes the model that it says, and passes nothing that does not hold."""

import json
from pathlib import Path

import pytest

from benchmarks import memory
from stages.models.inspection import describe
from tests.support.builders import llava as _llava
from tests.support.builders.common import MIB
from tests.support.builders.llava import SEVEN_B, TINY, build, config_of, shapes_of
from tests.support.builders.plan_cases import plan_case
from tests.support.builders.words import hf


def test_the_large_model_has_the_tensors_of_the_published_one() -> None:
    published = plan_case("llava-1.5-7b-hf").tensors
    assert shapes_of(config_of(SEVEN_B)) == published


@pytest.mark.slow
def test_a_model_is_written_in_files_of_one_half_each_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_llava, "SHARD_BYTES", 17 * MIB)
    folder = build(tmp_path / "model", TINY, 2)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    assert all(path.stat().st_size < 18 * MIB for path in files)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    halves = {(place, name.startswith("language_model.")) for name, place in index.items()}
    assert len(halves) == len(files)
    _, found = hf.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    profile = describe(folder)
    assert profile.route == "protocol"
    assert profile.language.stored_bytes > 50 * MIB > 10 * MIB > profile.vision.stored_bytes
    words = hf.AutoProcessor.from_pretrained(folder).tokenizer
    assert words.decode([5, 31999, 32063]) == " w5 w31999 w32063"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_on_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--device", "cpu", "--shape", "tiny", "--clips", "8", "--folder", str(tmp_path)]
    code = memory.main([*few, "--skip", "nf4"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "| NO |" not in printed
    assert printed.count("| yes |") == 9
