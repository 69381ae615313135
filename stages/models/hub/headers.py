"""Reads tensor names, types and shapes from safetensors headers, local or on the hub. Reads no
weights."""

import contextlib
import json
import os
import struct
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault
from stages.models.hub import transfer
from stages.models.hub.checkpoint import (
    DOWNLOAD_HINT,
    Checkpoint,
    WeightFile,
    incomplete_file,
    weight_names,
)
from stages.models.hub.errors import hub_errors, refuse_offline

AT_ONCE = 8
"""Headers requested from the hub at a time."""
HEADER_BYTES = 100_000_000
"""Maximum bytes of a header: the limit of safetensors itself."""
MAX_NUMBER = 1 << 63
"""Exclusive upper bound of sizes and offsets in a header."""


class Header(NamedTuple):
    """One tensor as a safetensors header describes it."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class TensorPlace(NamedTuple):
    """The location of one tensor in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset in bytes from the file's start."""
    end: int


def read_headers(checkpoint: Checkpoint) -> list[Header]:
    """Return all tensors of a checkpoint's safetensors files, file by file. Raises EnvironmentFault
    for an incomplete file."""
    absent = {file.name: file for file in checkpoint.missing()}
    if absent:
        refuse_offline(checkpoint, list(absent.values()))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        requests = {name: pool.submit(_ask_hub, checkpoint, file) for name, file in absent.items()}
        by_file = [
            requests[name].result() if name in requests else _read_header(checkpoint.folder / name)
            for name in weight_names(checkpoint.folder)
        ]
    return [header for headers in by_file for header in headers]


def _ask_hub(checkpoint: Checkpoint, file: WeightFile) -> list[Header]:
    """Return the tensors of a remote file by requesting its header."""
    from huggingface_hub import HfApi

    with hub_errors(checkpoint.name, checkpoint.commit):
        for seconds in (*transfer.WAITS, None):
            try:
                metadata = HfApi().parse_safetensors_file_metadata(
                    checkpoint.name, file.name, revision=checkpoint.commit
                )
                break
            except Exception as error:
                if seconds is None or not transfer.is_transient(error):
                    raise
                time.sleep(seconds)
    return [
        Header(name, file.name, str(t.dtype), tuple(t.shape), t.data_offsets[1] - t.data_offsets[0])
        for name, t in metadata.tensors.items()
    ]


def _read_header(path: Path) -> list[Header]:
    """Return the tensors of one file, after checking its length."""
    return [
        Header(name, path.name, place.dtype, place.shape, place.end - place.start)
        for name, place in read_places(path).items()
    ]


def local_headers(folder: Path, names: Iterable[str]) -> list[Header]:
    """Return the tensors of local files. Raises EnvironmentFault for an incomplete one."""
    return [header for name in sorted(names) for header in _read_header(folder / name)]


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a local file. Raises EnvironmentFault for an incomplete one."""
    with _read(path) as (_, _, entries):
        return dict(entries.get("__metadata__") or {})


def read_places(path: Path) -> dict[str, TensorPlace]:
    """Return tensor → place in a local file. Raises EnvironmentFault if the file is too short."""
    places = {}
    with _read(path) as (size, first, entries):
        for tensor, entry in entries.items():
            if tensor != "__metadata__":
                start, end = entry["data_offsets"]
                shape = tuple(entry["shape"])
                numbers = (start, end, *shape)
                if not all(type(n) is int and 0 <= n < MAX_NUMBER for n in numbers) or start > end:
                    raise incomplete_file(path)
                places[tensor] = TensorPlace(str(entry["dtype"]), shape, first + start, first + end)
                if first + end > size:
                    raise incomplete_file(path)
    return places


@contextlib.contextmanager
def _read(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Read a file's header: file size, start of the data, and the entry of each tensor. Raises
    EnvironmentFault, also if the block finds an entry invalid."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = struct.unpack("<Q", file.read(8))[0]
            # A text file, such as a Git LFS pointer, looks like a header that is too long.
            if 8 + length > size or length > HEADER_BYTES:
                raise incomplete_file(path)
            entries = json.loads(file.read(length))
        yield size, 8 + length, entries
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: the model's weights cannot be read ({error.strerror})", hint=DOWNLOAD_HINT
        ) from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise incomplete_file(path) from error
