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
from artifacts.regular import open_regular
from stages.models.hub.checkpoint import not_whole
from stages.models.shards.layout import DTYPE_NAMES

WRAPPERS = ("state_dict", "model_state_dict", "module", "model")
"""Names under which training code keeps a model's tensors, beside others."""
PARALLEL = "module."
"""Beginning of all names where training ran on several GPUs."""
PICKLE_BYTES = 64 << 20
"""Most bytes of the pickle in an archive: a tensor takes 200."""
LITTLE = b"little"
"""What an archive of this machine's byte order says."""
GLOBAL = re.compile(r"GLOBAL (\S+)")
"""What a pickle asks for, in torch's words."""
LOCAL_HEADER = struct.Struct("<26xHH")
"""ZIP: what stands before the bytes of a member, up to the lengths of its name and its extras."""


class Pickle:
    """One file of pickled tensors."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor], digest: str) -> None:
        self.path = path
        self.tensors = tensors
        """Tensors by name, without data: type, shape, and how they lie in the file."""
        self.digest = digest
        """Digest of the names, lengths and sums of all that is in the file."""
        with open_regular(path) as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor whose numbers are read from the file when they are looked at. They must
        not be written to."""
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
        return raw.view(meta.dtype).as_strided(meta.shape, meta.stride(), meta.storage_offset())


class ArchiveEntry(NamedTuple):
    """Bytes in an archive that may belong to tensors."""

    size: int
    stored: bool
    """Whether they lie there as they are, and not compressed."""


def open_pickle(path: Path) -> Pickle:
    """Open a file of pickled tensors; reads none of them. Raises UsageError for one that asks for
    anything else than tensors, EnvironmentFault for one that is not all there."""
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
            f"{path} holds no tensors by name, as the weights of a model are saved",
            hint="Give the file that holds the model's state_dict",
        )
    for name, tensor in tensors.items():
        _check(path, name, tensor, entries)
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): value for name, value in tensors.items()}
    return Pickle(path, tensors, digest)


def _entries(path: Path) -> tuple[dict[int, ArchiveEntry], str]:
    """Return where bytes begin in an archive → what lies there, and a digest of its listing."""
    found = {}
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        for entry in entries:
            # All but the bytes of tensors is read whole, here or by torch.
            if "/data/" not in entry.filename and entry.file_size > PICKLE_BYTES:
                raise ValueError("more is said of the tensors than there can be")
            if entry.filename.endswith("/byteorder") and (
                entry.file_size != len(LITTLE) or archive.read(entry) != LITTLE
            ):
                raise ValueError("the numbers are of a machine of the other kind")
            file.seek(entry.header_offset)
            name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            start = entry.header_offset + LOCAL_HEADER.size + name + extra
            stored = entry.compress_type == zipfile.ZIP_STORED
            found[start] = ArchiveEntry(entry.file_size, stored)
    return found, digest_of([(e.filename, e.file_size, e.CRC) for e in entries])


def _no_archive(path: Path) -> EnvironmentFault | UsageError:
    """Tell what a file is that is no ZIP archive, or not a whole one."""
    with open_regular(path) as file:
        begins = file.read(1)
    if begins == pickle.PROTO:
        return UsageError(
            f"{path} is a bare pickle, as torch wrote them before 1.6: it can only be read whole",
            hint="Where there is memory for it, save it again: "
            f"torch.save(torch.load({path.name!r}, weights_only=True), {path.name!r})",
        )
    return not_whole(path, "file of pickled weights")


def _unpickled(path: Path) -> Any:
    """Return what the pickle of an archive says, tensors without data."""
    try:
        return torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        found_global = GLOBAL.search(str(error))
        what = f"asks for {found_global[1]}" if found_global else "holds more than tensors"
        raise UsageError(
            f"{path} {what}: such a pickle can run code when it is read, and is refused",
            hint="Take the weights from somebody who saved tensors alone",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # the reader lets through whatever it stumbles over
        if "TorchScript" in str(error):
            raise UsageError(
                f"{path} is a TorchScript archive, which is code: it is refused",
                hint="Give the file that holds the model's state_dict",
            ) from error
        message = " ".join(str(error).split())[:160] or type(error).__name__
        raise EnvironmentFault(
            f"{path} cannot be read as pickled weights: {message}",
            hint="Download it again, or save its weights again as plain tensors",
        ) from error


def _state(found: Any) -> Mapping[str, Any]:
    """Return the tensors by name, out of what training code put around them."""
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
    """Refuse a tensor that cannot be mapped from where it is said to lie, or not be written."""
    odd = next(_odd(tensor), "")
    if odd:
        raise UsageError(
            f"{path}: tensor {name} is {odd}, which no safetensors file holds",
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
