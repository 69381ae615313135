"""Trees of tensors come back from bytes as they were."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from artifacts.errors import UsageError
from artifacts.records.tensors import ALIGNMENT, RecordGone, make_record, pack_tree, unpack_tree
from tests.support.trees import assert_equal


def there_and_back(tree: Any) -> Any:
    meta, data = pack_tree(tree)
    return unpack_tree(json.loads(json.dumps(meta)), data)


@pytest.mark.parametrize(
    "tree",
    [None, True, 0, 1.5, "text", [], (), {}, [1, (2, [None])], {"a": ("c", [1.25])}, -(2**70)],
)
def test_plain_trees_keep_values_and_types(tree: Any) -> None:
    found = there_and_back(tree)
    assert found == tree
    assert type(found) is type(tree)


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
        pack_tree({"a": value})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["subprocess:Popen", "transformers.utils:logging", "transformers.trainer:Trainer"]
)
def test_only_output_records_are_made_from_a_file(name: str) -> None:
    with pytest.raises(UsageError, match="not an output record"):
        unpack_tree({"is": "record", "class": name, "v": []}, b"")


def test_a_record_of_another_version_is_told_from_a_forbidden_one() -> None:
    field = ["gone", {"is": "plain", "v": 1}]
    outputs = ("modeling_outputs:GoneOutput", "modeling_outputs:BaseModelOutputWithPooling")
    for name in ("models.gone.modeling_gone:GoneOutput", *outputs):
        with pytest.raises(RecordGone, match=f"transformers.{name}"):
            unpack_tree({"is": "record", "class": f"transformers.{name}", "v": [field]}, b"")


def a_tree() -> dict[str, Any]:
    layers = (torch.randn(2, 3), torch.arange(4))
    fields = {"pooler_output": torch.randn(5, 3).bfloat16(), "hidden_states": layers}
    record = make_record(BaseModelOutputWithPooling, fields)
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    shapes = ((), (1,), (0, 4), (3, 5, 2))
    each = [(torch.randn(shape) * 4).to(kind) for kind in kinds for shape in shapes]
    return {"image": record, "a.b": torch.tensor(True), "a": {"b": layers[0]}, "each": each}


def test_a_tree_of_records_comes_back_as_it_was() -> None:
    tree = a_tree()
    assert_equal(there_and_back(tree), tree)
