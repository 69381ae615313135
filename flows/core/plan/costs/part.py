"""Helpers for stages that load a model part: its settings on a rung, and the cost of loading it."""

from collections.abc import Sequence
from dataclasses import replace

from artifacts.schema import Part
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import DTYPES, PartSettings, weight_bytes
from flows.core.options.commands import RunOptions
from flows.core.plan.estimate import Expected
from flows.core.plan.ladder import MLP_CHUNKS, Rung
from stages.models.profile import PartProfile

FEW_SLOTS = 8
"""Slots from which on chunked prefill is tried before there are fewer."""


def free_settings(model: Model, config: RunOptions, part: Part) -> tuple[PartSettings, ...]:
    """Return the settings that a command allows for a part, best first. Settings that change words
    or are many times slower are included only with `auto`."""
    every = model.settings[part]
    return every if config.may_fall_back(part) else every[:1]


def settings_as_run(settings: PartSettings, half: PartProfile, rung: Rung) -> PartSettings:
    if settings.graph or settings.gguf:
        return settings
    precision = rung.precision or settings.precision
    dtype = DTYPES.get(precision, settings.dtype)
    cast = settings.cast
    taken = 0
    if half.parameters:
        taken = weight_bytes(half, precision, dtype, cast=cast, packed=rung.packed)
    return replace(settings, precision=precision, dtype=dtype, weight_bytes=taken)


def with_packed(half: PartProfile, rungs: Sequence[Rung]) -> list[Rung]:
    """Return the rungs of a half, and below them the same with layers that stay packed, if another
    program stored any in 4 or 8 bit. A KV cache in host memory is slower than unpacking. On a card
    that takes packed layers only, chunked prefill makes room for more slots."""
    if not half.packed_parameters:
        return list(rungs)
    candidates = [rung for rung in rungs if rung.kv != "offloaded"]
    for rung in rungs:
        packed = replace(rung, packed=True)
        candidates.append(packed)
        if rung.in_slots and 1 < rung.batch <= FEW_SLOTS and not rung.prefill:
            candidates += [replace(packed, prefill=tokens) for tokens in MLP_CHUNKS]
    return candidates


def figures_source(costs: Expected) -> str:
    """Return the source of a batch's figures as text."""
    return "a dry run" if costs.known else "an estimate by dimensions"
