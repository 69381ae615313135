"""Estimates the cost of reading the sound of files, and of running it through the audio half."""

import math
from dataclasses import replace

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES
from flows.core.options.commands import RunOptions
from flows.core.plan.costs.part import settings_as_run
from flows.core.plan.estimate import Expected, encoder_by_dimensions
from flows.core.plan.ladder import Rung, sizes
from flows.core.plan.stage_estimate import Conditions, StageEstimate, Term
from flows.core.plan.terms import overhead_terms, weights
from flows.core.plan.workloads import Workload

FILE_BYTES = 24 << 20
"""Bytes of reading the sound of a file: container buffers, decoder, resampler and chunks that are
not stored yet."""
SPECTRUM_NUMBERS = 128 * 100
"""Input numbers per second of sound: 100 spectra of 128 bands."""
FEATURE_BYTES = 4
"""Bytes per number of a feature, at most."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return fewer and fewer chunks at once, in the half's own precision. Each passes alone: they
    are read and stored together."""
    (settings,) = model.settings["audio"]
    single = Rung(stage=stage, batch=1, precision=settings.precision)
    return [replace(single, batch=size) for size in sizes(config.batch_size)]


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up weights, the sound of a chunk, and activations."""
    half, device = model.profile.parts["audio"], conditions.device
    settings = settings_as_run(model.best("audio"), half, rung)
    costs = _costs(model, workload)
    terms = list(weights(half, settings, rung, device))
    why = f"{workload.sound_seconds:,.0f} s of sound: an estimate by dimensions"
    terms.append(Term(part="activation", bytes=math.ceil(costs.peak_bytes), why=why))
    numbers = math.ceil(workload.sound_seconds * SPECTRUM_NUMBERS)
    ahead = Term(
        part="workspace",
        bytes=3 * rung.batch * 4 * numbers,
        why=f"spectra of batches of {rung.batch} that are read ahead",
    )
    terms += overhead_terms(terms, device, ahead)
    return StageEstimate(
        rung=rung,
        terms=tuple(terms),
        device=device,
        workload=workload,
        flops=costs.flops,
        by_dimensions=True,
    )


def _costs(model: Model, workload: Workload) -> Expected:
    half, settings = model.profile.parts["audio"], model.best("audio")
    kept = FEATURE_BYTES * workload.sound_tokens * model.profile.feature_width
    numbers = math.ceil(workload.sound_seconds * SPECTRUM_NUMBERS)
    return encoder_by_dimensions(half, BYTES.get(settings.dtype, 4), 1, numbers, kept)


def memory_of_reading(
    model: Model, rung: Rung, workload: Workload, conditions: Conditions
) -> StageEstimate:
    """Add up the files that are read at once."""
    files = max(1, min(rung.batch, workload.chunks))
    why = f"sound of {counted(files, 'file')} at once"
    terms = [Term(part="activation", bytes=files * FILE_BYTES, why=why)]
    return StageEstimate(rung=rung, terms=tuple(terms), device="cpu", workload=workload)
