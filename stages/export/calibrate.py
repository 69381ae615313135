"""Quantizes a language half's weights on calibration samples: stored features and their captions.

Neither the vision half nor any image is loaded.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from artifacts.errors import CannotFit
from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from artifacts.schema import Part
from stages.decode.generate_kwargs import make_greedy
from stages.decode.protocol import read_features
from stages.decode.scoring import caption_of, forced_logits
from stages.export import CalibrateJob, CaptionedItem
from stages.export.export_plan import plan_export
from stages.export.quant_formats import Packed
from stages.export.rounding import NoInverse, gptq
from stages.models.halves.generate import waiting
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.halves.placement import placement
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.models.protocols import Half, module_of
from stages.models.streaming.layers import LayerProvider
from stages.models.streaming.load import LayerLockstep, streamed_layers
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

OUTSIDE = "outside the layers"
UNSEEN = "no calibration sample reached it"
NOT_SHARED = "it does not share its inputs with the same linear layer in every sample"
ROWS = 2048
"""Tokens that are accumulated at once, which bounds their float32 copy."""


RoundWeight = Callable[[str, torch.Tensor, torch.Tensor | None, str], None]
"""Quantizes the weight of the linear layer at a path, which is valid until this returns, by its
Hessian. The Hessian is None for a reason; otherwise the reason is empty."""


def calibrate(
    half: nn.Module,
    layers: Sequence[tuple[str, nn.Module]],
    calls: Sequence[Callable[[], object]],
    paths: Collection[str],
    max_bytes: int,
    round_weight: RoundWeight,
    done: Collection[str] = (),
) -> None:
    """Call `round_weight` once for each linear layer in `paths`, with its Hessian if there is one.

    `layers` are paths and modules of the half's layers. Linear layers in `done` are skipped. Each
    of the `calls` runs the half over one sample, without padding, because padding would be
    accumulated as well.

    The linear layers of one layer come together, in the order of its modules, as soon as all calls
    have passed it. A layer that calls pass more than once is handled after the first time. Then
    come, without a Hessian, those in layers that no call passed, and those outside all layers whose
    weights are loaded. A call ends when no later layer is needed. The hidden states of all calls
    are held at once.

    The Hessians of one layer take at most `max_bytes` together. The linear layers reached last go
    without.
    """
    todo = {path for path in paths if path not in done}
    streamed = streamed_layers(half)
    modules = dict(layers)
    provider = LayerProvider()
    if streamed is None:
        paths = tuple(modules)
        lockstep = LayerLockstep(list(modules.values()), provider)
    else:
        paths, provider, lockstep = streamed.paths, streamed.buffers, streamed.lockstep
        assert set(paths) == modules.keys()
    linears = [_within(path, modules[path], todo) for path in paths]
    collector = _HessianCollector(linears, max_bytes, round_weight)
    if collector.remaining():
        with collector.watching([modules[path] for path in paths]):
            lockstep.run_calls([partial(_run_until_done, call) for call in calls], collector.passed)
    for number in collector.remaining():
        provider.load(number)
        try:
            collector.round_layer(number)
        finally:
            provider.release(number)
    for path, linear in _outside(half, todo.difference(*linears)):
        round_weight(path, linear.weight, None, OUTSIDE)


class _StopCall(Exception):
    """Raised to end a call after the last layer that is needed."""


def _run_until_done(call: Callable[[], object]) -> None:
    with contextlib.suppress(_StopCall):
        call()


@dataclass(eq=False, slots=True)
class _InputStats:
    """The input statistics of one linear layer, shared by others with the same input."""

    owner: str
    """Path of the linear layer."""
    hessian: torch.Tensor | None
    reason: str = ""
    """Why there is no Hessian."""
    calls: int = 0
    tokens: int = 0

    def add(self, given: torch.Tensor) -> None:
        """Add the input of one call [..., columns]."""
        rows = given.reshape(-1, given.shape[-1])
        self.calls += 1
        self.tokens += len(rows)
        if self.hessian is not None:
            for some in rows.split(ROWS):
                values = some.float()
                self.hessian.addmm_(values.t(), values)


class _HessianCollector:
    """The Hessians of the current layer, and the layers that are still to be quantized."""

    def __init__(
        self, linears: Sequence[dict[str, nn.Linear]], max_bytes: int, round_weight: RoundWeight
    ) -> None:
        self._linears = linears
        self._max_bytes = max_bytes
        self._round_weight = round_weight
        self._open = {number for number, of_layer in enumerate(linears) if of_layer}
        self._sums: dict[str, _InputStats] = {}
        """Path of a linear layer → its input statistics."""
        self._calls = Counter[str]()
        """Path of a linear layer → calls that contributed to its statistics."""
        self._given: list[tuple[weakref.ref[torch.Tensor], _InputStats]] = []
        """Inputs that are still alive, and the statistics that include them."""

    @contextlib.contextmanager
    def watching(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Collect the inputs of the requested linear layers within this block. Calls end after the
        last of their layers, because what follows, such as the output head, may take more memory
        than all layers."""
        with contextlib.ExitStack() as hooks:
            for number, layer in enumerate(layers):
                leave = partial(self._leave, number)
                hooks.callback(layer.register_forward_hook(leave).remove)
            for number, of_layer in enumerate(self._linears):
                for path, linear in of_layer.items():
                    see = partial(self._see, number, path)
                    hooks.callback(linear.register_forward_pre_hook(see, with_kwargs=True).remove)
            yield

    def passed(self, number: int) -> None:
        """Quantize the linear layers of a layer that all calls have passed."""
        if number in self._open:
            self.round_layer(number)

    def round_layer(self, number: int) -> None:
        """Quantize the linear layers of a layer, and drop their Hessians."""
        for path, linear in self._linears[number].items():
            stats = self._sums.pop(path, None)
            hessian, reason = (None, UNSEEN)
            if stats is not None and stats.tokens:
                agreed = self._calls[path] == stats.calls
                hessian, reason = (stats.hessian, stats.reason) if agreed else (None, NOT_SHARED)
            self._round_weight(path, linear.weight, hessian, reason)
        self._open.discard(number)

    def remaining(self) -> list[int]:
        """Return the numbers of the layers that are not quantized yet."""
        return sorted(self._open)

    def _leave(self, number: int, *_: object) -> None:
        """End a call that has passed the last layer that is needed."""
        if self._open <= {number}:
            raise _StopCall

    def _see(
        self, number: int, path: str, linear: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        """Accumulate the input of a linear layer. Linear layers with the same input tensor share
        statistics, to which the first of them adds."""
        if number not in self._open:
            return
        states: torch.Tensor = args[0] if args else kwargs["input"]
        self._given = [entry for entry in self._given if entry[0]() is not None]
        same = next((stats for ref, stats in self._given if ref() is states), None)
        own = self._sums.get(path)
        if own is None:
            own = self._sums[path] = same or self._new(path, states)
        if own.owner == path:
            own.add(states)
            self._given.append((weakref.ref(states), own))
        if own.owner == path or own is same:
            self._calls[path] += 1

    def _new(self, path: str, given: torch.Tensor) -> _InputStats:
        """Return empty statistics, without a Hessian if there is no room for it."""
        columns = given.shape[-1]
        held = {id(s): s.hessian.nbytes for s in self._sums.values() if s.hessian is not None}
        size = columns * columns * torch.float32.itemsize
        if sum(held.values()) + size > self._max_bytes:
            return _InputStats(path, None, f"no room for its Hessian of {size / 1e6:,.1f} MB")
        # A normal tensor, because the callback may compute with it outside inference mode.
        with torch.inference_mode(False):
            return _InputStats(path, torch.zeros(columns, columns, device=given.device))


def _within(path: str, layer: nn.Module, todo: Collection[str]) -> dict[str, nn.Linear]:
    """Return path → requested linear layer of a layer, in the order of its modules."""
    named = ((f"{path}.{name}".rstrip("."), module) for name, module in layer.named_modules())
    return {p: module for p, module in named if p in todo and isinstance(module, nn.Linear)}


def _outside(half: nn.Module, todo: Collection[str]) -> Iterator[tuple[str, nn.Linear]]:
    """Yield path and module of the requested linear layers whose weights are loaded."""
    for path, module in half.named_modules():
        if path in todo and isinstance(module, nn.Linear) and not module.weight.is_meta:
            yield path, module


def run(fields: JobFields, report: EventReporter) -> None:
    """Quantize the weights of a CalibrateJob. A last note lists the weights that remain to be
    rounded to nearest, with reasons. Raises PenstockError."""
    job = parse_job(CalibrateJob, fields)
    form = Packed(job.bits, job.group, Path(job.folder))
    plan = plan_export(Path(job.half.model), job.parts, job.half.trust_remote_code, form.takes)
    names = {tensor.module: tensor.name for tensor in plan.tensors if tensor.module}
    done = {path for path, name in names.items() if (Path(job.folder) / name).exists()}
    report.total(len(names) - len(done))
    if len(done) == len(names):
        return
    source = ModelJob.of(replace(job.half, lockstep=True))
    processor, held = source.processor(), source.load_reloadable("language")
    report.note(ready=True, **facts(held.model))
    features = RecordSet(open_store(job.store), "features", job.features_namespace)
    remaining: dict[str, str] = {}

    def round_weight(
        path: str, weight: torch.Tensor, hessian: torch.Tensor | None, reason: str
    ) -> None:
        try:
            if hessian is None:
                remaining[path] = reason
                return
            rounded = gptq(weight, hessian, job.bits, job.group, plan.dtype)
            held.confirm()
            form.keep(names[path], rounded, plan.dtype)
            report.answered(names[path])
        except NoInverse as error:
            remaining[path] = str(error)

    def read(item: CaptionedItem, half: Half) -> None:
        row = read_features(features, item.features)
        forced_logits(half, processor, caption_of(processor, row, item.prompt, item.caption))

    def whole(half: Half) -> None:
        make_greedy(half, processor)
        calls = [partial(read, item, half) for item in job.members]
        layers = [(path, half.get_submodule(path)) for path in _layers(job, half)]
        calibrate(
            module_of(half), layers, calls, list(names), job.hessian_bytes, round_weight, done
        )

    held.call(whole)
    report.note(rounded_to_nearest=remaining)


def _layers(job: CalibrateJob, half: Half) -> list[str]:
    """Return the paths of the consecutive layers; empty if the half has none."""
    if (streamed := streamed_layers(half)) is not None:
        return list(streamed.paths)
    skeleton = skeleton_of(*config_and_class(Path(job.half.model), job.half.trust_remote_code))
    keep: Part = "whole" if job.half.route == "joint" else "language"
    try:
        return waiting(placement(skeleton, keep, job.half.extra_modules, "cpu", away="disk"))
    except CannotFit:
        return []
