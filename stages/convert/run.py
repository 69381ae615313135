"""Converts one model: writes its pickled tensors, one by one, into safetensors files of bounded
size."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import digest_of
from stages.convert.job import DTYPES, ConvertJob
from stages.convert.pickles import Pickle, open_pickle
from stages.models.hub.checkpoint import (
    CONFIG,
    DOWNLOAD_HINT,
    json_bytes,
    not_whole,
    small_files,
    weight_map,
)
from stages.models.hub.hub_errors import PICKLES
from stages.models.in_tree.registry import ORIGINALS, OriginalLayout
from stages.models.shards.layout import TensorSpec, lay_out
from stages.models.shards.writing import claimed, tensor_chunks, write_checkpoint
from stages.process.job import parse_job
from stages.process.report import EventReporter

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
    alone: bool
    """Whether the user gave a file, not a folder."""

    def small_files(self, original: bool) -> dict[str, bytes]:
        """Return the files without weights, by name. For an `original` file only those of tokenizer
        and processor. Raises EnvironmentFault for an unreadable file."""
        found = small_files(self.folder, *([COMPANION_FILES] if original else []))
        return {n: content for n, content in found.items() if Path(n).suffix not in PICKLES}


def find_pickled(path: Path) -> PickledModel:
    """Find the weights of a folder, or of one file. Raises UsageError without weights,
    EnvironmentFault for incomplete ones."""
    if path.is_file():
        if path.suffix not in PICKLES:
            raise UsageError(
                f"{path} is not a file of pickled weights ({', '.join(PICKLES)})",
                hint=_already(path.parent) if path.suffix == ".safetensors" else "Check its name",
            )
        return PickledModel(folder=path.parent, files=(path,), index={}, alone=True)
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
    return PickledModel(folder=path, files=files, index=index, alone=False)


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
    found = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if len(found) == 1:
        return (found[0],)
    names = ", ".join(path.name for path in found[:3])
    raise UsageError(
        f"{folder} holds {'several pickles: ' + names if found else 'no pickled weights'}",
        hint="Give the file that holds the model" if found else "Check which folder it is",
    )


def config_as(content: bytes, dtype: str, path: Path) -> bytes:
    """Return config.json with all its weight types set to `dtype`; unchanged if `dtype` is empty.
    Raises EnvironmentFault if it is not JSON."""
    if not dtype:
        return content
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise not_whole(path, "configuration") from error
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


def run(job: dict[str, Any], report: EventReporter) -> None:
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
    original = next((layout for layout in ORIGINALS if layout.recognises(names)), None)
    small = _small_files(source, pickles, original, dtype)
    origins = _origins(pickles, original)
    shards = lay_out((_spec(name, o.meta, dtype) for name, o in origins.items()), job.shard_bytes)
    made_of = {
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
    origins: Mapping[str, PickledTensor], original: OriginalLayout | None, spec: TensorSpec
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
    name: str, tensor: torch.Tensor, original: OriginalLayout | None
) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors that one pickled tensor becomes, with their names."""
    return [(name, tensor)] if original is None else list(original.rename(name, tensor))


def _origins(
    pickles: Sequence[Pickle], original: OriginalLayout | None
) -> dict[str, PickledTensor]:
    """Return tensor name → its source. Tensors that share memory are all written, because only the
    class of the model knows which can be left out."""
    found: dict[str, PickledTensor] = {}
    for pickle in pickles:
        for name, tensor in pickle.tensors.items():
            for new, meta in _called(name, tensor, original):
                if new in found:
                    raise EnvironmentFault(
                        f"tensor {new} is in {found[new].pickle.path.name} and in {pickle.path}",
                        hint="The files belong to different models: give one of them",
                    )
                found[new] = PickledTensor(pickle, name, meta)
    return found


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
    original: OriginalLayout | None,
    dtype: torch.dtype | None,
) -> dict[str, bytes]:
    """Return the other files of the model. Raises UsageError without a configuration."""
    small = source.small_files(original is not None)
    dtype_name = str(dtype or "").removeprefix("torch.")
    if original is not None:
        shapes = {n: tuple(t.shape) for pickle in pickles for n, t in pickle.tensors.items()}
        types = [t.dtype for pickle in pickles for t in pickle.tensors.values()]
        widest = max((t for t in types if t.is_floating_point), key=lambda t: t.itemsize)
        dtype_name = dtype_name or str(widest).removeprefix("torch.")
        return {**small, CONFIG: json_bytes({**original.config(shapes), "dtype": dtype_name})}
    if CONFIG not in small:
        known = ", ".join(layout.description for layout in ORIGINALS)
        raise UsageError(
            f"{source.files[0]} is not a known original file ({known}), and there is no {CONFIG} "
            "next to it",
            hint=f"Put the model's {CONFIG} and tokenizer into {source.folder}",
        )
    return {**small, CONFIG: config_as(small[CONFIG], dtype_name, source.folder / CONFIG)}
