"""Converts one model: writes its pickled tensors, one by one, into safetensors files of bounded
size.

A `torch.save` file of any size is read without loading the file into memory. Such a file is a ZIP
archive: a pickle that lists the tensors, and the raw bytes of each. Torch's tensors-only unpickler
reads the pickle into fake tensors, which have the position of the bytes: torch below 2.11 states it
for no others. The file is then mapped read-only. Torch's own `mmap=True` maps it writable, which
the kernel refuses for a file larger than the machine's memory.
"""

import contextlib
import json
import logging
import mmap
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json
from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault, UsageError
from stages.convert import DTYPES, ConvertJob
from stages.models.hub.checkpoint import (
    CONFIG,
    DOWNLOAD_HINT,
    incomplete_file,
    json_bytes,
    small_files,
    weight_map,
)
from stages.models.hub.errors import PICKLES
from stages.models.in_tree.registry import ORIGINALS
from stages.models.shards.layout import (
    DTYPE_NAMES,
    TensorSpec,
    claimed,
    lay_out,
    tensor_chunks,
    write_checkpoint,
)
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

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
        if not meta.numel():
            return torch.empty(meta.shape, dtype=meta.dtype)
        storage: Any = meta.untyped_storage()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            numbers = torch.frombuffer(
                self._mapped,
                dtype=meta.dtype,
                count=meta.numel(),
                offset=storage._checkpoint_offset + meta.storage_offset() * meta.element_size(),
            )
        return numbers.reshape(meta.shape)


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
    state = _state(_unpickled(path))
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
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


def _entries(path: Path) -> tuple[dict[int, zipfile.ZipInfo], str]:
    """Return offset of the data → archive entry, and a digest of the listing."""
    by_start = {}
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
            by_start[start] = entry
    return by_start, digest_of([(e.filename, e.file_size, e.CRC) for e in entries])


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
    return incomplete_file(path, "file of pickled weights")


def _reading_no_storage() -> contextlib.AbstractContextManager[Any]:
    """Return the mode in which torch.load states where storages lie in the file and reads none of
    them. Since 2.11 torch does so for the meta device; a mode of fake tensors imports the compiler,
    160 MB."""
    is_meta: Any = getattr(torch.serialization, "_is_meta_location", None)
    if is_meta is not None and is_meta("meta"):
        return contextlib.nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def _unpickled(path: Path) -> Any:
    """Return the content of the pickle of an archive, with tensors without data."""
    try:
        with _reading_no_storage():
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


def _state(content: Any) -> Mapping[str, Any]:
    """Return the named tensors from inside the wrappers of training code."""
    while isinstance(content, Mapping):
        inner = next(
            (content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None
        )
        if inner is None or any(isinstance(value, torch.Tensor) for value in content.values()):
            return {str(name): value for name, value in content.items()}
        content = inner
    return {}


def _check(
    path: Path, name: str, tensor: torch.Tensor, entries: Mapping[int, zipfile.ZipInfo]
) -> None:
    """Refuse a tensor that cannot be mapped from its position, or that safetensors cannot store."""
    odd = next(_odd(tensor), "")
    if odd:
        raise UsageError(
            f"{path}: tensor {name} is {odd}, which safetensors cannot store",
            hint="Save it again as a plain, contiguous tensor",
        )
    if not tensor.numel():
        return
    storage: Any = tensor.untyped_storage()
    entry = entries.get(getattr(storage, "_checkpoint_offset", -1))
    stored = entry.file_size if entry and entry.compress_type == zipfile.ZIP_STORED else 0
    end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    if end > min(storage.nbytes(), stored):
        raise incomplete_file(path, "file of pickled weights")


def _odd(tensor: torch.Tensor) -> Iterator[str]:
    if tensor.layout != torch.strided:
        yield "sparse"
    if tensor.dtype not in DTYPE_NAMES:
        yield f"of {tensor.dtype}"
    if tensor.untyped_storage().device.type != "meta":
        yield f"on {tensor.device}"
    if not tensor.is_contiguous() or tensor.is_neg():
        yield "a view of other numbers"


PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PARTS = "pytorch_model-*-of-[0-9]*[0-9].bin"
COMPANION_FILES = (
    "tokenizer*", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json",
    "*processor_config.json", "chat_template*",
)  # fmt: skip
"""Patterns of files that are copied along with an original weight file. Other files next to it,
such as in a download folder, may be unrelated."""
TYPES = ("dtype", "torch_dtype")
"""Names in config.json of the type of the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PickledModel:
    """A model on disk whose weights are pickled."""

    folder: Path
    files: tuple[Path, ...]
    """Its weight files."""
    index: dict[str, str]
    """Tensor → file, from the index; empty without one."""


def find_pickled(path: Path) -> PickledModel:
    """Find the weights of a folder, or of one file. Raises UsageError without weights,
    EnvironmentFault for incomplete ones."""
    if path.is_file():
        if path.suffix not in PICKLES:
            raise UsageError(
                f"{path} is not a file of pickled weights ({', '.join(PICKLES)})",
                hint=_already(path.parent) if path.suffix == ".safetensors" else "Check its name",
            )
        return PickledModel(folder=path.parent, files=(path,), index={})
    if not path.is_dir():
        raise UsageError(
            f"{path} does not exist",
            hint="Check its name; download a model of the hub first: "
            "hf download OWNER/NAME --local-dir FOLDER",
        )
    if any(path.glob("*.safetensors")):
        raise UsageError(f"{path} already holds safetensors", hint=_already(path))
    index = weight_map(path / PICKLED_INDEX) if (path / PICKLED_INDEX).exists() else {}
    files = tuple(path / name for name in sorted(set(index.values()))) or _files(path)
    for file in files:
        if not file.is_file():
            raise EnvironmentFault(
                f"{file} is missing (listed in {PICKLED_INDEX})", hint=DOWNLOAD_HINT
            )
    return PickledModel(folder=path, files=files, index=index)


def _already(folder: Path) -> str:
    return f"There is nothing to convert: use --model {folder}"


def _files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a folder without an index."""
    if (folder / PICKLED).exists():
        return (folder / PICKLED,)
    parts = sorted(folder.glob(PARTS))
    if parts:
        count = parts[0].stem.rpartition("-")[2]
        if len(parts) != int(count):
            raise EnvironmentFault(
                f"{folder} holds {len(parts)} of the {int(count)} files of its weights",
                hint=DOWNLOAD_HINT,
            )
        return tuple(parts)
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if len(pickles) == 1:
        return (pickles[0],)
    names = ", ".join(path.name for path in pickles[:3])
    raise UsageError(
        f"{folder} holds {'several pickles: ' + names if pickles else 'no pickled weights'}",
        hint="Give the file that holds the model" if pickles else "Check which folder it is",
    )


def config_as(content: bytes, dtype: str, path: Path) -> bytes:
    """Return config.json with all its weight types set to `dtype`; unchanged if `dtype` is empty.
    Raises EnvironmentFault if it is not JSON."""
    if not dtype:
        return content
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise incomplete_file(path, "configuration") from error
    _set_dtype(value, dtype)
    return json_bytes(value)


def _set_dtype(value: Any, dtype: str) -> None:
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name in TYPES and isinstance(inner, str):
            value[name] = dtype
        _set_dtype(inner, dtype)


MORE_ROOM = "Free some space, or use a folder on a larger disk; --dtype fp16 takes half of fp32"


class PickledTensor(NamedTuple):
    """The source of a tensor."""

    pickle: Pickle
    name: str
    """Its name in the pickle."""
    meta: torch.Tensor
    """Type and shape of what is written, without data."""


def run(job: JobFields, report: EventReporter) -> None:
    """Convert the model of a ConvertJob, and report each weight file as an item.

    A first note holds the number of `shards` and how many are `there` already. A last one holds the
    `tensors` and `data_bytes` of the folder. Raises PenstockError.
    """
    with _logs_as_warnings(report):
        _convert(parse_job(ConvertJob, job), report)


def _convert(job: ConvertJob, report: EventReporter) -> None:
    source, folder = find_pickled(Path(job.source)), Path(job.folder)
    dtype: torch.dtype | None = getattr(torch, DTYPES[job.dtype]) if job.dtype else None
    pickles = [open_pickle(path) for path in source.files]
    _check_index(source, pickles)
    names = [name for pickle in pickles for name in pickle.tensors]
    layouts = map(import_module, ORIGINALS.values())
    original = next((layout for layout in layouts if layout.recognises(names)), None)
    small = _small_files(source, pickles, original, dtype)
    origins = _origins(pickles, original)
    shards = lay_out((_spec(name, o.meta, dtype) for name, o in origins.items()), job.shard_bytes)
    made_of: dict[str, Json] = {
        "weights": digest_of([[pickle.path.name, pickle.digest] for pickle in pickles]),
        "dtype": job.dtype,
        "shard_bytes": job.shard_bytes,
    }
    with claimed(folder, made_of):
        contents = partial(_contents, origins, original)
        write_checkpoint(folder, shards, small, contents, report, MORE_ROOM)
    report.note(tensors=len(origins), data_bytes=sum(shard.data_bytes for shard in shards))


@contextlib.contextmanager
def _logs_as_warnings(report: EventReporter) -> Iterator[None]:
    """Report log messages within this block as warnings to the user."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: report.warning(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("stages")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _contents(
    origins: Mapping[str, PickledTensor], original: ModuleType | None, spec: TensorSpec
) -> Iterator[torch.Tensor]:
    """Yield a tensor in pieces. Raises UsageError if a number overflows its type."""
    pickle, name, _ = origins[spec.name]
    tensor = dict(_called(name, pickle.read(name), original))[spec.name]
    for piece in tensor_chunks(tensor):
        cast = piece.to(spec.dtype)
        if not (cast is piece or torch.equal(cast.isfinite(), piece.isfinite())):
            largest = piece[piece.isfinite()].abs().max().item()
            raise UsageError(
                f"tensor {spec.name} holds {largest:.6g}, which is infinite in "
                f"{str(spec.dtype).removeprefix('torch.')}",
                hint="Remove the output folder; convert with --dtype bf16 or without --dtype",
            )
        yield cast


def _called(
    name: str, tensor: torch.Tensor, original: ModuleType | None
) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors that one pickled tensor becomes, with their names."""
    return [(name, tensor)] if original is None else list(original.rename(name, tensor))


def _origins(pickles: Sequence[Pickle], original: ModuleType | None) -> dict[str, PickledTensor]:
    """Return tensor name → its source. Tensors that share memory are all written, because only the
    class of the model knows which can be left out."""
    sources: dict[str, PickledTensor] = {}
    for archive in pickles:
        for name, tensor in archive.tensors.items():
            for new, meta in _called(name, tensor, original):
                if new in sources:
                    raise EnvironmentFault(
                        f"tensor {new} is in {sources[new].pickle.path.name} and in {archive.path}",
                        hint="The files belong to different models: give one of them",
                    )
                sources[new] = PickledTensor(archive, name, meta)
    return sources


def _spec(name: str, meta: torch.Tensor, dtype: torch.dtype | None) -> TensorSpec:
    # Types of one byte are quantized numbers, which must keep their type.
    floating = meta.dtype.is_floating_point and meta.dtype.itemsize > 1
    return TensorSpec(name, dtype if dtype and floating else meta.dtype, tuple(meta.shape))


def _check_index(source: PickledModel, pickles: Sequence[Pickle]) -> None:
    held = {pickle.path.name: pickle.tensors for pickle in pickles}
    for name, file in source.index.items():
        if name not in held[Path(file).name]:
            raise EnvironmentFault(
                f"{source.folder / file} has no tensor {name} (listed in the index)",
                hint=DOWNLOAD_HINT,
            )


def _small_files(
    source: PickledModel,
    pickles: Sequence[Pickle],
    original: ModuleType | None,
    dtype: torch.dtype | None,
) -> dict[str, bytes]:
    """Return the other files of the model. Raises UsageError without a configuration."""
    files = small_files(source.folder, *([COMPANION_FILES] if original else []))
    small = {n: content for n, content in files.items() if Path(n).suffix not in PICKLES}
    dtype_name = str(dtype or "").removeprefix("torch.")
    if original is not None:
        shapes = {n: tuple(t.shape) for pickle in pickles for n, t in pickle.tensors.items()}
        types = [t.dtype for pickle in pickles for t in pickle.tensors.values()]
        widest = max((t for t in types if t.is_floating_point), key=lambda t: t.itemsize)
        dtype_name = dtype_name or str(widest).removeprefix("torch.")
        return {**small, CONFIG: json_bytes({**original.config(shapes), "dtype": dtype_name})}
    if CONFIG not in small:
        raise UsageError(
            f"{source.files[0]} is not a known original file ({', '.join(ORIGINALS)}), and "
            f"there is no {CONFIG} next to it",
            hint=f"Put the model's {CONFIG} and tokenizer into {source.folder}",
        )
    return {**small, CONFIG: config_as(small[CONFIG], dtype_name, source.folder / CONFIG)}
