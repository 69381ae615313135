"""Trees of tensors come back from files as they were, and not at all from damaged ones."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.modeling_outputs import BaseModelOutputWithPooling

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.tensor_files import MARK, SUM, TREE, read_tree, sum_of, write_tree
from artifacts.tensors import RecordGone
from tests.support.trees import assert_equal


def a_tree() -> dict[str, Any]:
    layers = (torch.randn(2, 3), torch.arange(4))
    record = BaseModelOutputWithPooling(pooler_output=torch.randn(5, 3).bfloat16())
    record.hidden_states = layers
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
    write_tree(tmp_path / "tree", tree)
    assert_equal(read_tree(tmp_path / "tree"), tree)
    assert os.listdir(tmp_path) == ["tree"], "nothing but the file is left"


def test_tensors_that_share_or_skip_memory_are_written_apart(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tree = [base, base.T, base[:, ::2], base[1:], torch.zeros(()).expand(3, 2)]
    write_tree(tmp_path / "tree", tree)
    for found, wanted in zip(read_tree(tmp_path / "tree"), tree, strict=True):
        assert torch.equal(found, wanted)


def test_any_reader_finds_the_tensors_under_names(tmp_path: Path) -> None:
    tree = a_tree()
    write_tree(tmp_path / "tree.safetensors", tree)
    found = load_file(tmp_path / "tree.safetensors")
    assert torch.equal(found["image.pooler_output"], tree["image"].pooler_output)
    assert torch.equal(found["image.hidden_states.1"], tree["image"].hidden_states[1])


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", [1])
    write_tree(str(tmp_path / "tree"), [2])
    assert read_tree(str(tmp_path / "tree")) == [2]


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


def test_only_output_records_are_made_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    for name, error in (
        ("subprocess:Popen", UsageError),
        ("transformers.trainer:Trainer", UsageError),
        ("transformers.modeling_outputs:OfAnotherTime", RecordGone),
    ):
        write_tree(path, 0)
        rewritten(path, **{TREE: json.dumps({"is": "record", "class": name, "v": []})})
        with pytest.raises(error):
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


def test_what_no_tree_can_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be stored"):
        write_tree(tmp_path / "tree", {"a": object()})
    assert not list(tmp_path.iterdir())
