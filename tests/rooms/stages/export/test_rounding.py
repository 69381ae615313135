"""Weights in few bits are as near as the bits let them be, GPTQ loses less of what they do, and
they are written as compressed-tensors, transformers and vLLM read them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file
from torch import nn

from stages.export import rounding as module
from stages.export.quant_formats import pack, quantization_config, specs, tensors, unpack
from stages.export.rounding import (
    BLOCK_NUMBERS,
    CannotRound,
    NoInverse,
    Rounded,
    gptq,
    max_int,
    round_to_nearest,
    unrounded,
    unsupported_columns,
)
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.precision.quantize import quantizable
from stages.models.stored.layer_names import model_names
from tests.support.families import checkpoint

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weights(rows: int = 48, columns: int = 256) -> torch.Tensor:
    """Numbers of which some are far out, as in real weights."""
    torch.manual_seed(0)
    usual = torch.randn(rows, columns) * torch.rand(rows, 1) * 0.1
    return usual + torch.randn(rows, columns) ** 5 / 999


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_what_comes_back_is_what_compressed_tensors_unpacks(bits: int, dtype: torch.dtype) -> None:
    rounded = round_to_nearest(weights(), bits, 32, dtype)
    assert rounded.numbers.dtype == torch.int8 and rounded.scales.dtype == torch.float32
    assert torch.equal(rounded.scales, rounded.scales.to(dtype).float())
    settings = QuantizationArgs(num_bits=bits, symmetric=True, strategy="group", group_size=32)
    theirs = dequantize(rounded.numbers, rounded.scales.to(dtype), args=settings)
    assert theirs.dtype == dtype
    assert torch.equal(unrounded(rounded, 32, dtype), theirs)


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_of_least_error_beat_those_of_the_maximum(bits: int) -> None:
    weight = weights()
    rounded = round_to_nearest(weight, bits, 64, torch.bfloat16)
    assert int(rounded.numbers.abs().max()) >= max_int(bits)
    plain = weight.reshape(48, 4, 64)
    scales = (plain.abs().amax(-1, keepdim=True) / max_int(bits)).bfloat16().float()
    numbers = (plain / scales).round().clamp(-max_int(bits) - 1, max_int(bits))
    error = (numbers * scales - plain).square().sum()
    found = (unrounded(rounded, 64, torch.float32) - weight).square().sum()
    assert found < error * (0.85 if bits == 4 else 1.001)


def test_blocks_of_rows_are_rounded_as_each_row_alone() -> None:
    weight = weights(rows=2 * BLOCK_NUMBERS // 256 + 3)
    whole = round_to_nearest(weight, 4, 32, torch.bfloat16)
    for row in (0, BLOCK_NUMBERS // 256 - 1, BLOCK_NUMBERS // 256, len(weight) - 1):
        alone = round_to_nearest(weight[row : row + 1], 4, 32, torch.bfloat16)
        assert torch.equal(alone.numbers[0], whole.numbers[row])
        assert torch.equal(alone.scales[0], whole.scales[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_of_zeros_and_of_next_to_nothing_stay_finite(dtype: torch.dtype) -> None:
    weight = torch.zeros(2, 64)
    weight[1] = 1e-9
    rounded = round_to_nearest(weight, 4, 32, dtype)
    assert bool(rounded.scales.gt(0).all())
    back = unrounded(rounded, 32, dtype)
    assert bool((back[0] == 0).all()) and bool(back.isfinite().all())
    assert float((back.float() - weight).abs().max()) <= 1e-9


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_fails(broken: float) -> None:
    weight = weights()
    weight[3, 5] = broken
    with pytest.raises(CannotRound, match="infinite or NaN"):
        round_to_nearest(weight, 4, 32, torch.bfloat16)
    with pytest.raises(CannotRound, match="infinite or NaN"):
        gptq(weight, torch.eye(256), 4, 32, torch.bfloat16)


def test_weights_that_readers_would_refuse_are_told_with_the_reason() -> None:
    assert unsupported_columns(256, 32) == unsupported_columns(128, 128) == ""
    assert "100 columns" in unsupported_columns(100, 32)


COLUMNS = 256


def layer(
    rows: int, columns: int = COLUMNS, count: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of a layer and its weight. The inputs are correlated, and some of their parts much
    larger than others."""
    torch.manual_seed(0)
    mixing = torch.randn(columns, columns) / 16 + torch.randn(columns, 8) @ torch.randn(8, columns)
    inputs = torch.randn(count, columns) @ mixing * (torch.rand(columns) ** 4 * 4 + 0.1)
    return inputs, torch.randn(rows, columns)


def error(rounded: Rounded, weight: torch.Tensor, seen: torch.Tensor, group: int = 32) -> float:
    lost = unrounded(rounded, group, torch.float32) - weight
    return float((seen @ lost.t()).square().sum())


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 128)])
def test_outputs_are_much_nearer_than_by_rounding_to_nearest(bits: int, group: int) -> None:
    seen, weight = layer(96, count=2048)
    known, unknown = seen[:1024], seen[1024:]
    plain = round_to_nearest(weight, bits, group, torch.bfloat16)
    found = gptq(weight, known.t() @ known, bits, group, torch.bfloat16)
    assert torch.equal(found.scales, found.scales.bfloat16().float())
    assert error(found, weight, known, group) < error(plain, weight, known, group) / 3
    assert error(found, weight, unknown, group) < error(plain, weight, unknown, group) / 2


def test_numbers_are_those_of_the_method_written_plainly() -> None:
    """One column after the other, with the inverse itself."""
    seen, weight = layer(8)
    hessian = seen.t() @ seen
    found = gptq(weight, hessian, 4, 32, torch.float32)
    left = weight.double()
    rest = hessian.double() + torch.eye(COLUMNS) * hessian.diagonal().double().mean() * 0.01
    inverse = torch.linalg.inv(rest)
    wrong = 0
    for column in range(COLUMNS):
        scale = found.scales[:, column // 32].double()
        number = (left[:, column] / scale).round().clamp(-8, 7)
        wrong += int((number != found.numbers[:, column]).sum())
        loss = (left[:, column] - number * scale) / inverse[column, column]
        left -= torch.outer(loss, inverse[column])
        inverse -= torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    assert wrong < 8 * COLUMNS / 100  # where a number lies midway, digits decide


def test_rows_are_rounded_by_themselves_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, weight = layer(10, columns=160)
    hessian = seen.t() @ seen
    kept = weight.clone(), hessian.clone()
    whole = gptq(weight, hessian, 4, 32, torch.float16)
    assert torch.equal(weight, kept[0]) and torch.equal(hessian, kept[1])
    again = gptq(weight, hessian, 4, 32, torch.float16)
    assert torch.equal(whole.numbers, again.numbers) and torch.equal(whole.scales, again.scales)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 3 * 160)
    parts = gptq(weight, hessian, 4, 32, torch.float16)
    assert float((parts.numbers != whole.numbers).float().mean()) < 0.01


def test_columns_that_no_input_touched_are_rounded_to_nearest() -> None:
    seen, weight = layer(16)
    seen[:, 32:64] = 0
    found = gptq(weight, seen.t() @ seen, 4, 32, torch.bfloat16)
    plain = round_to_nearest(weight, 4, 32, torch.bfloat16)
    assert torch.equal(found.numbers[:, 32:64], plain.numbers[:, 32:64])
    assert error(found, weight, seen) < error(plain, weight, seen) / 2


def test_few_inputs_are_damped_until_there_is_an_inverse() -> None:
    seen, weight = layer(16, count=5)
    hessian = seen.t() @ seen
    hessian -= torch.eye(COLUMNS) * hessian.diagonal().mean() * 0.05  # as digits lost make it
    found = gptq(weight, hessian, 4, 32, torch.bfloat16)
    plain = round_to_nearest(weight, 4, 32, torch.bfloat16)
    assert error(found, weight, seen) < error(plain, weight, seen)


@pytest.mark.parametrize("broken", [float("nan"), -64.0])
def test_a_hessian_without_inverse_fails(broken: float) -> None:
    weight, hessian = torch.randn(4, 64), torch.eye(64)
    hessian[3, 3] = broken
    with pytest.raises(NoInverse, match="no inverse"):
        gptq(weight, hessian, 4, 32, torch.bfloat16)


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
    given = {"weight": back, "weight_scale": rounded.scales.to(dtype)}
    theirs = PackedQuantizationCompressor.compress(given, scheme)
    layouts = [{n: (t.dtype, t.shape) for n, t in each.items()} for each in (made, theirs)]
    assert layouts[0] == layouts[1]
    assert torch.equal(made["weight_shape"], theirs["weight_shape"])
    assert torch.equal(PackedQuantizationCompressor.decompress(made, scheme)["weight"], back)


def test_the_layout_is_known_before_the_weight_is_read() -> None:
    rounded = Rounded(torch.zeros(24, 256, dtype=torch.int8), torch.ones(24, 4))
    for bits in (4, 8):
        made = tensors("a.b.weight", rounded, torch.float16, bits)
        message = specs("a.b.weight", (24, 256), torch.float16, bits, 64)
        assert [(name, t.dtype, tuple(t.shape)) for name, t in made.items()] == list(message)


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
        expected = native(input_ids=ids).logits
        assert torch.equal(found(input_ids=ids).logits, expected)
        assert not torch.equal(opened(source)(input_ids=ids).logits, expected)


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
        if module in chosen and not unsupported_columns(weight.shape[1], GROUP):
            rounded = round_to_nearest(weight, bits, GROUP, weight.dtype)
            made |= tensors(name, rounded, weight.dtype, bits)
            computed[module] = unrounded(rounded, GROUP, weight.dtype)
        else:
            made[name] = weight
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    linears = [path for path, module in skeleton.named_modules() if type(module) is nn.Linear]
    settings = quantization_config(bits, GROUP, [p for p in linears if p not in computed])
    values = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": settings}))
    return computed


def opened(folder: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
