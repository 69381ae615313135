"""Checkpoints are laid out and written file by file, as readers of safetensors expect them."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.hub.headers import read_places
from stages.models.shards.layout import (
    CHUNK_BYTES,
    TensorSpec,
    WeightShard,
    claimed,
    index_of,
    is_complete,
    is_written,
    lay_out,
    tensor_chunks,
    write_rest,
    write_shard,
)

TENSORS = {
    "odd": torch.arange(3, dtype=torch.float16),
    "a": torch.arange(6.0).reshape(2, 3),
    "mask": torch.tensor([True, False, True]),
    "b": torch.arange(4, dtype=torch.int64),
    "none": torch.empty(0, 2),
    "number": torch.tensor(7.0, dtype=torch.bfloat16),
}


def specs(tensors: dict[str, torch.Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]


def write(folder: Path, shard: WeightShard) -> None:
    write_shard(folder, shard, lambda spec: tensor_chunks(TENSORS[spec.name]))


def test_what_is_written_is_what_readers_find(tmp_path: Path) -> None:
    (shard,) = lay_out(specs(TENSORS))
    assert shard.name == "model.safetensors" and not is_written(tmp_path, shard)
    write(tmp_path, shard)
    assert is_written(tmp_path, shard)
    found = load_file(tmp_path / shard.name)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / shard.name, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    places = read_places(tmp_path / shard.name)
    for name, tensor in TENSORS.items():
        assert places[name].start % tensor.element_size() == 0, "begins at a multiple of its width"


def test_a_file_is_full_at_its_size_and_a_larger_tensor_has_one_alone() -> None:
    tensors = [TensorSpec(str(n), torch.float32, (size,)) for n, size in enumerate((4, 4, 1, 9, 2))]
    shards = lay_out(tensors, shard_bytes=32)
    assert [[tensor.name for tensor in shard.tensors] for shard in shards] == [
        ["0", "1"], ["2"], ["3"], ["4"],
    ]  # fmt: skip
    assert shards[2].name == "model-00003-of-00004.safetensors"
    index = index_of(shards)
    assert index["metadata"] == {"total_size": 80}
    assert index["weight_map"]["3"] == shards[2].name


def test_a_file_that_is_torn_or_of_another_layout_is_not_taken_for_written(tmp_path: Path) -> None:
    (shard,) = lay_out(specs(TENSORS))
    write(tmp_path, shard)
    (other,) = lay_out(specs({"a": torch.arange(6.0)}))
    assert not is_written(tmp_path, other)
    with (tmp_path / shard.name).open("r+b") as file:
        file.truncate(len(shard.header()) + shard.data_bytes - 1)
    assert not is_written(tmp_path, shard)


def test_a_folder_is_a_model_when_its_last_file_is_there(tmp_path: Path) -> None:
    shards = lay_out(specs(TENSORS), shard_bytes=1)
    for shard in shards:
        write(tmp_path, shard)
    assert not is_complete(tmp_path, shards)
    write_rest(tmp_path, shards, {"config.json": b"{}", "tokenizer.json": b"{}"})
    assert is_complete(tmp_path, shards)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert max(times, key=lambda name: (times[name], name == "config.json")) == "config.json"


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(3 * CHUNK_BYTES // 4), torch.arange(12).reshape(3, 4).mT, torch.tensor(5)],
    ids=["stretch", "turned", "number"],
)
def test_a_tensor_comes_in_small_pieces_in_its_order(tensor: torch.Tensor) -> None:
    pieces = list(tensor_chunks(tensor))
    assert all(piece.is_contiguous() and piece.nbytes <= CHUNK_BYTES for piece in pieces)
    assert torch.equal(torch.cat([piece.reshape(-1) for piece in pieces]), tensor.reshape(-1))


def test_a_folder_is_taken_by_one_at_a_time_and_for_one_thing(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with (
        claimed(folder, {"weights": "a"}),
        pytest.raises(EnvironmentFault, match="another process is writing"),
        claimed(folder, {"weights": "a"}),
    ):
        pass
    with claimed(folder, {"weights": "a"}):
        pass
    with pytest.raises(UsageError, match="made from another source"), claimed(folder, {}):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with (
        pytest.raises(UsageError, match=r"other files \(mine.txt\)"),
        claimed(tmp_path / "other", {}),
    ):
        pass
