"""Writes one checkpoint in few bits: tensor by tensor, file by file, without a model in memory."""

import json
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, ModelChanged
from artifacts.model_files import ModelFiles
from stages.export.bitsandbytes_forms import Int8, Nf4
from stages.export.forms import WeightForm
from stages.export.job import PACKED, ExportJob
from stages.export.outline import Outline, outline_of
from stages.export.packed_form import Packed
from stages.export.weights import files_of, is_made, made_shards, write_file
from stages.models.halves.classes import config_and_class
from stages.models.hub.checkpoint import CONFIG, SMALL, json_bytes, small_files
from stages.models.published import with_way
from stages.models.shards.writing import GO_ON, check_room, claimed, write_rest
from stages.process.deferred_imports import import_transformers
from stages.process.job import job_of
from stages.process.report import Report

MORE_ROOM = "Free some space, or give a folder on a larger disk"


def warm(told: dict[str, Any]) -> None:
    """Import what the model's class needs, before what the stage takes is counted."""
    import_transformers()
    job = job_of(ExportJob, told)
    config_and_class(Path(job.model), job.trust_remote_code)


def run(told: dict[str, Any], report: Report) -> None:
    """Write the checkpoint of an ExportJob, and tell each file of weights as an item.

    A first note says how many `files` there will be and how many are `there`, a last one how many
    `modules` are quantized. Raises PenstockError.
    """
    job = job_of(ExportJob, told)
    planned = job.files
    with planned.compared():
        _export(job, planned, report)


def _export(job: ExportJob, planned: ModelFiles, report: Report) -> None:
    source, folder = Path(job.model), Path(job.folder)
    form = form_of(job)
    outline = outline_of(source, job.parts, job.trust_remote_code, form.takes)
    small = small_files(source, SMALL)
    files = files_of(outline, form, job.shard_bytes)
    with claimed(folder, {**job.recipe, "shard_bytes": job.shard_bytes}):
        left = [file for file in files if not is_made(folder, file, outline, form)]
        report.total(len(left))
        report.note(files=len(files), there=len(files) - len(left), modules=len(outline.modules))
        if not left and (folder / CONFIG).exists():
            return
        check_room(folder, left, MORE_ROOM)
        try:
            for file in left:
                write_file(folder, file, outline, form, planned.check)
                report.item(file.name, label=file.name)
            small[CONFIG] = with_way(_config(small[CONFIG], outline, form), job.as_published)
            planned.check()
            write_rest(folder, made_shards(folder, files), small)
        except ModelChanged:
            raise
        except EnvironmentFault as error:
            raise EnvironmentFault(error.message, hint=GO_ON) from error


def form_of(job: ExportJob) -> WeightForm:
    """Return the way in which the weights of a job are stored."""
    if job.kind in PACKED:
        rounded = Path(job.calibrated) if job.calibrated else None
        return Packed(PACKED[job.kind], job.group, rounded)
    return Nf4() if job.kind == "nf4" else Int8()


def _config(content: bytes, outline: Outline, form: WeightForm) -> bytes:
    """Return a config.json that says of the weights what they are in."""
    value = json.loads(content)
    names = outline.spared
    if isinstance(form, Packed):  # some readers go by the names of the files, also of experts
        names = (*names, *outline.matrices_that_stay())
    value["quantization_config"] = form.settings(outline.dtype, names)
    return json_bytes(value)
