"""Reads a half's weights tensor by tensor; for a GPU, copies them while the next are read.

The module reads the files and does not map them. On the path to a GPU, weights are read into pinned
memory.

How it works:

1. transformers reads tensors in a few threads. During a load, the module replaces the function of
   transformers that reads one tensor by one that does so in portions.
2. A portion is read into a free buffer of pinned memory, cast if it is stored in another type, and
   copied without waiting.
3. An event behind the copy shows when the buffer may be filled again.
4. The copies run on the stream on which the weights are used. Nothing is computed during a load, so
   a stream of their own would not overlap more.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from stages.models.half_job import PINNED_LOAD_BYTES
from stages.models.hub.checkpoint import incomplete_file
from stages.models.hub.headers import Header, TensorPlace, read_places
from stages.models.shards.layout import DTYPES
from stages.models.stored.layers import StoredWeights
from stages.process.exit_diagnosis import first_line

ALIGNED = 64
"""Alignment in bytes of torch's own memory."""


def places(path: Path) -> dict[str, TensorPlace]:
    """Return tensor → place in a file, read once as long as the file stays the same."""
    status = path.stat()
    return _places(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=8)
def _places(path: Path, *_: int) -> dict[str, TensorPlace]:
    return read_places(path)


def read_into(buffer: torch.Tensor, path: Path, start: int) -> None:
    """Fill a byte buffer from a file, beginning at `start`. Raises EnvironmentFault if the file
    ends too early."""
    into = buffer.numpy().data
    end = start + len(into)
    with path.open("rb", buffering=0) as weights:
        while into:
            read = os.preadv(weights.fileno(), [into], end - len(into))
            if not read:
                raise incomplete_file(path)
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


class StoredWeightsFile(WholeTensorFile):
    """A weight file in which each quantized layer looks like one weight."""

    def __init__(self, file: Any, path: Path, stored: StoredWeights, device: str) -> None:
        super().__init__(file, path)
        self._stored, self._device = stored, device

    def keys(self) -> list[str]:
        return self._stored.names(self.path.name, self._file.keys())

    def get_slice(self, name: str) -> Any:
        if self._stored.find(name) is None:
            return super().get_slice(name)
        return _MadeTensor(self.path.parent, name, self._stored, self._device)


class _MadeTensor:
    """A tensor that is computed from others when the loader reads it."""

    def __init__(self, folder: Path, name: str, stored: StoredWeights, device: str) -> None:
        self._folder, self._name, self._stored, self._device = folder, name, stored, device

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._stored.make(self._name, self._read, self._device)

    def _read(self, part: Header) -> torch.Tensor:
        path = self._folder / part.shard
        buffer = torch.empty(part.size, dtype=torch.uint8)
        read_into(buffer, path, places(path)[part.name].start)
        return buffer.view(DTYPES.get(part.dtype, torch.uint8)).reshape(part.shape)


@contextlib.contextmanager
def ranged_reads(stored: StoredWeights | None = None, place: str = "cpu") -> Iterator[None]:
    """Make the loader read each tensor of the half into its own memory, and quantized layers as
    `stored` makes them, at `place`.

    By default it maps whole files writably. The kernel counts such a mapping against a memory
    limit, including the other half's part."""
    import safetensors
    from transformers import modeling_utils
    from transformers.integrations import accelerate

    # The second library opens a single-file checkpoint only for names, and maps all of it.
    libraries: list[Any] = [modeling_utils, accelerate]
    mapping = [library.safe_open for library in libraries]

    def reading(path: str, *, framework: str, device: str = "cpu", backend: str = "") -> Any:
        file = safetensors.safe_open(path, framework, device, backend="pread")
        if stored is None:
            return WholeTensorFile(file, Path(path))
        return StoredWeightsFile(file, Path(path), stored, place)

    for library in libraries:
        library.safe_open = reading
    try:
        yield
    finally:
        for library, before in zip(libraries, mapping, strict=True):
            library.safe_open = before


NOTE = "penstock_unpinned"
"""Attribute of a half: why pinned memory was not used, or not for all of its weights."""
BUFFERS = 4
"""Number of buffers: one for each thread in which transformers reads."""


class PinnedBuffer:
    """Pinned host memory from which a GPU is filled."""

    def __init__(self, size: int) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.sent = torch.cuda.Event()

    def wait(self) -> None:
        """Wait until the last copy has read the buffer."""
        self.sent.synchronize()

    def send(self, to: torch.Tensor, stream: torch.cuda.Stream) -> None:
        """Copy as many bytes as `to` has, on the current stream, which is `stream`."""
        to.copy_(self.memory[: to.numel()], non_blocking=True)
        self.sent.record(stream)


class PinnedReader:
    """Reads tensors through a few buffers; safe to use from several threads."""

    def __init__(self, size: int) -> None:
        """Pin buffers of `size` bytes. Raises RuntimeError."""
        self._size = size
        self._free: SimpleQueue[PinnedBuffer] = SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(PinnedBuffer(size))

    def read(self, source: WholeTensorFile, device: Any, dtype: torch.dtype | None) -> torch.Tensor:
        """Return a tensor of a file on a GPU. Its bytes may arrive later than the call returns, but
        before any computation with it."""
        place = source.place
        stored = DTYPES[place.dtype]
        tensor = torch.empty(place.shape, dtype=dtype or stored, device=device)
        step = max(1, self._size // max(stored.itemsize, tensor.dtype.itemsize))
        for at, to in enumerate(tensor.reshape(-1).split(step)):
            self._fill(to, stored, source.path, place.start + at * step * stored.itemsize)
        return tensor

    def _fill(self, to: torch.Tensor, stored: torch.dtype, path: Path, start: int) -> None:
        buffer = self._free.get()
        try:
            buffer.wait()
            ready = buffer.memory[: to.nbytes]
            if to.dtype == stored:
                read_into(ready, path, start)
            else:
                raw = torch.empty(to.numel() * stored.itemsize, dtype=torch.uint8)
                read_into(raw, path, start)
                ready.view(to.dtype).copy_(raw.view(stored))
            buffer.send(to.view(torch.uint8), torch.cuda.current_stream(to.device))
        finally:
            self._free.put(buffer)


@contextlib.contextmanager
def pinned_reads(folder: Path) -> Iterator[str]:
    """Make the loader read a half that is loaded onto a GPU through pinned memory. Yields why it
    does not, if no memory can be pinned; else an empty text."""
    from transformers import core_model_loading

    largest = max((path.stat().st_size for path in folder.glob("*.safetensors")), default=1)
    try:
        reader = PinnedReader(min(PINNED_LOAD_BYTES // BUFFERS, largest))
    except RuntimeError as error:
        yield f"no host memory can be pinned: {first_line(error)}"
        return
    ordinary = core_model_loading._materialize_copy

    def read(tensor: Any, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        is_on_gpu = device is not None and str(device) != "cpu"
        if is_on_gpu and isinstance(tensor, WholeTensorFile) and tensor.place.dtype in DTYPES:
            return reader.read(tensor, device, dtype)
        return ordinary(tensor, device, dtype)

    core_model_loading._materialize_copy = read
    try:
        with ranged_reads():
            yield ""
    finally:
        core_model_loading._materialize_copy = ordinary
