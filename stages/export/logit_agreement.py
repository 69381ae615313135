"""Computes the logits of a language half for given captions: stores those of the original, or
compares them with those of another half."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from artifacts.disk.files import whole_file
from artifacts.errors import EnvironmentFault
from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from stages.decode.generate_kwargs import make_greedy
from stages.decode.protocol import read_features
from stages.decode.scoring import (
    ForcedCaption,
    caption_of,
    forced_logits,
    forced_logits_stepwise,
    is_bidirectional,
)
from stages.export import CaptionedItem, JudgeJob
from stages.export.export_plan import ExportPlan, plan_export
from stages.export.parity import of_each
from stages.export.quant_formats import Packed, unpack
from stages.export.rounding import Rounded, unrounded
from stages.models.hub.headers import read_places
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.models.protocols import Half, Processor
from stages.models.streaming.load import run_calls
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

Read = Callable[[], torch.Tensor]


def replace_weights(half: Half, plan: ExportPlan, folder: Path, bits: int, group: int) -> int:
    """Replace the half's weights by those of a packed checkpoint, and return how many. A weight
    that is fetched on demand is replaced each time."""
    files = {name: path for path in folder.glob("*.safetensors") for name in read_places(path)}
    modules = dict(half.named_modules())
    count = 0
    for tensor in plan.tensors:
        linear = modules.get(tensor.module) if tensor.module else None
        if not isinstance(linear, nn.Linear):
            continue
        read = partial(_read, files, tensor.name, bits, group, linear.weight.dtype)
        if linear.weight.is_meta:
            linear.register_forward_pre_hook(partial(_replace, read))
        else:
            linear.weight = nn.Parameter(read().to(linear.weight.device), requires_grad=False)
        count += 1
    return count


def _replace(read: Read, linear: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
    weight = read().to(given[0].device)
    linear._parameters["weight"] = nn.Parameter(weight, requires_grad=False)


def _read(
    files: dict[str, Path], name: str, bits: int, group: int, dtype: torch.dtype
) -> torch.Tensor:
    tensors = []
    for extra in ("packed", "scale"):
        with safe_open(files[f"{name}_{extra}"], "pt", backend="pread") as file:
            tensors.append(file.get_tensor(f"{name}_{extra}"))
    packed, scales = tensors
    return unrounded(Rounded(unpack(packed, bits), scales.float()), group, dtype)


CAPTIONS_PER_PASS = 8
"""Captions whose logits are held at once. With streamed layers, they pass each layer together."""


class LogitAgreement:
    """How closely one half's logits follow another's, over many tokens."""

    def __init__(self) -> None:
        self.tokens = self.agreeing = self.captions = self.same = 0
        self.divergence = 0.0
        self._by_caption: dict[str, float] = {}

    def add(self, key: str, reference: torch.Tensor, compared: torch.Tensor) -> None:
        """Add one caption; both are logits [tokens, vocabulary]."""
        first, second = (logits.double().log_softmax(-1) for logits in (reference, compared))
        divergence = float((first.exp() * (first - second)).sum())
        agreeing = first.argmax(-1) == second.argmax(-1)
        self.divergence += divergence
        self._by_caption[key] = divergence / max(1, len(agreeing))
        self.tokens += len(agreeing)
        self.agreeing += int(agreeing.sum())
        self.captions += 1
        self.same += bool(agreeing.all())

    def to_json(self) -> Mapping[str, Any]:
        return {
            "captions": self.captions,
            "tokens": self.tokens,
            "token_agreement": self.agreeing / max(1, self.tokens),
            "divergence": self.divergence / max(1, self.tokens),
            "captions_as_native": self.same / max(1, self.captions),
            "by_caption": of_each(self._by_caption),
        }


def run(fields: JobFields, report: EventReporter) -> None:
    """Process the items of a JudgeJob. For a compared half, a last note holds the agreement. Raises
    PenstockError."""
    job = parse_job(JudgeJob, fields)
    store, folder = open_store(job.store), Path(job.folder)
    features = RecordSet(store, "features", job.features_namespace)
    members = [m for m in job.members if job.compared or not (folder / m.key).exists()]
    report.total(len(members))
    if not members:
        return
    source = ModelJob.of(replace(job.half, lockstep=True))
    processor, held, agreement = (
        source.processor(),
        source.load_reloadable("language"),
        LogitAgreement(),
    )
    report.note(ready=True, **facts(held.model))

    def caption(item: CaptionedItem) -> ForcedCaption:
        row = read_features(features, item.features)
        return caption_of(processor, row, item.prompt, item.caption)

    def forced(half: Half, item: CaptionedItem) -> torch.Tensor:
        return ready[half](half, processor, caption(item))

    def logits_of_all(items: Sequence[CaptionedItem], half: Half) -> list[torch.Tensor]:
        if half not in ready:
            make_greedy(half, processor)
            if job.rounded:
                _round(job, half)
            test = partial(is_bidirectional, half, processor, caption(items[0]))
            (ahead,) = run_calls(half, [test])
            ready[half] = forced_logits_stepwise if ahead else forced_logits
        return run_calls(half, [partial(forced, half, item) for item in items])

    # Weak: a half is freed before it is loaded again with extra modules.
    ready = WeakKeyDictionary[Half, Callable[[Half, Processor, ForcedCaption], torch.Tensor]]()
    for first in range(0, len(members), CAPTIONS_PER_PASS):
        items = members[first : first + CAPTIONS_PER_PASS]
        for item, logits in zip(items, held.call(partial(logits_of_all, items)), strict=True):
            path = folder / item.key
            if job.compared:
                agreement.add(item.key, load_file(path)["logits"], logits)
            else:
                with whole_file(path) as file:
                    file.write(save({"logits": logits}))
            report.answered(item.key)
    if job.compared:
        report.note(agreement=agreement.to_json())


def _round(job: JudgeJob, half: Half) -> None:
    """Replace the half's weights by the quantized ones. Raises EnvironmentFault if any has no place
    in it."""
    form = Packed(job.bits, job.group)
    plan = plan_export(Path(job.half.model), job.parts, job.half.trust_remote_code, form.takes)
    count = replace_weights(half, plan, Path(job.rounded), job.bits, job.group)
    if count != len(plan.modules):
        raise EnvironmentFault(
            f"only {count} of {len(plan.modules)} quantized weights have a place in the half",
            hint="Remove the folder and export again; if it fails again, please report it",
        )
