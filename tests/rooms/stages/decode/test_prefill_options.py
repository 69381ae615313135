"""Prompts that are read a piece at a time say what they say at once, and take less."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from artifacts.errors import CannotFit, UsageError
from artifacts.schema import HalfName
from penstock_demo import CHECKPOINT
from stages.decode.chunked_prefill import PrefillOptions, chunked_prefill_matches
from stages.models.halves import generate as offload
from stages.models.halves.chunked_mlps import chunk_position_wise
from stages.models.halves.features import Features, encode
from stages.models.halves.generate import generate
from stages.models.halves.reloadable import ReloadableHalf
from stages.models.halves.split_route import choose_route
from stages.models.loading import ModelJob
from tests.support.clips import PROMPTS, clips
from tests.support.families import checkpoint
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.verdict import GREEDY
from tests.support.waves import FEATURES, OTHER, captions_of, encoded_wave


@pytest.mark.parametrize("family", ["qwen2_5_vl", pytest.param("llava", marks=pytest.mark.slow)])
def test_features_made_in_pieces_say_the_same(family: str, tmp_path: Path) -> None:
    wave = encoded_wave(tmp_path / "store", checkpoint(family), clips("video", 2))
    wave.decode(PROMPTS)
    whole = captions_of(wave.captions())
    wave.record_set("features", FEATURES).drop(["features-0", "features-1"])
    wave.settings["prefill"] = 3
    wave.encode()
    wave.settings["prefill"] = 0
    wave.decode(PROMPTS, OTHER)
    assert captions_of(wave.captions(OTHER)) == whole


def test_only_what_is_position_wise_goes_in_pieces() -> None:
    half = ModelJob(model=str(checkpoint("qwen2_5_vl"))).load("language")
    layers = half.config.text_config.num_hidden_layers
    assert chunk_position_wise(half, 3) == layers
    taken = [path for path, module in half.named_modules() if "forward" in module.__dict__]
    assert all(path.endswith("mlp") for path in taken) and len(taken) == layers
    mlp: Any = half.get_submodule(taken[0])
    seen: list[int] = []
    mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2]))
    with torch.inference_mode():
        mlp(torch.ones(2, 4, 32))
    assert seen == [3, 3, 2]


class Smears(nn.Module):
    """Made of linear layers like an MLP, but every position hears of those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        smeared: torch.Tensor = self.down(self.up(hidden).cumsum(-2))
        return smeared


def test_what_looks_along_the_sequence_stays_whole() -> None:
    half: Any = nn.Module()
    half.add_module("layer", Smears())
    half.dtype, half.device = torch.float32, torch.device("cpu")
    assert chunk_position_wise(half, 3) == 0


# In these, pictures are read in both directions, or their features stand elsewhere: what `generate`
# reads in pieces is then something else, most often without an error.
OTHERWISE = ["paligemma", "gemma3", "gemma4_unified", "glm4v:video", "fuyu", "molmo2"]
ALIKE = ["qwen2_vl", "qwen3_5", "gemma4", "emu3"]


def halves(variant: str, folder: Path) -> tuple[ReloadableHalf, dict[str, Any], Features]:
    """The language half of a family, inputs, and features of them."""
    torch.manual_seed(0)
    model, inputs = FAMILIES[variant]()
    model.save_pretrained(folder)

    def held(keep: HalfName) -> ReloadableHalf:
        job = ModelJob(model=str(folder))
        return ReloadableHalf(keep, lambda extra_modules: job.load(keep, extra_modules))

    return held("language"), inputs, held("vision").call(lambda half: encode(half, inputs))


QUICK = {"paligemma", "gemma3", "glm4v:video", "qwen2_vl", "gemma4", "t5gemma2", "janus"}


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in (*OTHERWISE, *ALIKE, "t5gemma2", "janus")
    ],
)
def test_mlps_in_pieces_change_no_token_of_a_family(variant: str, tmp_path: Path) -> None:
    held, inputs, features = halves(variant, tmp_path)
    if variant in {*OTHERWISE, *ALIKE}:
        agree = held.call(lambda half: chunked_prefill_matches(half, inputs, features))
        assert agree == (variant in ALIKE)
    whole: Any = held.call(lambda half: generate(half, inputs, features, **GREEDY))
    assert chunk_position_wise(held.model, 2) > 0
    extra_modules: Any = held.call(lambda half: generate(half, inputs, features, **GREEDY))
    assert torch.equal(whole.sequences, extra_modules.sequences)
    torch.testing.assert_close(whole.logits, extra_modules.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", FAMILIES)
def test_where_a_short_prompt_agrees_so_do_captions(variant: str, tmp_path: Path) -> None:
    if choose_route(FAMILIES[variant]()[0]).route != "protocol":
        pytest.skip("is not read by the stock generate")
    held, inputs, features = halves(variant, tmp_path)
    if held.call(lambda half: chunked_prefill_matches(half, inputs, features)):
        whole: Any = held.call(lambda half: generate(half, inputs, features, **GREEDY))
        cut = {**GREEDY, "prefill_chunk_size": 3}
        extra_modules: Any = held.call(lambda half: generate(half, inputs, features, **cut))
        assert torch.equal(whole.sequences, extra_modules.sequences)


# The classes of the last three do not know `logits_to_keep`.
LOGITS = ["qwen2_vl", "minicpmv4_6", "minicpm_ocr", "video_llama_3", "qwen2_5_omni_thinker"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", LOGITS)
def test_logits_of_a_long_prompt_are_those_of_its_last_token(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, inputs, features = halves(variant, tmp_path)
    whole: Any = held.call(lambda half: generate(half, inputs, features, **GREEDY))
    monkeypatch.setattr(offload, "LOGITS_WORTH", 0)
    given: list[int] = []
    head = held.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, taken, __: given.append(taken[0].shape[1]))
    last: Any = held.call(lambda half: generate(half, inputs, features, **GREEDY))
    hook.remove()
    assert set(given) == {1}
    assert torch.equal(whole.sequences, last.sequences)
    torch.testing.assert_close(whole.logits, last.logits, rtol=1e-5, atol=1e-5)


def test_a_kv_cache_in_few_bits_captions_the_demo(tmp_path: Path) -> None:
    few = clips("video", 3, frames=8, height=64, width=64)
    wave = encoded_wave(tmp_path / "store", CHECKPOINT, few, kv="quantized")
    wave.decode(PROMPTS)
    assert len(wave.captions()) == 3 and all(captions_of(wave.captions()))


@pytest.mark.parametrize("kv", ["offloaded", "elsewhere"])
def test_a_kv_cache_that_cannot_be_had_fails(kv: str) -> None:
    with pytest.raises(UsageError, match="kv"):
        PrefillOptions(0, kv)


def test_a_kv_cache_of_other_attention_is_not_quantized(tmp_path: Path) -> None:
    held, _, features = halves("gemma3", tmp_path)
    row: Any = features
    no_processor: Any = None
    with pytest.raises(CannotFit, match="sliding_attention"):
        PrefillOptions(0, "quantized").options(held.model, no_processor, row)
