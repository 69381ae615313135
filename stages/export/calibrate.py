"""Rounds the weights of a language half by what they do to real chunks: features that are in the
store, and the captions of them. It needs neither vision half nor pictures."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import CannotFit
from artifacts.packs import RecordSet
from artifacts.schema import Part
from artifacts.store import open_store
from stages.decode.choosing import make_greedy
from stages.decode.stored import read_features
from stages.decode.teaching import caption_of, expected
from stages.export.calibrate_job import CalibrateJob
from stages.export.calibrating import calibrate
from stages.export.gptq import NoInverse, gptq
from stages.export.judge_job import CaptionedItem
from stages.export.outline import outline_of
from stages.export.packed_form import Packed
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.halves.offload import placement, waiting
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm_model
from stages.models.streaming.load import streamed_layers
from stages.process.job import job_of
from stages.process.report import Report


def warm(told: dict[str, Any]) -> None:
    """Import what the model needs, before what the stage takes is counted."""
    warm_model(told)


def run(told: dict[str, Any], report: Report) -> None:
    """Round the weights of a CalibrateJob. A last note says which are left to be rounded each by
    itself, and why. Raises PenstockError."""
    job = job_of(CalibrateJob, told)
    form = Packed(job.bits, job.group, Path(job.folder))
    outline = outline_of(Path(job.half.model), job.parts, job.half.trust_remote_code, form.takes)
    names = {tensor.module: tensor.name for tensor in outline.tensors if tensor.module}
    done = {path for path, name in names.items() if (Path(job.folder) / name).exists()}
    report.total(len(names) - len(done))
    if len(done) == len(names):
        return
    source = ModelJob.of(replace(job.half, together=True))
    processor, held = source.processor(), source.hold("language")
    report.note(ready=True, **facts(held.model))
    features = RecordSet(open_store(job.store), "features", job.features_namespace)
    left: dict[str, str] = {}

    def take(path: str, weight: torch.Tensor, hessian: torch.Tensor | None, reason: str) -> None:
        try:
            if hessian is None:
                left[path] = reason
                return
            rounded = gptq(weight, hessian, job.bits, job.group, outline.dtype)
            held.confirm()
            form.keep(names[path], rounded, outline.dtype)
            report.item(names[path])
        except NoInverse as error:
            left[path] = str(error)

    def read(member: CaptionedItem, half: Any) -> None:
        row = read_features(features, member.features)
        expected(half, processor, caption_of(processor, row, member.prompt, member.caption))

    def whole(half: Any) -> None:
        make_greedy(half, processor)
        calls = [partial(read, member, half) for member in job.members]
        layers = [(path, half.get_submodule(path)) for path in _layers(job, half)]
        calibrate(half, layers, calls, list(names), job.hessian_bytes, take, done)

    held.use(whole)
    report.note(rounded_to_nearest=left)


def _layers(job: CalibrateJob, half: Any) -> list[str]:
    """Return the paths of the layers that lie one behind another; none for a half without."""
    if (streamed := streamed_layers(half)) is not None:
        return list(streamed.paths)
    skeleton = skeleton_of(*config_and_class(Path(job.half.model), job.half.trust_remote_code))
    keep: Part = "whole" if job.half.route == "joint" else "language"
    try:
        return waiting(placement(skeleton, keep, job.half.pieces, "cpu", away="disk"))
    except CannotFit:
        return []
