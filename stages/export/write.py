"""Writes one quantized checkpoint tensor by tensor and file by file, without loading the model."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from artifacts.errors import EnvironmentFault
from stages.export.export_plan import ExportPlan, StoredTensor, plan_export
from stages.export.jobs import PACKED, ExportJob
from stages.export.quant_formats import Int8, Nf4, Packed, QuantFormat
from stages.models.halves.classes import config_and_class
from stages.models.hub.checkpoint import CONFIG, json_bytes, small_files
from stages.models.hub.headers import read_places
from stages.models.published import with_way
from stages.models.shards import SHARD_BYTES
from stages.models.shards.layout import TensorSpec, WeightShard, lay_out
from stages.models.shards.writing import (
    check_room,
    claimed,
    keeping_files,
    tensor_chunks,
    write_rest,
    write_shard,
)
from stages.process.deferred_imports import import_transformers
from stages.process.report import EventReporter


def files_of(
    plan: ExportPlan, form: QuantFormat, shard_bytes: int = SHARD_BYTES
) -> list[WeightShard]:
    """Return the files to write, each with its tensors and their approximate sizes."""
    return lay_out((_about(tensor, form) for tensor in plan.tensors), shard_bytes)


def _about(tensor: StoredTensor, form: QuantFormat) -> TensorSpec:
    size = form.size(tensor.shape, tensor.dtype) if tensor.module else tensor.size
    return TensorSpec(tensor.name, torch.uint8, (size,))


def is_made(folder: Path, file: WeightShard, plan: ExportPlan, form: QuantFormat) -> bool:
    """Return whether a file exists and is complete."""
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
    made: dict[str, torch.Tensor] = {}
    for spec in file.tensors:
        tensor = stored[spec.name]
        weight = read_tensor(tensor)
        if not tensor.module:
            made[spec.name] = weight
            continue
        made.update(form.tensors(spec.name, weight.mT.contiguous() if tensor.turned else weight))
    specs = [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in made.items()]
    widest_first = sorted(specs, key=lambda found: -found.dtype.itemsize)
    exact = WeightShard(name=file.name, tensors=tuple(widest_first))
    write_shard(folder, exact, lambda found: tensor_chunks(made[found.name]), confirm)


def read_tensor(tensor: StoredTensor) -> torch.Tensor:
    """Return a tensor in the type in which it is loaded."""
    # Not mapped: a writable map counts fully against a memory limit.
    with safe_open(tensor.file, "pt", backend="pread") as file:
        found: torch.Tensor = file.get_tensor(tensor.name)
    return found.to(tensor.dtype)


def as_written(path: Path) -> WeightShard:
    """Return the layout of a written file."""
    places = read_places(path)
    specs = (TensorSpec(name, torch.uint8, (p.end - p.start,)) for name, p in places.items())
    return WeightShard(name=path.name, tensors=tuple(specs))


MORE_ROOM = "Free some space, or use a folder on a larger disk"


def warm(job: ExportJob) -> None:
    """Import what the model's class needs before memory is counted."""
    import_transformers()
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
        left = [file for file in files if not is_made(folder, file, plan, form)]
        report.total(len(left))
        report.note(files=len(files), there=len(files) - len(left), modules=len(plan.modules))
        if not left and (folder / CONFIG).exists():
            return
        check_room(folder, left, MORE_ROOM)
        with keeping_files():
            for file in left:
                write_file(folder, file, plan, form, job.files.check)
                report.item(file.name, label=file.name)
            small[CONFIG] = with_way(_config(small[CONFIG], plan, form), job.as_published)
            job.files.check()
            write_rest(folder, [as_written(folder / file.name) for file in files], small)


def form_of(job: ExportJob) -> QuantFormat:
    """Return the quantization format of a job."""
    if job.kind in PACKED:
        rounded = Path(job.calibrated) if job.calibrated else None
        return Packed(PACKED[job.kind], job.group, rounded)
    return Nf4() if job.kind == "nf4" else Int8()


def _config(content: bytes, plan: ExportPlan, form: QuantFormat) -> bytes:
    """Return config.json with the `quantization_config`."""
    value = json.loads(content)
    names = plan.unquantized
    if isinstance(form, Packed):  # some loaders use the names in the files, also for experts
        names = (*names, *plan.unquantized_matrices())
    value["quantization_config"] = form.settings(plan.dtype, names)
    return json_bytes(value)
