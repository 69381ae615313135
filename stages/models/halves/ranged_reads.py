"""Reads a half's weights tensor by tensor instead of mapping files."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from stages.models.hub.checkpoint import not_whole
from stages.models.hub.headers import TensorPlace, read_places
from stages.models.shards.layout import DTYPES

ALIGNED = 64
"""Alignment in bytes of torch's own memory."""


places = functools.lru_cache(maxsize=8)(read_places)


def read_into(buffer: torch.Tensor, path: Path, start: int) -> None:
    """Fill a byte buffer from a file, beginning at `start`. Raises EnvironmentFault if the file
    ends too early."""
    into = buffer.numpy().data
    end = start + len(into)
    with path.open("rb", buffering=0) as weights:
        while into:
            read = os.preadv(weights.fileno(), [into], end - len(into))
            if not read:
                raise not_whole(path)
            into = into[read:]


class WholeTensorFile:
    """A weight file that reads a whole tensor straight into its final memory. It is used when a
    tensor is requested as a slice of everything. The library would read the bytes and then copy
    them, which needs twice the memory."""

    def __init__(self, file: Any, path: Path, name: str = "") -> None:
        self._file, self.path, self._name = file, path, name
        self._part = file.get_slice(name) if name else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part or self._file, name)

    def get_slice(self, name: str) -> "WholeTensorFile":
        return WholeTensorFile(self._file, self.path, name)

    @property
    def place(self) -> TensorPlace:
        """Return the tensor's place in the file."""
        return places(self.path)[self._name]

    def __getitem__(self, index: Any) -> Any:
        part: Any = self._part
        dtype = DTYPES.get(part.get_dtype())
        start, end = self.place.start, self.place.end
        if index is not ... or dtype is None or start % dtype.itemsize:
            return part[index]
        # Keep the alignment within a cache line that a mapped file would have, because rounding of
        # sums depends on it. The result is bit-identical to loading the whole model with the
        # library alone.
        offset = start % ALIGNED
        buffer = torch.empty(offset + end - start, dtype=torch.uint8)[offset:]
        read_into(buffer, self.path, start)
        return buffer.view(dtype).reshape(part.get_shape())

    def __enter__(self) -> "WholeTensorFile":
        self._file.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.__exit__(*exc)


@contextlib.contextmanager
def ranged_reads() -> Iterator[None]:
    """Make the loader read each tensor of the half into its own memory.

    By default it maps whole files writably. The kernel counts such a mapping against a memory
    limit, including the other half's part."""
    import safetensors
    from transformers import modeling_utils
    from transformers.integrations import accelerate

    # The second library opens a single-file checkpoint only for names, and maps all of it.
    libraries: list[Any] = [modeling_utils, accelerate]
    mapping = [library.safe_open for library in libraries]

    def reading(path: str, *, framework: str, device: str = "cpu", backend: str = "") -> Any:
        return WholeTensorFile(
            safetensors.safe_open(path, framework, device, backend="pread"), Path(path)
        )

    for library in libraries:
        library.safe_open = reading
    try:
        yield
    finally:
        for library, before in zip(libraries, mapping, strict=True):
            library.safe_open = before
