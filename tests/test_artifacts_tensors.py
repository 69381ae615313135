"""Trees of tensors come back from bytes and files as they were, and not from damaged ones."""

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.modeling_outputs import BaseModelOutputWithPooling

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.tensors import ALIGNMENT, RecordGone, make_record, pack_tree, unpack_tree
from stages.models.feature_files import MARK, SUM, TREE, read_tree, sum_of, write_tree
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
def test_what_is_no_tree_fails(value: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be stored"):
        pack_tree(value)
    with pytest.raises(UsageError, match="cannot be stored"):
        write_tree(tmp_path / "tree", {"a": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["subprocess:Popen", "transformers.utils:logging", "transformers.trainer:Trainer"],
)
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


def a_tree() -> dict[str, Any]:
    layers = (torch.randn(2, 3), torch.arange(4))
    pooled = torch.randn(5, 3).bfloat16()
    fields = {"pooler_output": pooled, "hidden_states": layers}
    record = make_record(BaseModelOutputWithPooling, fields)
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    shapes = ((), (1,), (0, 4), (3, 5, 2))
    each = [(torch.randn(shape) * 4).to(kind) for kind in kinds for shape in shapes]
    return {"image": record, "a.b": torch.tensor(True), "a": {"b": layers[0]}, "each": each}


def rewritten(path: Path, **notes: str) -> None:
    """The file with other notes, and a sum that fits them."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        kept = {**file.metadata(), **notes}
    kept[SUM] = sum_of(kept[TREE], tensors)
    save_file(tensors, path, kept)


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    tree = a_tree()
    assert_equal(there_and_back(tree), tree)
    write_tree(tmp_path / "tree", [1])
    write_tree(str(tmp_path / "tree"), tree)
    assert_equal(read_tree(tmp_path / "tree"), tree)
    assert os.listdir(tmp_path) == ["tree"], "nothing but the file is left"


def test_tensors_that_share_or_skip_memory_are_written_apart(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tree = [base, base.T, base[:, ::2], base[1:], torch.zeros(()).expand(3, 2)]
    write_tree(tmp_path / "tree", tree)
    for found, expected in zip(read_tree(tmp_path / "tree"), tree, strict=True):
        assert torch.equal(found, expected)


def test_any_reader_finds_the_tensors_under_names(tmp_path: Path) -> None:
    tree = a_tree()
    write_tree(tmp_path / "tree.safetensors", tree)
    found = load_file(tmp_path / "tree.safetensors")
    assert torch.equal(found["image.pooler_output"], tree["image"].pooler_output)
    assert torch.equal(found["image.hidden_states.1"], tree["image"].hidden_states[1])


def test_every_flipped_bit_and_every_cut_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    write_tree(path, {"a": torch.arange(3), "b": (1, "x")})
    good = path.read_bytes()
    flipped = [
        good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(len(good))
    ]
    for content in (*flipped, *(good[:end] for end in range(0, len(good), 7)), good + b"x"):
        path.write_bytes(content)
        try:
            found = read_tree(path)
        except PenstockError as error:
            assert str(path) in error.message and "\n" not in str(error)
        else:  # in the padding of the header, and in its word for the library
            assert torch.equal(found["a"], torch.arange(3)) and found["b"] == (1, "x")


@pytest.mark.parametrize(
    "tree",
    [
        "no JSON",
        "[]",
        "{}",
        '{"is": "tensor", "name": "absent"}',
        '{"is": "list", "v": 3}',
        '{"is": "dict", "v": [[1]]}',
        '{"is": "record", "class": 5, "v": []}',
        '{"is": "list", "v": [' * 5000 + "]}" * 5000,
    ],
    ids=lambda text: text[:30],
)
def test_a_tree_that_was_never_written_fails(tree: str, tmp_path: Path) -> None:
    path = tmp_path / "tree"
    write_tree(path, torch.zeros(1))
    rewritten(path, **{TREE: tree})
    with pytest.raises(EnvironmentFault, match="not a whole file that Penstock wrote"):
        read_tree(path)


class Bomb:
    """Ends the test when it is read by pickle."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was unpickled",))


def test_a_file_of_anything_else_fails(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    for content in (b"", b"text", pickle.dumps(Bomb()), bytes(100)):
        path.write_bytes(content)
        with pytest.raises(EnvironmentFault, match="not a whole file that Penstock wrote"):
            read_tree(path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(EnvironmentFault, match="not a whole file that Penstock wrote"):
        read_tree(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match="Penstock did not write"):
        read_tree(path)
    write_tree(path, 0)
    rewritten(path, **{MARK: "99"})
    with pytest.raises(UsageError, match="another version"):
        read_tree(path)


def test_what_is_no_file_fails(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_tree(tmp_path / "absent")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(EnvironmentFault, match="FIFO"):
        read_tree(tmp_path / "fifo")
    with pytest.raises(EnvironmentFault, match="folder"):
        read_tree(tmp_path)
    with pytest.raises(EnvironmentFault, match="folder"):
        write_tree(tmp_path, 0)
