"""Writes a checkpoint as safetensors files of bounded size, in a layout that is planned beforehand.

The plan reads and writes nothing. A layout depends only on names, types and shapes. So every file's
name, size and header are known before the first byte is written. A resumed process finds what an
earlier one wrote.

The checkpoint is written into a folder, file by file, and the writer resumes where an earlier
process stopped:

1. Each weight file appears completely or not at all.
2. The index follows after all of them, and config.json comes last. Until then, the folder is not a
   loadable model.
3. A note records what the folder is made from. A folder with another note, or with files and no
   note, is left untouched.
"""

import contextlib
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import read_kept, refuse_foreign, sweep, whole_file, write_json
from artifacts.disk.json_shapes import Json
from artifacts.disk.locks import try_lock
from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault, ModelChanged, UsageError
from stages.models.hub.checkpoint import CONFIG, INDEX, SINGLE
from stages.models.hub.errors import shown, size_of
from stages.models.shards import NOTE, SHARD_BYTES
from stages.process.events import EventReporter

T = TypeVar("T")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Types of stored weights, by their names in a header."""
DTYPE_NAMES = {dtype: word for word, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    """One tensor to write."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightShard:
    """One safetensors file to write."""

    name: str
    tensors: tuple[TensorSpec, ...]
    """Tensors in the order of their bytes, the widest types first. So each tensor begins at a
    multiple of its width, as readers expect."""

    @property
    def data_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    def header(self) -> bytes:
        """Return the header bytes that precede the tensors."""
        entries: dict[str, Json] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, dtype, shape in self.tensors:
            end = at + math.prod(shape) * dtype.itemsize
            entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def lay_out(tensors: Iterable[TensorSpec], shard_bytes: int = SHARD_BYTES) -> list[WeightShard]:
    """Return the files for these tensors, in their order, with the names that `save_pretrained`
    uses."""
    groups = [*grouped(tensors, lambda tensor: tensor.size, shard_bytes)] or [[]]
    return [
        WeightShard(
            name=SINGLE if len(groups) == 1 else f"model-{n:05d}-of-{len(groups):05d}.safetensors",
            tensors=tuple(sorted(group, key=lambda tensor: -tensor.dtype.itemsize)),
        )
        for n, group in enumerate(groups, 1)
    ]


def grouped(parts: Iterable[T], size_of: Callable[[T], int], shard_bytes: int) -> Iterator[list[T]]:
    """Yield the parts of each shard, which has at most so many bytes unless one part has more."""
    group, filled = list[T](), 0
    for part in parts:
        if group and filled + size_of(part) > shard_bytes:
            yield group
            group, filled = [], 0
        group.append(part)
        filled += size_of(part)
    if group:
        yield group


def index_of(shards: Sequence[WeightShard]) -> dict[str, dict[str, int | str]]:
    """Return the content of `model.safetensors.index.json` for these files."""
    return {
        "metadata": {"total_size": sum(shard.data_bytes for shard in shards)},
        "weight_map": {tensor.name: shard.name for shard in shards for tensor in shard.tensors},
    }


FORMAT = 1
"""Format version, raised when the same source would be laid out or written differently."""
CHUNK_BYTES = 8 << 20
"""Bytes of a tensor that are in memory at a time."""

GO_ON = "Correct that, and run the same command again: finished files are kept"

Contents = Callable[[TensorSpec], Iterable[torch.Tensor]]
"""Function that yields a tensor's numbers in contiguous chunks of its type, in order."""


@contextlib.contextmanager
def claimed(folder: Path, made_of: Mapping[str, Json]) -> Iterator[None]:
    """Lock a folder for a checkpoint whose source `made_of` describes.

    The folder must be new, empty, or begun from the same source. Raises UsageError for any other,
    EnvironmentFault if another process is writing to it."""
    refuse_foreign(folder, (), (NOTE,))
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not try_lock(descriptor):
            raise EnvironmentFault(
                f"another process is writing to {folder}",
                hint="Wait for it, or give another folder",
            )
        note = read_kept(folder / NOTE, FORMAT)
        if note != made_of and (folder / NOTE).exists():
            raise UsageError(
                f"{folder} was made from another source or with other settings ({NOTE})",
                hint="Give a new folder, or remove that one",
            )
        sweep(folder)
        if note is None:
            write_json(folder / NOTE, {"format": FORMAT, **made_of})
        yield
    finally:
        os.close(descriptor)


def is_written(folder: Path, shard: WeightShard) -> bool:
    """Return whether a weight file is complete. A file gets its name only when it is complete; its
    header and length are compared too."""
    header = shard.header()
    try:
        with open_regular(folder / shard.name) as file:
            is_complete = os.fstat(file.fileno()).st_size == len(header) + shard.data_bytes
            return is_complete and file.read(len(header)) == header
    except OSError:
        return False


def is_complete(folder: Path, shards: Sequence[WeightShard]) -> bool:
    """Return whether everything has been written."""
    return (folder / CONFIG).exists() and all(is_written(folder, shard) for shard in shards)


def check_room(folder: Path, shards: Iterable[WeightShard], hint: str) -> None:
    """Refuse to write more than fits on the disk. Raises EnvironmentFault."""
    check_free(folder, sum(len(shard.header()) + shard.data_bytes for shard in shards), hint)


def check_free(folder: Path, needed: int, hint: str) -> None:
    """Refuse to write so many bytes if they do not fit on the disk. Raises EnvironmentFault."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EnvironmentFault(
            f"{shown(folder)} needs {size_of(needed)}, but only {size_of(free)} are free", hint=hint
        )


def write_checkpoint(
    folder: Path,
    shards: Sequence[WeightShard],
    small: Mapping[str, bytes],
    contents: Contents,
    report: EventReporter,
    more_room: str,
    confirm: Callable[[], object] = bool,
) -> None:
    """Write the missing files of a checkpoint into a locked folder, and report each weight file.

    A note states the number of `shards` before, and how many are already `there`. `more_room` is
    the hint if they do not fit on the disk. `confirm` raises if a file must not be published.
    Raises EnvironmentFault."""
    missing = [shard for shard in shards if not is_written(folder, shard)]
    report.note(shards=len(shards), there=len(shards) - len(missing))
    if is_complete(folder, shards):
        return
    check_room(folder, missing, more_room)
    with keeping_files():
        for shard in missing:
            write_shard(folder, shard, contents, confirm)
            report.answered(shard.name, label=shard.name)
        write_rest(folder, shards, small)


@contextlib.contextmanager
def keeping_files() -> Iterator[None]:
    """Say in a fault of the machine that the same command continues with the finished files."""
    try:
        yield
    except ModelChanged:
        raise
    except EnvironmentFault as error:
        raise EnvironmentFault(error.message, hint=GO_ON) from error


def write_shard(
    folder: Path, shard: WeightShard, contents: Contents, confirm: Callable[[], object] = bool
) -> None:
    """Write one weight file, a chunk of a tensor at a time. It appears unless `confirm` raises.
    Raises EnvironmentFault."""
    with whole_file(folder / shard.name) as file:
        file.write(shard.header())
        for tensor in shard.tensors:
            written = sum(file.write(_bytes(piece)) for piece in contents(tensor))
            assert written == tensor.size, f"{tensor.name}: {written} of {tensor.size} bytes"
        confirm()


def write_rest(folder: Path, shards: Sequence[WeightShard], small: Mapping[str, bytes]) -> None:
    """Complete the model with the `small` files by name, the index and config.json. Raises
    EnvironmentFault."""
    for name in sorted(small, key=lambda name: (name == CONFIG, name)):
        if name == CONFIG and len(shards) > 1:
            write_json(folder / INDEX, index_of(shards))
        (folder / name).parent.mkdir(exist_ok=True)
        with whole_file(folder / name) as file:
            file.write(small[name])


def _bytes(piece: torch.Tensor) -> memoryview:
    return piece.reshape(-1).view(torch.uint8).numpy().data


def tensor_chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor's numbers in order, in contiguous chunks of a few MB."""
    yield from tensor.reshape(-1).split(max(1, CHUNK_BYTES // tensor.element_size()))
