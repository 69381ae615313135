"""Layers that other programs quantized: what is read is what their programs read, packed layers
compute what unpacked ones do, and damaged files are refused in one line."""

import importlib
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from stages.models import describe, load_half
from stages.models.hub.quantized import refuse_unread
from stages.models.protocols import module_of
from stages.models.stored.codes import BESIDE, Codes, _decoded, codes_of, unpack, write_by_kernel
from stages.models.stored.layouts import StoredLayer, recognized
from stages.models.stored.packed_linear import PackedLinear
from tests.support.card_tensors import card, on_card
from tests.support.quantized import (
    LAYOUTS,
    header,
    layer_in,
    layer_of,
    noise,
    quantized_checkpoint,
    read,
    twin_of,
)

KERNEL = "stages.models.stored.kernel"
TRITON = {
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
"""Triton's types of pointers."""
SHAPES = ((64, 96), (24, 64), (16, 32))
IDS = torch.randint(10, 250, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_each_layout_is_read_as_it_was_quantized_checkpoint(
    name: str, rows: int, columns: int
) -> None:
    layer, tensors, meant = layer_in(name, rows, columns)
    assert (layer.kind, layer.packs) == (LAYOUTS[name].label, LAYOUTS[name].packs)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(read(tensors, layer, dtype), meant.to(dtype)), dtype


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_layer_is_the_same_by_its_headers_alone(name: str, rows: int, columns: int) -> None:
    layer, tensors, _ = layer_in(name, rows, columns)
    headers = [header(f"m.{local}", tensor) for local, tensor in tensors.items()]
    found = recognized(headers, LAYOUTS[name].settings)
    assert found == {"m.weight": replace(layer, path="")}


def test_turned_codes_of_gptq_are_not_taken_for_awq_fails() -> None:
    tensors, _ = LAYOUTS["gptq"].quantize(noise(64, 64))
    tensors["qweight"] = tensors["qweight"].T.contiguous()
    with pytest.raises(UsageError, match="codes of shape"):
        layer_of(tensors, 64, 64, LAYOUTS["gptq"].settings)


def test_zero_fifteen_of_gptq_is_zero() -> None:
    tensors, _ = LAYOUTS["gptq"].quantize(noise(8, 16))
    tensors["qzeros"].fill_(-1)
    layer = layer_of(tensors, 8, 16, LAYOUTS["gptq-asymmetric"].settings)
    zeros = codes_of(layer, tensors).zeros
    assert zeros is not None and not zeros.any()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["group", "channel"])
def test_whole_numbers_are_read_as_compressed_tensors_reads_them(
    bits: int, symmetric: bool, strategy: str
) -> None:
    scheme, compressor = theirs("pack-quantized", bits, "int", strategy, symmetric=symmetric)
    for rows, columns in SHAPES:
        groups = columns // 16 if strategy == "group" else 1
        weight, middle = noise(rows, columns).bfloat16(), 2 ** (bits - 1)
        largest = weight.float().reshape(rows, groups, -1).abs().amax(-1)
        zeros = torch.zeros(rows, groups, dtype=torch.int8)
        if not symmetric:
            zeros.random_(-middle, middle, generator=torch.Generator().manual_seed(bits))
        given = {"weight": weight, "weight_scale": (largest / middle).bfloat16()}
        stored = compressor.compress({**given, "weight_zero_point": zeros}, scheme)
        expected = compressor.decompress(stored, scheme)["weight"]
        layer = layer_of(stored, rows, columns, {"num_bits": bits})
        assert torch.equal(read(stored, layer, torch.bfloat16), expected)


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
def test_bytes_are_read_as_compressed_tensors_reads_them(kind: str, strategy: str) -> None:
    if (kind, strategy) == ("int", "block"):
        pytest.skip("compressed-tensors writes no such layout")
    scheme, compressor = theirs(f"{kind}-quantized", 8, kind, strategy, symmetric=True)
    rows, columns = 256, 384
    shapes = {"tensor": (1,), "channel": (rows, 1), "group": (rows, columns // 16)}
    shape = {**shapes, "block": (2, 3)}[strategy]
    scales = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 1e-3 + 2e-4
    given = {"weight": noise(rows, columns).bfloat16(), "weight_scale": scales.bfloat16()}
    stored = compressor.compress(given, scheme)
    expected = compressor.decompress(stored, scheme)["weight"]
    layer = layer_of(stored, rows, columns, {"block_structure": [128, 128]})
    assert torch.equal(read(stored, layer, torch.bfloat16), expected)


@pytest.mark.parametrize(("form", "size"), [("nvfp4", 16), ("mxfp4", 32)])
def test_four_bit_floats_are_read_as_compressed_tensors_reads_them(form: str, size: int) -> None:
    strategy = "tensor_group" if size == 16 else "group"
    scheme, compressor = theirs(
        f"{form}-pack-quantized", 4, "float", strategy, symmetric=True, size=size
    )
    weight = noise(64, 96).bfloat16()
    scales = weight.float().reshape(64, -1, size).abs().amax(-1) / 6
    given = {"weight": weight, "weight_scale": torch.exp2(scales.log2().floor()).bfloat16()}
    if size == 16:
        factor = torch.tensor([2688.0 / float(weight.abs().max())])
        stored_scales = (scales * factor).to(torch.float8_e4m3fn).float()
        given |= {"weight_scale": stored_scales, "weight_global_scale": factor}
    stored = compressor.compress(given, scheme)
    expected = compressor.decompress(stored, scheme)["weight"]
    layer = layer_of(stored, 64, 96, {})
    assert torch.equal(read(stored, layer, torch.bfloat16), expected)


def theirs(
    form: str, bits: int, kind: str, strategy: str, *, symmetric: bool, size: int = 16
) -> tuple[Any, Any]:
    """The scheme and the compressor of compressed-tensors for a format."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    more: dict[str, Any] = {"group_size": size} if "group" in strategy else {}
    more |= {"block_structure": [128, 128]} if strategy == "block" else {}
    common = {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy}
    inputs = {"num_bits": 8, "type": kind, "strategy": "token", "dynamic": True}
    scheme = quantization.QuantizationScheme(
        targets=["Linear"],
        weights=quantization.QuantizationArgs(**common, **more),
        input_activations=quantization.QuantizationArgs(**inputs)
        if "quantized" in form and "pack" not in form
        else None,
    )
    return scheme, compressors.BaseCompressor.get_value_from_registry(form)


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.packs])
def test_a_packed_layer_takes_what_is_planned_and_computes_the_same(name: str) -> None:
    layer, tensors, meant = layer_in(name, 64, 96)
    codes, made = codes_of(layer, tensors), PackedLinear(layer, bias=None, stated=torch.bfloat16)
    made.weight = torch.nn.Parameter(codes.codes, requires_grad=False)
    for part in BESIDE:
        setattr(made, part, getattr(codes, part))
    held = [made.weight, *made.buffers()]
    index = 4 * 96 * (made.group_of is None and ("g_idx" in tensors or "weight_g_idx" in tensors))
    assert sum(each.nbytes for each in held) + index == layer.packed_bytes + 4 * (name == "nvfp4")
    for dtype in (torch.float32, torch.bfloat16):
        given = torch.randn(3, 96, generator=torch.Generator().manual_seed(2)).to(dtype)
        plain = meant.bfloat16().to(dtype)
        assert torch.equal(made(given), torch.nn.functional.linear(given, plain))
        copies = [given.clone().requires_grad_() for _ in range(2)]
        made(copies[0]).square().sum().backward()
        torch.nn.functional.linear(copies[1], plain).square().sum().backward()
        assert copies[0].grad is not None and copies[1].grad is not None
        assert torch.equal(copies[0].grad, copies[1].grad)


@pytest.mark.in_turn
@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.packs])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_card_unpacks_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    layer, tensors, meant = layer_in(name, 1056, 96)
    held = codes_of(layer, tensors)
    for stated in {torch.bfloat16, dtype}:
        expected = unpack(layer, held, stated, dtype)
        assert stated != dtype or torch.equal(expected, meant.to(dtype))
        with card() as seen:
            found: Any = unpack(layer, codes_of(layer, on_card(tensors)), stated, dtype)
            before = Counter(seen.waits)  # reading asks whether groups are in order
            unpack(layer, Codes(*on_card(tuple(held))), stated, dtype)
            assert seen.waits == before, "a step would wait for the card"
        assert torch.equal(found.held, expected)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The kernel, computed by Triton's interpreter."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, KERNEL, raising=False)
    yield importlib.import_module(KERNEL)
    del sys.modules[KERNEL]


@pytest.mark.in_turn
@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.packs])
@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, (8, 4800)])
def test_the_kernel_computes_the_same_numbers(
    kernel: Any, name: str, rows: int, columns: int
) -> None:
    layer, tensors, meant = layer_in(name, rows, columns)
    found = torch.empty(rows, columns, dtype=torch.float16)
    write_by_kernel(layer, codes_of(layer, tensors), found)
    assert torch.equal(found, meant.half())


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.packs])
def test_a_gpu_writes_the_same_bits_by_the_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agrees = dict[Any, bool]()
    monkeypatch.setattr("stages.models.stored.codes.AGREES", agrees)
    layer, tensors, meant = layer_in(name, 96, 4800)
    on_gpu = {local: part.cuda() for local, part in tensors.items()}
    assert torch.equal(read(on_gpu, layer, torch.bfloat16).cpu(), meant.bfloat16())
    assert [*agrees.values()] == [True]


def every_code() -> Iterator[tuple[StoredLayer, dict[str, torch.Tensor]]]:
    """Layers of every code of FP8 and of FP4, with scales of 1."""
    every = torch.arange(256, dtype=torch.uint8)
    weight = every.view(4, 64).view(torch.float8_e4m3fn)
    eight = {"weight": weight, "weight_scale": torch.ones(4, 1)}
    yield layer_of(eight, 4, 64, {}), eight
    exponents = torch.full((16, 1), 127, dtype=torch.uint8)
    four = {"weight_packed": every.view(16, 16), "weight_scale": exponents}
    yield layer_of(four, 16, 32, {}), four


def test_the_kernel_reads_every_code_of_eight_and_four_bit_floats(kernel: Any) -> None:
    for layer, tensors in every_code():
        found = torch.empty(layer.rows, layer.columns, dtype=torch.float16)
        write_by_kernel(layer, codes_of(layer, tensors), found)
        expected = read(tensors, layer, torch.float16)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found.signbit() | found.isnan(), expected.signbit() | found.isnan())


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 80, 89, 90, 120])
@pytest.mark.parametrize("name", ["awq", "gptq-unsorted", "w8a16", "fp8-block", "nvfp4"])
def test_the_kernel_compiles_for_cards(
    name: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    triton = pytest.importorskip("triton")
    compiler = importlib.import_module("triton.backends.compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = importlib.import_module(KERNEL)
    layer, tensors, _ = layer_in(name, 64, 96)
    function, types = kernel._write_weight, dict[str, str]()
    constants, options = dict[str, Any](), dict[str, Any]()

    class Launched:
        def __getitem__(self, _grid: Any) -> Callable[..., None]:
            return self.launch

        def launch(self, *given: Any, **fixed: Any) -> None:
            named = dict(zip(function.arg_names, given, strict=False)) | fixed
            for each, value in named.items():
                if each not in function.arg_names:
                    options[each] = value
                elif value is None or each in fixed:
                    types[each], constants[each] = "constexpr", value
                else:
                    types[each] = TRITON[value.dtype] if hasattr(value, "dtype") else "i32"

    monkeypatch.setattr(kernel, "_write_weight", Launched())
    write_by_kernel(layer, codes_of(layer, tensors), torch.empty(64, 96, dtype=torch.bfloat16))
    source = triton.compiler.ASTSource(function, types, constants)
    made = triton.compile(
        source, target=compiler.GPUTarget("cuda", capability, 32), options=options
    )
    assert len(made.asm["cubin"]) > 1000
    if capability >= 80:
        assert "cvt.rn.bf16" in made.asm["ptx"], "a weight is rounded to the nearest"


def logits(half: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = half(input_ids=IDS).logits
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*LAYOUTS, "mixed"])
def test_a_half_is_its_twin_dequantized_and_packed(layout: str) -> None:
    folder = quantized_checkpoint(layout)
    packs = layout == "mixed" or LAYOUTS[layout].packs
    profile = describe(folder)
    linears = profile.language.linear_modules
    for dtype in (torch.float32, torch.bfloat16):
        expected = logits(load_half(twin_of(folder), "language", dtype=dtype))
        for packed in (False, True):
            half = load_half(folder, "language", dtype=dtype, packed=packed)
            count = sum(isinstance(module, PackedLinear) for module in half.modules())
            assert count == (linears if packed and packs else 0)
            assert torch.equal(logits(half), expected)
        halves = [load_half(each, "vision", dtype=dtype) for each in (folder, twin_of(folder))]
        first, second = (module_of(half).state_dict() for half in halves)
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def trained(folder: Path, *, packed: bool) -> list[torch.Tensor]:
    """Losses and last gradients of three steps of a LoRA."""
    peft = pytest.importorskip("peft")
    half = load_half(folder, "language", dtype=torch.float32, packed=packed)
    torch.manual_seed(0)
    half.requires_grad_(False)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, half, "default")
    ours = [weight for name, weight in half.named_parameters() if ".lora_" in name]
    assert len(ours) == 8
    optimizer = torch.optim.SGD(ours, lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = half(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(weight.grad for weight in ours if weight.grad is not None)]


def test_an_adapter_learns_the_same_over_packed_layers() -> None:
    plain, packed = (
        trained(quantized_checkpoint("gptq-unsorted"), packed=each) for each in (False, True)
    )
    assert len(plain) == 11 and plain[0] != plain[2]
    assert all(torch.equal(*pair) for pair in zip(plain, packed, strict=True))


# What may happen to files, and what must come of it


Change = Callable[[dict[str, torch.Tensor], dict[str, Any], random.Random], None]


def _pick(weights: dict[str, torch.Tensor], chance: random.Random, *ends: str) -> str:
    return chance.choice(sorted(name for name in weights if name.endswith(ends)))


PARTS = ("qweight", "qzeros", "scales", "weight_packed", "weight_scale", "weight_scale_inv")


def _drops(weights: dict[str, torch.Tensor], _: dict[str, Any], chance: random.Random) -> None:
    del weights[_pick(weights, chance, *PARTS)]


def _tables(weights: dict[str, torch.Tensor]) -> list[str]:
    """Names of codes, zeros and scales."""
    return sorted(n for n, t in weights.items() if n.endswith(PARTS) or t.element_size() == 1)


def _cuts_rows(weights: dict[str, torch.Tensor], _: dict[str, Any], chance: random.Random) -> None:
    name = chance.choice([name for name in _tables(weights) if weights[name].ndim])
    weights[name] = weights[name][: max(1, len(weights[name]) - 1)].clone()
    weights[name] = torch.cat([weights[name]] * 3)


def _turns(weights: dict[str, torch.Tensor], _: dict[str, Any], chance: random.Random) -> None:
    name = chance.choice([n for n in _tables(weights) if len({*weights[n].shape}) == 2])
    weights[name] = weights[name].T.contiguous()


OTHER_TYPES = {
    torch.float16: torch.bfloat16,
    torch.bfloat16: torch.float16,
    torch.int32: torch.float32,
    torch.float32: torch.int32,
    torch.int64: torch.float64,
    torch.uint8: torch.int8,
    torch.int8: torch.float8_e4m3fn,
    torch.float8_e4m3fn: torch.int8,
}
"""Type → another of its size."""


def _retypes(weights: dict[str, torch.Tensor], _: dict[str, Any], chance: random.Random) -> None:
    parts = ("g_idx", "weight_zero_point", "weight_shape", "weight_global_scale")
    name = chance.choice(sorted({*_tables(weights), *(n for n in weights if n.endswith(parts))}))
    weights[name] = weights[name].view(OTHER_TYPES[weights[name].dtype])


def _reorders(weights: dict[str, torch.Tensor], _: dict[str, Any], chance: random.Random) -> None:
    names = sorted(weights)
    chance.shuffle(names)
    again = {name: weights[name] for name in names}
    weights.clear()
    weights.update(again)


def _adds(weights: dict[str, torch.Tensor], _: dict[str, Any], chance: random.Random) -> None:
    base = _pick(weights, chance, *PARTS).rpartition(".")[0]
    weights[f"{base}.input_scale"] = torch.ones(1)
    weights[f"model.extra.{chance.randrange(9)}.qweight"] = torch.zeros(3, 5, dtype=torch.int32)


def _renames_list(
    _: dict[str, torch.Tensor], settings: dict[str, Any], chance: random.Random
) -> None:
    for name in ("modules_to_not_convert", "ignore"):
        if name in settings:
            settings[name] = chance.choice([[], ["nothing.of.it"], ["re:.*"], ["visual", "head"]])


CHANGES: dict[str, Change] = {
    "drops": _drops,
    "cuts": _cuts_rows,
    "turns": _turns,
    "retypes": _retypes,
    "order": _reorders,
    "more": _adds,
    "list": _renames_list,
}


def changed(layout: str, change: str, folder: Path) -> Path:
    """A copy of a checkpoint with one change."""
    chance = random.Random(f"{layout} {change} 1")
    shutil.copytree(quantized_checkpoint(layout), folder)
    path = folder / "model.safetensors"
    if change == "truncated":
        size = path.stat().st_size
        os.truncate(path, chance.randrange(size // 4, size - 1))
        return folder
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(path)
    if change == "shards":
        return in_shards(weights, folder, chance)
    CHANGES[change](weights, config["quantization_config"], chance)
    save_file(weights, path, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def in_shards(weights: dict[str, torch.Tensor], folder: Path, chance: random.Random) -> Path:
    """The weights in three files, and the tensors of a layer in any of them."""
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    places = {name: chance.choice(names) for name in weights}
    for file in names:
        own = {name: weights[name] for name, place in places.items() if place == file}
        save_file(own, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "change"),
    [
        *(("awq", "drops"), ("w4a16", "turns"), ("w8a8", "retypes")),
        *(("fp8-block", "cuts"), ("gptq", "truncated")),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_fails(
    layout: str, change: str, tmp_path: Path
) -> None:
    with pytest.raises(PenstockError) as caught:
        describe(changed(layout, change, tmp_path / "model"))
    assert isinstance(caught.value, EnvironmentFault | UsageError)
    assert "\n" not in str(caught.value) and caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "change"),
    [("awq", "shards"), ("w4a16", "list"), ("w8a8", "order"), ("fp8-block", "more")],
)
def test_a_harmless_change_changes_nothing(layout: str, change: str, tmp_path: Path) -> None:
    folder = changed(layout, change, tmp_path / "model")
    assert describe(folder).language.stored_as == LAYOUTS[layout].label
    expected = logits(
        load_half(twin_of(quantized_checkpoint(layout)), "language", dtype=torch.bfloat16)
    )
    for packed in (False, True):
        half = load_half(folder, "language", dtype=torch.bfloat16, packed=packed)
        assert torch.equal(logits(half), expected)


def test_the_codes_of_awq_are_read_in_pieces() -> None:
    # More than one piece of words, and a last one that is smaller.
    layer, tensors, meant = layer_in("awq", 1056, 32)
    codes = codes_of(layer, tensors)
    assert codes.codes.shape == (1056, 16)
    assert torch.equal(unpack(layer, codes, torch.float16, torch.float16), meant.half())


def test_every_code_of_eight_and_four_bit_floats_is_read() -> None:
    eight, four = (
        read(tensors, layer, torch.float32).flatten().tolist() for layer, tensors in every_code()
    )
    for code, number in enumerate(eight):
        exponent, part = code >> 3 & 15, code & 7
        size = (part + 8 * (exponent > 0)) * 2.0 ** (max(exponent, 1) - 10)
        if code & 127 == 127:
            assert number != number, code
        else:
            assert number == (-size if code > 127 else size), code
    sizes = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    numbers = [*sizes, *(-n for n in sizes)]
    assert four == [numbers[half] for code in range(256) for half in (code & 15, code >> 4)]


def test_a_narrow_layer_is_unpacked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, tensors, meant = layer_in("w4a16", 256, 32)
    held, rows = codes_of(layer, tensors), list[int]()

    def counted(layer: Any, codes: Any, into: Any) -> Any:
        rows.append(len(codes))
        return _decoded(layer, codes, into)

    monkeypatch.setattr("stages.models.stored.codes._decoded", counted)
    assert torch.equal(unpack(layer, held, torch.bfloat16, torch.bfloat16), meant.bfloat16())
    assert rows == [256], "pieces that take less time than the calls"


@pytest.mark.parametrize("group", [-1, 99])
def test_a_column_of_a_group_without_scale_is_refused(group: int) -> None:
    layer, tensors, _ = layer_in("gptq", 8, 32)
    tensors["g_idx"][0] = group
    with pytest.raises(EnvironmentFault, match="its g_idx names groups other than 0 to 1"):
        codes_of(layer, tensors)


def test_rows_of_awq_that_fill_no_word_are_refused() -> None:
    tensors = {
        "qweight": torch.zeros(16, 1, dtype=torch.int32),
        "qzeros": torch.zeros(1, 2, dtype=torch.int32),
        "scales": torch.ones(1, 12, dtype=torch.float16),
    }
    with pytest.raises(UsageError, match="its 12 rows do not fill words"):
        codes_of(layer_of(tensors, 12, 16, LAYOUTS["awq"].settings), tensors)


@pytest.mark.parametrize("stated", [[], "awq", 5, True])
def test_settings_that_are_no_object_are_refused(stated: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": stated}))
    with pytest.raises(UsageError, match="not an object"):
        refuse_unread("model", tmp_path)
