"""Reads the tensors of a `torch.save` file of any size without loading the file into memory.

Such a file is a ZIP archive: a pickle that lists the tensors, and the raw bytes of each. Torch's
tensors-only unpickler reads the pickle on the meta device, which yields the position of the bytes.
The file is then mapped read-only. Torch's own `mmap=True` maps it writable, which the kernel
refuses for a file larger than the machine's memory.
"""

import mmap
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import digest_of
from artifacts.regular_files import open_regular
from stages.models.hub.checkpoint import not_whole
from stages.models.shards.layout import DTYPE_NAMES

WRAPPERS = ("state_dict", "model_state_dict", "module", "model")
"""Keys under which training code stores a model's tensors among other data."""
PARALLEL = "module."
"""Prefix of all names if training ran on several GPUs."""
PICKLE_BYTES = 64 << 20
"""Most bytes of the pickle in an archive; a tensor takes 200."""
LITTLE = b"little"
"""Byte order entry of an archive with this machine's byte order."""
GLOBAL = re.compile(r"GLOBAL (\S+)")
"""Name of a global that a pickle needs, in torch's error message."""
LOCAL_HEADER = struct.Struct("<26xHH")
"""ZIP local header, up to the lengths of the name and of the extra field."""


class Pickle:
    """One file of pickled tensors."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor], digest: str) -> None:
        self.path = path
        self.tensors = tensors
        """Tensors by name, without data: type, shape and position in the file."""
        self.digest = digest
        """Digest of the names, sizes and checksums of all archive entries."""
        with open_regular(path) as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor that is mapped from the file. It is read-only."""
        meta = self.tensors[name]
        storage: Any = meta.untyped_storage()
        if not meta.numel():
            return torch.empty(meta.shape, dtype=meta.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            raw = torch.frombuffer(
                self._mapped,
                dtype=torch.uint8,
                count=storage.nbytes(),
                offset=storage._checkpoint_offset,
            )
        found = raw.view(meta.dtype).as_strided(meta.shape, meta.stride(), meta.storage_offset())
        return found.neg() if meta.is_neg() else found


class ArchiveEntry(NamedTuple):
    """Bytes in an archive that may belong to tensors."""

    size: int
    stored: bool
    """Whether the entry is uncompressed."""


def open_pickle(path: Path) -> Pickle:
    """Open a file of pickled tensors, without reading them. Raises UsageError if the pickle needs
    anything but tensors, EnvironmentFault if the file is incomplete."""
    try:
        entries, digest = _entries(path)
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise _no_archive(path) from error
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be read ({error.strerror or error})", hint="Check the file"
        ) from error
    found = _state(_unpickled(path))
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UsageError(
            f"{path} has no named tensors, so it is not the weights of a model",
            hint="Give the file that holds the model's state_dict",
        )
    for name, tensor in tensors.items():
        _check(path, name, tensor, entries)
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): value for name, value in tensors.items()}
    return Pickle(path, tensors, digest)


def _entries(path: Path) -> tuple[dict[int, ArchiveEntry], str]:
    """Return offset → archive entry, and a digest of the listing."""
    found = {}
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        for entry in entries:
            # Entries other than tensor data are read whole, here or by torch.
            if "/data/" not in entry.filename and entry.file_size > PICKLE_BYTES:
                raise ValueError("the pickle is too large")
            if entry.filename.endswith("/byteorder") and (
                entry.file_size != len(LITTLE) or archive.read(entry) != LITTLE
            ):
                raise ValueError("the numbers have another byte order")
            file.seek(entry.header_offset)
            name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            start = entry.header_offset + LOCAL_HEADER.size + name + extra
            stored = entry.compress_type == zipfile.ZIP_STORED
            found[start] = ArchiveEntry(entry.file_size, stored)
    return found, digest_of([(e.filename, e.file_size, e.CRC) for e in entries])


def _no_archive(path: Path) -> EnvironmentFault | UsageError:
    """Return the error for a file that is not a complete ZIP archive."""
    with open_regular(path) as file:
        begins = file.read(1)
    if begins == pickle.PROTO:
        return UsageError(
            f"{path} is a plain pickle of torch before 1.6, which can only be read as a whole",
            hint="On a machine with enough memory, save it again: "
            f"torch.save(torch.load({path.name!r}, weights_only=True), {path.name!r})",
        )
    return not_whole(path, "file of pickled weights")


def _unpickled(path: Path) -> Any:
    """Return the content of the pickle of an archive, with tensors without data."""
    try:
        return torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        found_global = GLOBAL.search(str(error))
        what = f"needs {found_global[1]}" if found_global else "holds more than tensors"
        raise UsageError(
            f"{path} {what}: refused, because such a pickle can run code",
            hint="Use a file of the weights that holds only tensors",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch.load may raise any error
        if "TorchScript" in str(error):
            raise UsageError(
                f"{path} is a TorchScript archive: refused, because it contains code",
                hint="Give the file that holds the model's state_dict",
            ) from error
        message = " ".join(str(error).split())[:160] or type(error).__name__
        raise EnvironmentFault(
            f"{path} cannot be read as pickled weights: {message}",
            hint="Download it again, or save its weights again as plain tensors",
        ) from error


def _state(found: Any) -> Mapping[str, Any]:
    """Return the named tensors from inside the wrappers of training code."""
    while isinstance(found, Mapping):
        inner = next(
            (found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)), None
        )
        if inner is None or any(isinstance(value, torch.Tensor) for value in found.values()):
            return {str(name): value for name, value in found.items()}
        found = inner
    return {}


def _check(
    path: Path, name: str, tensor: torch.Tensor, entries: Mapping[int, ArchiveEntry]
) -> None:
    """Refuse a tensor that cannot be mapped from its position, or that safetensors cannot store."""
    odd = next(_odd(tensor), "")
    if odd:
        raise UsageError(
            f"{path}: tensor {name} is {odd}, which safetensors cannot store",
            hint="Save it again as a plain tensor",
        )
    if not tensor.numel():
        return
    storage: Any = tensor.untyped_storage()
    entry = entries.get(getattr(storage, "_checkpoint_offset", -1))
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    if entry is None or not entry.stored or not end <= storage.nbytes() <= entry.size:
        raise not_whole(path, "file of pickled weights")


def _odd(tensor: torch.Tensor) -> Iterator[str]:
    if tensor.layout != torch.strided:
        yield "sparse"
    if tensor.dtype not in DTYPE_NAMES:
        yield f"of {tensor.dtype}"
    if not tensor.is_meta:
        yield f"on {tensor.device}"
