"""Quantization formats, and the writer of a quantized checkpoint.

A format states the stored tensors of each weight, their names and their approximate size. The
writer goes tensor by tensor and file by file, without loading the model.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from artifacts.disk.files import whole_file
from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault, UsageError
from stages.export import BITSANDBYTES, PACKED, ExportJob
from stages.export.export_plan import ExportPlan, StoredTensor, plan_export
from stages.export.rounding import CannotRound, Rounded, round_to_nearest, unsupported_columns
from stages.models.halves.model_class import config_and_class
from stages.models.hub.checkpoint import CONFIG, json_bytes, small_files
from stages.models.hub.headers import read_places
from stages.models.precision.quantize import settings_of
from stages.models.published import stating_as_published
from stages.models.shards import SHARD_BYTES
from stages.models.shards.layout import (
    TensorSpec,
    WeightShard,
    check_room,
    claimed,
    keeping_files,
    lay_out,
    tensor_chunks,
    write_rest,
    write_shard,
)
from stages.process.deferred_imports import import_transformers
from stages.process.events import EventReporter

BLOCK, SUPERBLOCK = 64, 256
"""Numbers per scale, and scales per second-level scale."""
PIECE = 1 << 20
"""Numbers that are quantized at once, a multiple of a block; quantizing makes several copies."""
STATE_BYTES = 4096
"""Approximate bytes of the tables of one weight and their description."""
ROW_FORMAT = 0
"""bitsandbytes' code for row-major numbers."""


class _BitsAndBytes:
    """A format that bitsandbytes loads, for all linear layers."""

    kind: str

    def takes(self, module: torch.nn.Module) -> str:
        """Return why a linear layer's weight cannot be stored in this format; empty if it can."""
        return ""

    def settings(self, dtype: torch.dtype, unquantized: Iterable[str]) -> dict[str, Json]:
        """Return the `quantization_config` of config.json; `unquantized` are the linear layers that
        are left out."""
        return dict(settings_of(self.kind, dtype, unquantized).to_dict())


class Nf4(_BitsAndBytes):
    """4 bits per number by the quantiles of a normal distribution; the scales are quantized in turn
    (QLoRA, https://arxiv.org/abs/2305.14314)."""

    kind = "nf4"

    def names(self, name: str) -> list[str]:
        """Return the names of the tensors in which a weight is stored."""
        extras = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        return [name, *(f"{name}.{extra}" for extra in (*extras, "quant_state.bitsandbytes__nf4"))]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Return the approximate bytes of these tensors."""
        numbers = math.prod(shape)
        return numbers // 2 + numbers // BLOCK + 4 * numbers // BLOCK // SUPERBLOCK + STATE_BYTES

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return these tensors by name. The weight has the type in which the model computes."""
        from bitsandbytes import functional

        pieces = [
            functional.quantize_4bit(piece, blocksize=BLOCK, quant_type="nf4")
            for piece in weight.reshape(-1).split(PIECE)
        ]
        scales = torch.cat([state.absmax for _, state in pieces])
        offset = scales.mean()
        small, second = functional.quantize_blockwise(scales - offset, blocksize=SUPERBLOCK)
        state = functional.QuantState(  # type: ignore[no-untyped-call]
            absmax=small,
            shape=weight.shape,
            code=pieces[0][1].code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=weight.dtype,
            offset=offset,
            state2=second,
        )
        extras: dict[str, torch.Tensor] = state.as_dict(packed=True)
        packed = torch.cat([codes for codes, _ in pieces])
        return {name: packed, **{f"{name}.{key}": value for key, value in extras.items()}}


class Int8(_BitsAndBytes):
    """8 bits per number, one scale per row (LLM.int8(), https://arxiv.org/abs/2208.07339)."""

    kind = "int8"

    def names(self, name: str) -> list[str]:
        owner = name.removesuffix("weight")
        return [name, f"{owner}SCB", f"{owner}weight_format"]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return math.prod(shape) + 4 * shape[0]

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        from bitsandbytes import functional

        pieces = [
            functional.int8_vectorwise_quant(rows.to(torch.float16))
            for rows in weight.split(max(1, PIECE // weight.shape[1]))
        ]
        numbers, scales = (torch.cat([piece[at] for piece in pieces]) for at in (0, 1))
        form = torch.tensor(ROW_FORMAT, dtype=torch.uint8)
        return dict(zip(self.names(name), (numbers, scales, form), strict=True))


METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
WORD = 32


def specs(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, bits: int, group: int
) -> list[TensorSpec]:
    """Return the tensors that replace the weight `name`, which ends with `.weight`."""
    rows, columns = shape
    return [
        TensorSpec(f"{name}_packed", torch.int32, (rows, columns * bits // WORD)),
        TensorSpec(f"{name}_scale", dtype, (rows, columns // group)),
        TensorSpec(f"{name}_shape", torch.int64, (2,)),
    ]


def tensors(name: str, rounded: Rounded, dtype: torch.dtype, bits: int) -> dict[str, torch.Tensor]:
    """Return the tensors described by `specs`, by name."""
    return {
        f"{name}_packed": pack(rounded.numbers, bits),
        f"{name}_scale": rounded.scales.to(dtype),
        f"{name}_shape": torch.tensor(rounded.numbers.shape, dtype=torch.int64),
    }


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack int8 numbers [rows, columns] into int32 words [rows, columns * bits / 32]. The number of
    columns is a multiple of the numbers per word."""
    assert sys.byteorder == "little" and numbers.shape[1] * bits % WORD == 0
    # Bytes wrap around: -8 + 8 is the 0 of 4 bits.
    raised = numbers.view(torch.uint8) + 2 ** (bits - 1)
    if bits == 4:
        raised = raised[:, 0::2] | (raised[:, 1::2] << 4)
    packed: torch.Tensor = raised.contiguous().view(torch.int32)
    return packed


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the int8 numbers that were packed."""
    raised = packed.contiguous().view(torch.uint8)
    if bits == 4:
        raised = torch.stack((raised & 15, raised >> 4), dim=-1).flatten(1)
    numbers: torch.Tensor = (raised - 2 ** (bits - 1)).view(torch.int8)
    return numbers


def quantization_config(bits: int, group: int, ignore: Iterable[str]) -> dict[str, Any]:
    """Return the `quantization_config` of config.json as compressed-tensors 0.20 writes it.

    `ignore` lists the exact names of the linear layers that are not quantized. transformers
    compares its module names, vLLM the names in the files (mapped to its own); if they differ, give
    both.
    """
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "group_size": group,
        "strategy": "group",
        "dynamic": False,
    }
    linears = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }
    return {
        "config_groups": {"group_0": linears},
        "quant_method": METHOD,
        "kv_cache_scheme": None,
        "format": FORMAT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": sorted(set(ignore)),
        "moe_sparsity_config": None,
    }


class Packed:
    """Integers of 4 or 8 bits, one scale per group of columns."""

    def __init__(self, bits: int, group: int, rounded: Path | None = None) -> None:
        """`rounded` is the folder of calibrated weights."""
        self.bits = bits
        self.group = group
        self._rounded = rounded

    def takes(self, module: torch.nn.Module) -> str:
        if type(module) is not torch.nn.Linear:
            return f"a weight in the layout of {type(module).__name__}"
        return unsupported_columns(module.in_features, self.group)

    def names(self, name: str) -> list[str]:
        return [spec.name for spec in specs(name, (1, self.group), torch.float16, 8, self.group)]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return sum(spec.size for spec in specs("", shape, dtype, self.bits, self.group))

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._rounded is not None and (path := self._rounded / name).exists():
            return load_file(path)
        try:
            rounded = round_to_nearest(weight, self.bits, self.group, weight.dtype)
        except CannotRound as error:
            raise UsageError(
                f"{name} cannot be rounded: {error}", hint="Check where the checkpoint comes from"
            ) from error
        return tensors(name, rounded, weight.dtype, self.bits)

    def settings(self, dtype: torch.dtype, unquantized: Iterable[str]) -> dict[str, Json]:
        return quantization_config(self.bits, self.group, unquantized)

    def keep(self, name: str, rounded: Rounded, dtype: torch.dtype) -> None:
        """Write a quantized weight into the folder. Raises EnvironmentFault."""
        assert self._rounded is not None
        stored = tensors(name, rounded, dtype, self.bits)
        with whole_file(self._rounded / name) as file:
            file.write(save({key: value.cpu() for key, value in stored.items()}))


QuantFormat = Nf4 | Int8 | Packed


def files_of(
    plan: ExportPlan, form: QuantFormat, shard_bytes: int = SHARD_BYTES
) -> list[WeightShard]:
    """Return the files to write, each with its tensors and their approximate sizes."""
    sizes = (form.size(t.shape, t.dtype) if t.module else t.size for t in plan.tensors)
    pairs = zip(plan.tensors, sizes, strict=True)
    return lay_out((TensorSpec(t.name, torch.uint8, (size,)) for t, size in pairs), shard_bytes)


def is_made(folder: Path, file: WeightShard, plan: ExportPlan, form: QuantFormat) -> bool:
    stored = {tensor.name: tensor for tensor in plan.tensors}
    names: set[str] = set()
    for spec in file.tensors:
        names.update(form.names(spec.name) if stored[spec.name].module else [spec.name])
    try:
        return (folder / file.name).exists() and set(read_places(folder / file.name)) == names
    except EnvironmentFault:
        return False


def write_file(
    folder: Path,
    file: WeightShard,
    plan: ExportPlan,
    form: QuantFormat,
    confirm: Callable[[], object] = bool,
) -> None:
    """Write one file. It appears only if `confirm` raises nothing. Raises EnvironmentFault."""
    stored = {tensor.name: tensor for tensor in plan.tensors}
    tensors_of_file: dict[str, torch.Tensor] = {}
    for spec in file.tensors:
        tensor = stored[spec.name]
        weight = read_tensor(tensor)
        if not tensor.module:
            tensors_of_file[spec.name] = weight
            continue
        tensors_of_file.update(
            form.tensors(spec.name, weight.mT.contiguous() if tensor.transposed else weight)
        )
    specs = [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in tensors_of_file.items()]
    widest_first = sorted(specs, key=lambda tensor_spec: -tensor_spec.dtype.itemsize)
    exact = WeightShard(name=file.name, tensors=tuple(widest_first))
    write_shard(
        folder, exact, lambda tensor_spec: tensor_chunks(tensors_of_file[tensor_spec.name]), confirm
    )


def read_tensor(tensor: StoredTensor) -> torch.Tensor:
    """Return a tensor in the type in which it is loaded."""
    # Not mapped: a writable map counts fully against a memory limit.
    with safe_open(tensor.file, "pt", backend="pread") as file:
        loaded: torch.Tensor = file.get_tensor(tensor.name)
    return loaded.to(tensor.dtype)


def as_written(path: Path) -> WeightShard:
    """Return the layout of a written file."""
    places = read_places(path)
    specs = (TensorSpec(name, torch.uint8, (p.end - p.start,)) for name, p in places.items())
    return WeightShard(name=path.name, tensors=tuple(specs))


MORE_ROOM = "Free some space, or use a folder on a larger disk"


def warm(job: ExportJob) -> None:
    """Import what the model's class and the kind need before memory is counted."""
    import_transformers()
    if job.kind in BITSANDBYTES:
        import bitsandbytes  # noqa: F401
    config_and_class(Path(job.model), job.trust_remote_code)


def export(job: ExportJob, report: EventReporter) -> None:
    """Write a quantized checkpoint. A note also holds the number of quantized `modules`. Raises
    PenstockError."""
    source, folder = Path(job.model), Path(job.folder)
    form = form_of(job)
    plan = plan_export(source, job.parts, job.trust_remote_code, form.takes)
    small = small_files(source)
    files = files_of(plan, form, job.shard_bytes)
    with claimed(folder, {**job.recipe, "shard_bytes": job.shard_bytes}):
        files_left = [file for file in files if not is_made(folder, file, plan, form)]
        report.total(len(files_left))
        report.note(files=len(files), there=len(files) - len(files_left), modules=len(plan.modules))
        if not files_left and (folder / CONFIG).exists():
            return
        check_room(folder, files_left, MORE_ROOM)
        with keeping_files():
            for file in files_left:
                write_file(folder, file, plan, form, job.files.check)
                report.answered(file.name, label=file.name)
            small[CONFIG] = stating_as_published(
                _config(small[CONFIG], plan, form), job.as_published
            )
            job.files.check()
            write_rest(folder, [as_written(folder / file.name) for file in files], small)


def form_of(job: ExportJob) -> QuantFormat:
    if job.kind in PACKED:
        rounded = Path(job.calibrated) if job.calibrated else None
        return Packed(PACKED[job.kind], job.group, rounded)
    return Nf4() if job.kind == "nf4" else Int8()


def _config(content: bytes, plan: ExportPlan, form: QuantFormat) -> bytes:
    value = json.loads(content)
    names = plan.unquantized
    if isinstance(form, Packed):  # some loaders use the names in the files, also for experts
        names = (*names, *plan.unquantized_matrices())
    value["quantization_config"] = form.settings(plan.dtype, names)
    return json_bytes(value)
