"""Features in 8 bits: the bytes are those of plain arithmetic, a row depends on itself alone, and
what is no feature is stored as it is."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from artifacts.records.eight_bits import INT8_64, pack_vectors, packed_bytes, unpack_vectors
from artifacts.records.tensors import make_record, pack_again, pack_tree, unpack_tree
from tests.support.trees import assert_equal

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def drawn(rows: int, width: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Features with some channels that are much larger than the others."""
    features = torch.randn(rows, width, generator=torch.Generator().manual_seed(5))
    features[:, :: max(2, width // 3)] *= 50
    return features.to(dtype)


def rounded_up_to_16_bits(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round positive numbers of 32 bits up to the next with 16 bits, by their bits."""
    bits = numbers.astype(np.float32).view(np.uint32).astype(np.int64)
    rounded = -(-bits // 0x10000) * 0x10000
    return rounded.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("width", [64, 192, 100, 2560])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_and_scales_are_those_of_plain_arithmetic(width: int, dtype: torch.dtype) -> None:
    vectors = drawn(3, width, dtype)
    codes, scales = pack_vectors(vectors)
    restored = unpack_vectors(codes, scales, dtype)
    assert restored.dtype == dtype and codes.shape == restored.shape == vectors.shape
    for row, numbers in enumerate(vectors.float().numpy()):
        for at in range(0, width, 64):
            group = numbers[at : at + 64]
            scale = rounded_up_to_16_bits(np.abs(group).max(keepdims=True) / np.float32(127))
            assert scales[row, at // 64].item() == scale[0]
            expected = np.rint(group / scale)
            assert codes[row, at : at + 64].tolist() == expected.tolist()
            product = torch.from_numpy(expected.astype(np.float32) * scale).to(dtype)
            assert torch.equal(restored[row, at : at + 64], product)
            rounding = np.abs(group).max() * torch.finfo(dtype).eps
            error = np.abs(restored[row, at : at + 64].float().numpy() - group)
            assert error.max() <= 0.501 * scale[0] + rounding


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bytes_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    vectors = drawn(7, 2560, dtype)
    codes, scales = pack_vectors(vectors)
    turned_codes, turned_scales = pack_vectors(vectors.flip(0))
    assert torch.equal(turned_codes.flip(0), codes) and torch.equal(turned_scales.flip(0), scales)
    for row in range(len(vectors)):
        own_codes, own_scales = pack_vectors(vectors[row : row + 1])
        assert torch.equal(own_codes[0], codes[row]) and torch.equal(own_scales[0], scales[row])


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_the_largest_and_smallest_numbers_come_back(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    vectors = torch.zeros(4, 128, dtype=dtype)
    vectors[1, 0], vectors[1, 1], vectors[2, 64] = limits.max, limits.min, limits.tiny
    vectors[3] = -0.0
    restored = unpack_vectors(*pack_vectors(vectors), dtype)
    assert restored.isfinite().all()
    assert torch.equal(restored[[0, 3]], torch.zeros(2, 128, dtype=dtype))
    for row in (1, 2):
        error = (restored[row].double() - vectors[row].double()).abs()
        assert error.max() <= 0.01 * vectors[row].double().abs().max()


def test_features_take_53_percent_of_16_bits_at_most() -> None:
    for width in (64, 192, 1024, 2560, 3584):
        _, data = pack_tree({"features": {"video": drawn(512, width)}}, INT8_64)
        assert packed_bytes(width) * 512 <= len(data) <= 0.53 * 512 * width * 2


def a_record(dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    levels = tuple(drawn(6, 128, dtype) + at for at in range(3))
    fields = {"pooler_output": (drawn(6, 128, dtype),), "hidden_states": levels}
    record = make_record(BaseModelOutputWithPooling, fields)
    return {"features": {"video": record}, "side": {"second_per_grid": drawn(2, 64, dtype)}}


def test_all_levels_are_packed_and_nothing_else_is() -> None:
    as_they_are = {
        "narrow": drawn(5, 63),
        "flat": drawn(1, 64)[0],
        "attention_mask": torch.ones(2, 64),
        "pixel_values": drawn(2, 64),
        "counts": torch.arange(128).reshape(2, 64),
        "is_kept": torch.ones(2, 64, dtype=torch.bool),
        "double": drawn(2, 64).double(),
        "empty": torch.zeros(0, 64),
    }
    tree = {**a_record(), "blank": drawn(2, 64)}
    tree["features"]["image"] = as_they_are
    meta, data = pack_tree(tree, INT8_64)
    restored = unpack_tree(json.loads(json.dumps(meta)), data)
    as_they_were = {**restored["features"]["image"], "empty": as_they_are["empty"]}
    assert_equal(as_they_were, as_they_are)
    assert restored["features"]["image"]["empty"].shape == (0, 64)
    assert_equal(restored["side"], tree["side"])
    assert_equal(restored["blank"], tree["blank"])
    video, before = restored["features"]["video"], tree["features"]["video"]
    for name in ("pooler_output", "hidden_states"):
        for level, original in zip(video[name], before[name], strict=True):
            assert level.dtype == torch.bfloat16 and not torch.equal(level, original)
            assert torch.equal(level, unpack_vectors(*pack_vectors(original), torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_stored_as_computed_is_packed_to_the_same_bytes(dtype: torch.dtype) -> None:
    tree = a_record(dtype)
    meta, data = pack_tree(tree)
    stored = json.loads(json.dumps(meta))
    again, packed = pack_again(stored, data, INT8_64)
    expected, bytes_ = pack_tree(tree, INT8_64)
    assert packed == bytes_
    assert json.dumps(again) == json.dumps(expected)


def test_a_tensor_in_an_unknown_form_is_refused() -> None:
    meta, data = pack_tree({"features": {"video": drawn(2, 64)}}, INT8_64)
    text = json.dumps(meta).replace(INT8_64, "int9-64")
    with pytest.raises((AssertionError, KeyError)):
        unpack_tree(json.loads(text), data)
