"""Trees of tensors come back from bytes as they were."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from artifacts.errors import UsageError
from artifacts.tensors import ALIGNMENT, RecordGone, make_record, pack_tree, unpack_tree


def there_and_back(tree: Any) -> Any:
    meta, data = pack_tree(tree)
    return unpack_tree(json.loads(json.dumps(meta)), data)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        True,
        0,
        1.5,
        "text",
        [],
        (),
        {},
        [1, (2, [None])],
        {"a": {"b": ("c", [1.25])}},
        -(2**70),
    ],
)
def test_plain_trees_keep_values_and_types(tree: Any) -> None:
    found = there_and_back(tree)
    assert found == tree
    assert type(found) is type(tree)


def test_lists_and_tuples_stay_apart() -> None:
    found = there_and_back({"list": [1], "tuple": (1,)})
    assert isinstance(found["list"], list)
    assert isinstance(found["tuple"], tuple)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (3, 5, 2)])
def test_tensors_keep_bits_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape) * 4).to(dtype)
    found = there_and_back([tensor])[0]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_numbers_that_are_none_come_back() -> None:
    found = there_and_back([math.inf, -math.inf, math.nan])
    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])
    bits = torch.tensor([math.nan, -0.0, math.inf])
    assert torch.equal(there_and_back(bits).view(torch.int32), bits.view(torch.int32))


def test_a_view_is_stored_as_what_it_shows() -> None:
    whole = torch.arange(24).reshape(4, 6)
    meta, data = pack_tree(whole.T[2:4])
    assert torch.equal(unpack_tree(meta, data), whole.T[2:4])
    assert len(data) == 8 * 8


def test_output_records_keep_their_class_and_fields() -> None:
    parts = (torch.ones(2, 3), torch.zeros(1, 3))
    record = make_record(BaseModelOutputWithPooling, {"pooler_output": parts})
    found: Any = there_and_back({"image": record})["image"]
    assert type(found).__name__ == "BaseModelOutputWithPooling"
    assert list(found.keys()) == ["pooler_output"]
    assert isinstance(found.pooler_output, tuple)
    assert all(map(torch.equal, found.pooler_output, parts))


def test_tensors_lie_aligned_in_the_buffer_and_are_not_copied() -> None:
    meta, data = pack_tree([torch.ones(3, dtype=torch.bool), torch.arange(4)])
    buffer = bytearray(data)
    found = unpack_tree(meta, buffer)
    assert [part["at"] % ALIGNMENT for part in meta["v"]] == [0, 0]
    buffer[meta["v"][1]["at"]] = 9
    assert found[1].tolist() == [9, 1, 2, 3]


def test_numpy_values_are_stored_as_tensors_and_numbers() -> None:
    found = there_and_back([np.arange(3), np.int64(7)])
    assert torch.equal(found[0], torch.arange(3))
    assert found[1] == 7


@pytest.mark.parametrize("value", [object(), {1: 2}, [lambda: None], {1, 2}])
def test_what_is_no_tree_fails(value: Any) -> None:
    with pytest.raises(UsageError, match="cannot be stored"):
        pack_tree(value)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "transformers.utils:logging"])
def test_only_output_records_are_made_from_a_file(name: str) -> None:
    with pytest.raises(UsageError, match="not an output record"):
        unpack_tree({"is": "record", "class": name, "v": []}, b"")


@pytest.mark.parametrize(
    "name",
    [
        "transformers.models.gone.modeling_gone:GoneOutput",
        "transformers.modeling_outputs:GoneOutput",
        "transformers.modeling_outputs:BaseModelOutputWithPooling",
    ],
)
def test_a_record_of_another_version_is_told_from_a_forbidden_one(name: str) -> None:
    field = ["gone", {"is": "plain", "v": 1}]
    with pytest.raises(RecordGone, match=name):
        unpack_tree({"is": "record", "class": name, "v": [field]}, b"")
