"""Writes a checkpoint whose language half is a GGUF file, tensor by tensor.

1. The weights of the text decoder and of the output head go into the GGUF file. All others go into
   safetensors files as they are loaded.
2. Kinds of few bits are quantized by llama.cpp itself, from a file in the checkpoint's own type.
3. The manifest says what is in the file. config.json comes last.
"""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch

from artifacts.errors import EnvironmentFault
from artifacts.files import HALF, replace_file, write_json
from artifacts.plurals import counted
from artifacts.schema import Part
from artifacts.store import fault_of
from stages.export.export_plan import ExportPlan, StoredTensor, plan_export
from stages.export.gguf_tokenizer import GgufTokenizer, tokenizer_of
from stages.export.jobs import ExportJob
from stages.export.write import (
    MORE_ROOM,
    as_written,
    files_of,
    form_of,
    is_made,
    read_tensor,
    write_file,
)
from stages.export.write import warm as warm_export
from stages.models.gguf import FILE, FORMAT, MANIFEST, PACKAGES
from stages.models.gguf.half import core_names, core_paths
from stages.models.gguf.header import TABLE
from stages.models.gguf.library import last_words, library
from stages.models.gguf.mapping import Change, TextMapping, mapping_of, refused
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.hub.checkpoint import CONFIG, small_files
from stages.models.precision.weights import model_names
from stages.models.published import with_way
from stages.models.shards.writing import (
    GO_ON,
    check_free,
    check_room,
    claimed,
    keeping_files,
    write_rest,
)
from stages.process.report import EventReporter

PARTS: tuple[Part, ...] = ("language",)
FILE_TYPES: Mapping[str, gguf.LlamaFileType] = {
    "gguf-f32": gguf.LlamaFileType.ALL_F32,
    "gguf-f16": gguf.LlamaFileType.MOSTLY_F16,
    "gguf-bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "gguf-q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "gguf-q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "gguf-q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
"""Kind of an export → what its file states of the tensors' types."""
DIRECT = {torch.float32: "gguf-f32", torch.float16: "gguf-f16", torch.bfloat16: "gguf-bf16"}
"""Type of a checkpoint → kind of the same bits. The kinds that are not here llama.cpp quantizes
from one that is."""
F32 = gguf.GGMLQuantizationType.F32


class CoreTensor(NamedTuple):
    """A tensor of the text decoder or of the output head."""

    stored: StoredTensor
    name: str
    """Its name in the GGUF file."""
    change: Change
    """What changes its values."""


class GgufPlan(NamedTuple):
    """What goes where."""

    mapping: TextMapping
    core: tuple[CoreTensor, ...]
    rest: ExportPlan
    """The tensors of everything else."""

    @property
    def rows(self) -> int:
        """Return the rows of the embedding table."""
        return int(next(t for t in self.core if t.name == TABLE).stored.shape[0])


def plan_gguf(folder: Path, trusted: bool) -> GgufPlan:
    """Plan the GGUF file of a checkpoint. Raises UsageError for a model that is not mapped."""
    config, cls = config_and_class(folder, trusted)
    mapping = mapping_of(config, str(folder))
    plan = plan_export(folder, PARTS, trusted)
    skeleton = skeleton_of(config, cls)
    decoder, head = core_paths(skeleton)
    names = core_names(skeleton, mapping)
    core, rest, heads = [], [], []
    paths = model_names(skeleton, [tensor.name for tensor in plan.tensors])
    for tensor, path in zip(plan.tensors, paths, strict=True):
        if path is None or not path.startswith((f"{decoder}.", f"{head}.")):
            rest.append(tensor)
        elif path == f"{head}.weight" and mapping.made.tied:
            heads.append(tensor)
        elif (name := names.get(path)) is not None:
            core.append(CoreTensor(tensor, name, mapping.change_of(path)))
        else:
            raise refused(str(folder), f"{path} has no place in it")
    for tensor in heads:  # llama.cpp has no place for a head of its own
        (table,) = (each.stored for each in core if each.name == TABLE)
        if not torch.equal(read_tensor(tensor), read_tensor(table)):
            raise refused(str(folder), "its output head is not its embedding table")
    if missing := sorted(path for path in names.keys() - paths if path.startswith(f"{decoder}.")):
        more, first = counted(len(missing), "tensor"), missing[0].removeprefix(f"{decoder}.")
        raise refused(str(folder), f"it stores {more} in another form, such as {first}")
    kept = tuple(replace(tensor, module="") for tensor in rest)  # not quantized
    return GgufPlan(mapping, tuple(core), replace(plan, tensors=kept))


def warm(job: ExportJob) -> None:
    """Import what the model's class and llama.cpp need before memory is counted."""
    warm_export(job)
    library()


def export(job: ExportJob, report: EventReporter) -> None:
    """Write a checkpoint with a GGUF file. Raises PenstockError."""
    source, folder = Path(job.model), Path(job.folder)
    plan, form = plan_gguf(source, job.trust_remote_code), form_of(job)
    small = small_files(source)
    files = files_of(plan.rest, form, job.shard_bytes)
    with claimed(folder, {**job.recipe, "shard_bytes": job.shard_bytes}):
        left = [file for file in files if not is_made(folder, file, plan.rest, form)]
        there = len(files) - len(left) + (folder / MANIFEST).exists()
        report.total(len(files) + 1 - there)
        report.note(files=len(files) + 1, there=there)
        check_room(folder, left, MORE_ROOM)
        try:
            with keeping_files():
                for file in left:
                    write_file(folder, file, plan.rest, form, job.files.check)
                    report.item(file.name, label=file.name)
                if not (folder / MANIFEST).exists():
                    _write_file(job, plan, folder)
                    report.item(FILE, label=FILE)
                small[CONFIG] = with_way(small[CONFIG], job.as_published)
                job.files.check()
                write_rest(folder, [as_written(folder / file.name) for file in files], small)
        except OSError as error:
            raise fault_of(error, folder) from error


def _write_file(job: ExportJob, plan: GgufPlan, folder: Path) -> None:
    """Write the GGUF file and its manifest. A killed process leaves files that the next removes."""
    whole, made = folder / f"{HALF}{FILE}", folder / f"{HALF}few-bits-{FILE}"
    direct = job.kind in DIRECT.values()
    kind = job.kind if direct else DIRECT.get(plan.rest.dtype, "gguf-f32")
    parameters = sum(torch.Size(tensor.stored.shape).numel() for tensor in plan.core)
    each = (4 if kind == "gguf-f32" else 2) + (not direct)
    check_free(folder, parameters * each, MORE_ROOM)
    ordered = "its rotary positions are those of images and videos, after the order of tokens"
    tokenizer: GgufTokenizer | str = ordered
    if not plan.mapping.made.by_order:
        tokenizer = tokenizer_of(Path(job.model), plan.rows, folder)
    try:
        _write(whole, plan, kind, tokenizer)
        if not direct:
            _quantize(whole, made, job.kind)
            made.replace(whole)
        with whole.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        job.files.check()
        size = whole.stat().st_size
        replace_file(whole, folder / FILE)
    finally:
        for path in (whole, made):
            path.unlink(missing_ok=True)
    found = {"kind": job.kind, "sha256": digest, "bytes": size, "parameters": parameters}
    by = {name: version(name) for name in PACKAGES}
    more = {"architecture": plan.mapping.architecture, "made_by": by, **plan.mapping.dimensions}
    more["penstock_only"] = tokenizer if isinstance(tokenizer, str) else ""
    write_json(folder / MANIFEST, {"format": FORMAT, **found, **more})


def _write(path: Path, plan: GgufPlan, kind: str, tokenizer: GgufTokenizer | str) -> None:
    """Write a GGUF file with matrices of a kind in DIRECT; vectors are in 32 bit."""
    mapping, matrix = plan.mapping, gguf.GGMLQuantizationType[kind.removeprefix("gguf-").upper()]
    writer = gguf.GGUFWriter(path, mapping.architecture)
    mapping.add_metadata(writer, plan.rows)
    if isinstance(tokenizer, str):
        writer.add_description(f"Language half for Penstock only: {tokenizer}")
        writer.add_tokenizer_model("none")
    else:
        writer.add_description("Language half, written by Penstock")
        tokenizer.add_to(writer)
    writer.add_file_type(FILE_TYPES[kind])
    kinds = {}
    for tensor in plan.core:
        shape = tensor.change(torch.empty(tensor.stored.shape, device="meta")).shape
        kinds[tensor.name] = own = matrix if len(tensor.stored.shape) == 2 else F32
        size = shape.numel() * (4 if own == F32 else 2)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, raw_dtype=own)
    added = mapping.added()
    for name, values in added.items():
        writer.add_tensor_info(name, values.shape, np.dtype(np.float32), values.numel() * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in plan.core:
        writer.write_tensor_data(_numbers(tensor, kinds[tensor.name]))
    for values in added.values():
        writer.write_tensor_data(values.numpy())
    writer.close()


def _numbers(tensor: CoreTensor, kind: Any) -> Any:
    found = tensor.change(read_tensor(tensor.stored)).float().contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.F16:
        return found.astype(np.float16)
    return found if kind == F32 else gguf.quants.quantize(found, kind)


def _quantize(source: Path, path: Path, kind: str) -> None:
    """Quantize a GGUF file by llama.cpp. Raises EnvironmentFault."""
    api = library()
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[kind], torch.get_num_threads()
    last_words()
    paths = (os.fsencode(source), os.fsencode(path))
    if api.llama_model_quantize(*paths, ctypes.byref(parameters)):
        raise EnvironmentFault(
            f"llama.cpp could not quantize to {kind}: {last_words()}", hint=GO_ON
        )
