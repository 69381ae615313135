"""Reads a half's weights into pinned memory and copies them to the GPU while the next are read.

How it works:

1. transformers reads tensors in a few threads. During a load, its function that reads one is
   replaced by one that does so in portions.
2. A portion is read into a free buffer of pinned memory, cast if it is stored in another type, and
   copied without waiting.
3. An event behind the copy tells when the buffer may be filled again.
4. The copies run on the stream on which the weights are used. Nothing is computed during a load, so
   a stream of their own would not overlap more.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from stages.models.half_job import PINNED_LOAD_BYTES
from stages.models.halves.ranged_reads import WholeTensorFile, ranged_reads, read_into
from stages.models.shards.layout import DTYPES
from stages.process.exit_diagnosis import first_line

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
        made = torch.empty(place.shape, dtype=dtype or stored, device=device)
        step = max(1, self._size // max(stored.itemsize, made.dtype.itemsize))
        for at, to in enumerate(made.reshape(-1).split(step)):
            self._fill(to, stored, source.path, place.start + at * step * stored.itemsize)
        return made

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
