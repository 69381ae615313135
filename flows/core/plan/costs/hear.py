"""Estimates the cost of reading the sound of files, and of running it through the audio half."""

import math
from dataclasses import replace

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES
from flows.core.options.commands import RunOptions
from flows.core.plan.costs import frames
from flows.core.plan.half import encoder_by_dimensions, settings_as_run
from flows.core.plan.ladder import Rung, sizes
from flows.core.plan.stage_estimate import Conditions, Cost, Reason, StageEstimate, Term
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
    seconds, item_bytes = workload.sound_seconds, BYTES.get(model.best("audio").dtype, 4)
    numbers = math.ceil(seconds * SPECTRUM_NUMBERS)
    feature_bytes = FEATURE_BYTES * workload.sound_tokens * model.profile.feature_width
    costs = encoder_by_dimensions(half, item_bytes, 1, numbers, feature_bytes)
    terms = list(weights(half, settings, rung, device))
    terms.append(Term.of("activation", costs.peak_bytes, Reason.SOUND, seconds=seconds))
    ahead = Term.of("workspace", 3 * rung.batch * 4 * numbers, Reason.SPECTRA, batch=rung.batch)
    terms += overhead_terms(terms, conditions, ahead)
    return StageEstimate(
        rung=rung,
        terms=tuple(terms),
        device=device,
        workload=workload,
        flops=costs.flops,
        by_dimensions=True,
    )


def memory_of_reading(
    model: Model, rung: Rung, workload: Workload, conditions: Conditions
) -> StageEstimate:
    """Add up the files that are read at once."""
    files = max(1, min(rung.batch, workload.chunks))
    term = Term.of(
        "activation", files * FILE_BYTES, Reason.SOUND_FILES, files=counted(files, "file")
    )
    return StageEstimate(rung=rung, terms=(term,), device="cpu", workload=workload)


COST = Cost(rungs=rungs, memory=memory)
SOUND_COST = Cost(rungs=frames.rungs, memory=memory_of_reading)
