"""Finds option changes that would make a job fit which an estimate refused, or that ran out of
memory despite it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from artifacts.errors import CannotFit, UsageError
from flows.core.checkpoint.frame_tokens import encoder_frames, frame_size_tokens
from flows.core.checkpoint.models import MIN_TOKENS, Model
from flows.core.checkpoint.precision import QUANTIZED, resolve_settings, with_adapter, with_gguf
from flows.core.console.lines import gib, rounded_up, written
from flows.core.machine.budget import Budget, held_by
from flows.core.pipelines import STAGES
from flows.core.plan.choose import Capacity, PlanRequest, StagePlan, allowed, stage_plans
from flows.core.plan.stage_estimate import StageEstimate
from flows.core.plan.workloads import PIXEL_BYTES, Workload

MARGIN = 1.1
"""Factor on suggested pixels in the estimate, because processors round up to patches."""
LIBRARY_BYTES = 64 << 20
"""Margin above the plan for a suggested CPU limit. oneDNN, for example, allocates memory outside
torch, and ends the process if it fails."""
NAMED = 4
"""Maximum number of changes that an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """An option change that would make a job fit."""

    option: str
    """The option as typed: `--memory 14GiB`."""
    estimate: StageEstimate
    """Estimate of the stage that did not fit, after the change."""

    def line(self) -> str:
        """Return a line such as `--precision auto (decode takes 7.10 GiB with batch 8, int8)`."""
        peak = gib(self.estimate.peak_bytes)
        rung = self.estimate.rung
        return f"{self.option} ({rung.stage} takes {peak} with {rung.name})"


def cannot_fit(
    request: PlanRequest, plans: Iterable[StagePlan], budget: Budget
) -> CannotFit | None:
    """Return the error that names the largest stage that is refused, and changes with which it
    would fit; None: no stage is refused."""
    refused = [choice for choice in plans if choice.refused]
    if not refused:
        return None
    worst = max(refused, key=lambda choice: choice.chosen.peak_bytes)
    smallest = worst.chosen
    where = "the host" if request.device == "cpu" else request.device
    message = (
        f"the {smallest.rung.stage} stage of {request.model.name} needs at least "
        f"{gib(smallest.peak_bytes)} ({smallest.rung.name}), but only "
        f"{gib(allowed(smallest, budget))} of {where} are allowed"
    )
    lines = [change.line() for change in changes(request, worst, budget)]
    hint = f"Give {', or '.join(lines[:NAMED])}" if lines else "Choose a smaller model"
    if not budget.given and budget.others and smallest.peak_bytes <= budget.total_bytes:
        message += held_by(budget.others)
        hint = f"End what uses its memory. {hint}" if lines else "End what uses its memory"
    return CannotFit(message, hint=hint)


def advice_for(stage: str, capacity: Capacity) -> str:
    """Return options that would make a stage fit that ran out of memory despite its estimate;
    empty: none are known."""
    request = replace(capacity.request, stages=(STAGES[stage],))
    if not request.workloads:
        return ""
    smallest = stage_plans(request, request.rungs, capacity.budget)[stage].chosen
    # It used more than estimated, so a change must lower the estimate.
    budget = replace(capacity.budget, bytes=min(capacity.budget.bytes, smallest.peak_bytes - 1))
    unfit = StagePlan(requested=smallest, chosen=smallest, fits=False, refused=True)
    options = [change.option for change in changes(request, unfit, budget)]
    options = [option for option in options if not option.startswith("--memory")][:NAMED]
    part, config = STAGES[stage].part, request.config
    name = config.precision_field(part)
    if part and name and not config.may_fall_back(part):
        options.append(f"--{name.replace('_', '-')} auto, which falls back by itself")
    return ", or ".join([*options, "more with --memory"])


def changes(request: PlanRequest, unfit: StagePlan, budget: Budget) -> list[Change]:
    """Return changes that make all stages fit: the smallest of each kind, least costly first.
    `unfit`: the plan of a stage that does not fit."""
    stage = unfit.chosen.rung.stage
    precisions = list(_precisions(request, stage))
    single = (_auto(request, stage), *_frames(request), *_pixels(request), *precisions)
    fitting = _fitting(single, stage, budget)
    if not fitting:
        fitting = _fitting(_in_pairs(precisions), stage, budget)
    smallest = max(
        min(request.estimate(rung).peak_bytes for rung in rungs)
        for name, rungs in request.rungs.items()
        if STAGES[name].part or budget.device == "cpu"
    )
    more = rounded_up(smallest + (LIBRARY_BYTES if budget.device == "cpu" else 0))
    # A limit above what is free would only fail later.
    if more <= (budget.total_bytes if budget.given else budget.free_bytes):
        estimate = _estimate_in(request, stage, replace(budget, bytes=more))
        if estimate is not None:
            fitting.append(Change(option=f"--memory {written(more)}", estimate=estimate))
    return fitting


def _fitting(
    tried: Iterable[tuple[str, PlanRequest | None]], stage: str, budget: Budget
) -> list[Change]:
    """Return the first change of each kind that makes all stages fit."""
    firsts: dict[tuple[str, ...], Change] = {}
    for option, other in tried:
        kind = tuple(option.split()[::2])
        if other is None or kind in firsts:
            continue
        estimate = _estimate_in(other, stage, budget)
        if estimate is not None:
            firsts[kind] = Change(option=option, estimate=estimate)
    return list(firsts.values())


def _in_pairs(
    precisions: Iterable[tuple[str, PlanRequest | None]],
) -> Iterator[tuple[str, PlanRequest | None]]:
    """Yield each precision combined with fewer frames, and with fewer pixels."""
    for option, other in precisions:
        if other is not None:
            smaller = (*_frames(other), *_pixels(other))
            yield from ((f"{option} {more}", request) for more, request in smaller)


def _estimate_in(request: PlanRequest, stage: str, budget: Budget) -> StageEstimate | None:
    """Return the estimate of a stage under a changed request; None if any stage does not fit."""
    plans = stage_plans(request, request.rungs, budget)
    return plans[stage].chosen if all(choice.fits for choice in plans.values()) else None


def _auto(request: PlanRequest, stage: str) -> tuple[str, PlanRequest | None]:
    config, part = request.config, STAGES[stage].part
    if part is None or config.may_fall_back(part):
        return "", None
    option = f"{part}_precision" if config.own_precision(part) else "precision"
    return f"--{option.replace('_', '-')} auto", in_precision(request, **{option: "auto"})


def _frames(request: PlanRequest) -> Iterator[tuple[str, PlanRequest | None]]:
    if request.model.profile.max_video_pixels:
        return  # with fewer frames, each would be encoded with more pixels
    largest = max((w.frames for w in request.workloads if w.kind == "video"), default=0)
    for count in takewhile(lambda count: count >= 1, (largest >> step for step in range(1, 32))):
        workloads = (w.with_frames(min(count, w.frames)) for w in request.workloads)
        yield f"--max-frames {count}", replace(request, workloads=tuple(workloads))


def _pixels(request: PlanRequest) -> Iterator[tuple[str, PlanRequest | None]]:
    model, smallest = request.model, request.smallest
    for largest in fewer_pixels(model, request.workloads):
        workloads = tuple(limit_pixels(model, w, largest) for w in request.workloads)
        smallest = smallest and limit_pixels(model, smallest, largest)
        yield f"--max-pixels {largest}", replace(request, workloads=workloads, smallest=smallest)


def fewer_pixels(model: Model, workloads: Sequence[Workload]) -> Iterator[int]:
    """Yield pixel limits for the largest frames, each half of the previous one. Yield nothing if
    the model's processor has no such limit."""
    multiple = model.profile.least_pixels
    largest = max((math.prod(model.seen_size(w.kind, w.stored)) for w in workloads), default=0)
    for step in range(1, 32) if multiple else ():
        limit = (largest >> step) // multiple * multiple
        if limit < MIN_TOKENS * multiple:
            return
        yield limit


def limit_pixels(model: Model, workload: Workload, pixels: int) -> Workload:
    """Return the workload with frames limited to this number of pixels."""
    kind, counted = workload.kind, encoder_frames(model.profile, workload.kind, workload.frames)
    height, width = model.seen_size(kind, workload.stored)
    share = min(1.0, MARGIN * pixels / (height * width)) ** 0.5
    size = (math.ceil(height * share), math.ceil(width * share))
    tokens, pixel_bytes = frame_size_tokens(model.profile, kind, size)
    before = max(1, workload.tokens - workload.text_tokens)
    after = min(before, math.ceil(counted * tokens))
    return replace(
        workload,
        units=min(workload.units, math.ceil(counted * pixel_bytes / PIXEL_BYTES)),
        tokens=after + workload.text_tokens,
        feature_bytes=math.ceil(workload.feature_bytes * after / before),
    )


def _precisions(request: PlanRequest, stage: str) -> Iterator[tuple[str, PlanRequest | None]]:
    if (name := request.config.precision_field(STAGES[stage].part)) is None:
        return
    # The ladder already covers the precisions of existing rungs.
    present = {rung.precision for rung in request.rungs[stage]}
    for precision in ("bf16", *QUANTIZED):
        if precision in present:
            continue
        option = f"--{name.replace('_', '-')} {precision}"
        yield option, in_precision(request, **{name: precision})


def in_precision(request: PlanRequest, **options: str) -> PlanRequest | None:
    """Return the request with halves in another precision; None if they do not support it, as the
    graph of a tagger."""
    if request.model.tagger is not None:
        return None
    changed: dict[str, Any] = options
    config, profile = replace(request.config, **changed), request.model.profile
    try:
        settings = resolve_settings(config, profile, request.device)
        if use := next((s.gguf for s in request.model.settings.get("language", ())), None):
            settings = {**settings, "language": (with_gguf(config, settings["language"][0], use),)}
    except UsageError:
        return None
    if adapter := next((s.adapter for s in request.model.settings.get("language", ())), None):
        settings = with_adapter(settings, adapter)
    return replace(request, model=replace(request.model, settings=settings), config=config)
