"""A half whose layers wait outside the device says what it says with all of them there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import CannotFit, UsageError
from benchmarks._models import Shape, build
from stages.models.halves.offload import offloaded_bytes
from stages.models.loading import ModelJob, facts
from tests.support.clips import PROMPTS, clips
from tests.support.families import BUILDERS, checkpoint
from tests.support.peaks import peaks_of
from tests.support.tiny_families import FAMILIES
from tests.support.waves import FEATURES, Wave

OTHER = "dd" * 32


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers of 120 MB in float32, and next to nothing beside them."""
    shape = Shape(layers=8, width=512, tower_layers=1, tower_width=64, vocabulary=512)
    return build(tmp_path_factory.mktemp("large") / "model", shape, 3)


def said(found: list[dict[str, Any]]) -> list[str]:
    return [caption["caption"] for caption in found]


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", BUILDERS)
def test_captions_are_those_of_resident_halves(family: str, dtype: str, tmp_path: Path) -> None:
    wave = Wave(tmp_path / "store", checkpoint(family), [clips("video", 2)], dtype=dtype)
    wave.encode()
    wave.decode(PROMPTS)
    resident = said(wave.captions())
    before = [wave.record_set("features", FEATURES).read(f"features-{n}").payload for n in range(2)]
    wave.record_set("features", FEATURES).drop(["features-0", "features-1"])
    wave.settings["offload"] = True
    told = [*wave.encode(), *wave.decode(PROMPTS, OTHER)]
    after = [wave.record_set("features", FEATURES).read(f"features-{n}").payload for n in range(2)]
    assert after == before
    assert said(wave.captions(OTHER)) == resident
    fetched = [note["bytes_fetched_a_pass"] for note in told if "bytes_fetched_a_pass" in note]
    assert len(fetched) == 2 and all(fetched)


def test_only_layers_wait_and_their_bytes_are_told() -> None:
    job = ModelJob(model=str(checkpoint("qwen2_5_vl")), offload=True)
    half = job.load("language")
    layers = sum(w.nbytes for w in half.model.language_model.layers.parameters())
    assert offloaded_bytes(half) == layers == facts(half)["bytes_fetched_a_pass"]
    assert half.device == torch.device("cpu")
    resident = ModelJob(model=job.model).load("language")
    assert facts(resident)["bytes_fetched_a_pass"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_offloaded_half_never_holds_its_weights(dtype: str, large: Path) -> None:
    resident = peaks_of(large, dtype=dtype, positions=8)
    waiting = peaks_of(large, dtype=dtype, positions=8, offload=True)
    assert waiting["tokens"] == resident["tokens"]
    assert waiting["running"] < resident["weights"] / 2 < resident["running"]


def test_offloaded_layers_read_long_prompts_in_pieces(tmp_path: Path) -> None:
    wave = Wave(tmp_path / "store", checkpoint("qwen2_5_vl"), [clips("video", 2)])
    wave.encode()
    wave.decode(PROMPTS)
    wave.settings |= {"offload": True, "prefill": 3}
    told = wave.decode(PROMPTS, OTHER)
    assert said(wave.captions(OTHER)) == said(wave.captions())
    assert [note["prefill_way"] for note in told if "prefill_way" in note] == ["mlp"]


def test_a_half_in_few_bits_cannot_be_offloaded() -> None:
    job = ModelJob(model=str(checkpoint("llava")), precision="int8", offload=True)
    with pytest.raises(UsageError, match="offloaded"):
        job.load("language")


@pytest.mark.parametrize("variant", ["fuyu", "qwen3_vl_moe"])
def test_what_has_no_layers_or_is_arranged_anew_fails(variant: str, tmp_path: Path) -> None:
    FAMILIES[variant]()[0].save_pretrained(tmp_path)
    with pytest.raises(CannotFit, match=r"layers|arranged anew"):
        ModelJob(model=str(tmp_path), offload=True).load(
            "vision" if variant == "fuyu" else "language"
        )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantizing_never_holds_the_half_as_it_was(
    precision: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of a loader that keeps what it frees, the peak is twice that of the 16 bit."""
    shape = Shape(layers=20, width=1024, tower_layers=1, tower_width=64, vocabulary=512)
    folder = build(tmp_path_factory.mktemp("larger") / "model", shape, 3)
    sixteen = peaks_of(folder, dtype="bfloat16", positions=8)
    few = peaks_of(folder, dtype="bfloat16", precision=precision, positions=8)
    assert few["loading"] < few["weights"] + sixteen["weights"] / 2
    assert sixteen["loading"] < sixteen["weights"] * 1.15
