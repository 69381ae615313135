"""Weights in few bits are written as compressed-tensors, transformers and vLLM read them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import nn

from stages.export.quant_formats import pack, quantization_config, specs, tensors, unpack
from stages.export.rounding import Rounded, round_to_nearest, unrounded, unsupported_shape
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.precision.quantize import quantizable
from stages.models.precision.weights import model_names
from tests.support.families import checkpoint

GROUP = 32


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_numbers_are_those_of_compressed_tensors_and_come_back(bits: int) -> None:
    torch.manual_seed(0)
    half = 2 ** (bits - 1)
    numbers = torch.randint(-half, half, (33, 96), dtype=torch.int8)
    numbers[0, :2] = torch.tensor([-half, half - 1])
    packed = pack(numbers, bits)
    assert torch.equal(packed, pack_to_int32(numbers, bits))
    assert torch.equal(unpack(packed, bits), numbers)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_tensors_are_those_of_compressed_tensors(bits: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rounded = round_to_nearest(torch.randn(40, 128), bits, 64, dtype)
    made = tensors("weight", rounded, dtype, bits)
    back = unrounded(rounded, 64, dtype)
    scheme = QuantizationScheme(**quantization_config(bits, 64, [])["config_groups"]["group_0"])
    theirs = PackedQuantizationCompressor.compress(
        {"weight": back, "weight_scale": rounded.scales.to(dtype)}, scheme
    )
    assert {n: (t.dtype, t.shape) for n, t in made.items()} == {
        n: (t.dtype, t.shape) for n, t in theirs.items()
    }
    assert torch.equal(made["weight_shape"], theirs["weight_shape"])
    assert torch.equal(PackedQuantizationCompressor.decompress(made, scheme)["weight"], back)


def test_the_layout_is_known_before_the_weight_is_read() -> None:
    rounded = Rounded(torch.zeros(24, 256, dtype=torch.int8), torch.ones(24, 4))
    for bits in (4, 8):
        made = tensors("a.b.weight", rounded, torch.float16, bits)
        told = specs("a.b.weight", (24, 256), torch.float16, bits, 64)
        assert [(name, t.dtype, tuple(t.shape)) for name, t in made.items()] == list(told)


def test_settings_are_those_that_compressed_tensors_writes() -> None:
    made = quantization_config(4, 64, ["lm_head", "model.visual.proj", "lm_head"])
    assert QuantizationConfig.model_validate(made).model_dump() == made
    assert made["ignore"] == ["lm_head", "model.visual.proj"]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_written_checkpoint_computes_the_same_in_transformers(bits: int, tmp_path: Path) -> None:
    """Its modules have other names than its files, which the loader renames as for any weight."""
    source = checkpoint("llava")
    computed = written(source, tmp_path, bits)
    assert len(computed) == 2 * 7
    native, found = opened(source), opened(tmp_path)
    assert sum(name.endswith(".weight_packed") for name in found.state_dict()) == len(computed)
    for path, weight in computed.items():
        native.get_submodule(path).weight.data = weight
    ids = torch.arange(20, 60).reshape(2, 20)
    with torch.inference_mode():
        wanted = native(input_ids=ids).logits
        assert torch.equal(found(input_ids=ids).logits, wanted)
        assert not torch.equal(opened(source)(input_ids=ids).logits, wanted)


def written(source: Path, folder: Path, bits: int) -> dict[str, torch.Tensor]:
    """Write a checkpoint in few bits; path in the model → weight that is computed with."""
    config, cls = config_and_class(source, False)
    skeleton = skeleton_of(config, cls)
    chosen = quantizable(skeleton, "language")
    stored = load_file(source / "model.safetensors")
    made: dict[str, torch.Tensor] = {}
    computed: dict[str, torch.Tensor] = {}
    for name, path in zip(stored, model_names(skeleton, list(stored)), strict=True):
        weight, module = stored[name], (path or "").removesuffix(".weight")
        if module in chosen and not unsupported_shape(tuple(weight.shape), bits, GROUP):
            rounded = round_to_nearest(weight, bits, GROUP, weight.dtype)
            made |= tensors(name, rounded, weight.dtype, bits)
            computed[module] = unrounded(rounded, GROUP, weight.dtype)
        else:
            made[name] = weight
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    linears = [path for path, module in skeleton.named_modules() if type(module) is nn.Linear]
    settings = quantization_config(bits, GROUP, [p for p in linears if p not in computed])
    told = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "quantization_config": settings}))
    return computed


def opened(folder: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
