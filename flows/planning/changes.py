"""Finds option changes that would make a job fit, using the estimate that refused it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from artifacts.errors import CannotFit, UsageError
from flows.checkpoint.precision import QUANTIZED, resolve_settings, with_adapter
from flows.console.units import gib, rounded_up, written
from flows.machine.budget import Budget
from flows.pipelines import STAGES
from flows.planning.choose import PlanRequest, StagePlan, allowed, choices
from flows.planning.estimate import StageEstimate
from flows.planning.fewer_pixels import fewer_pixels, kept_to

LIBRARY_BYTES = 64 << 20
"""Bytes by which a suggested limit of a CPU is above what is planned: oneDNN, for one, takes some
of its own beside torch's, and ends the process where it does not get them."""
NAMED = 4
"""Number of changes that an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """An option change that would make a job fit."""

    option: str
    """The option as it is given: `--memory 14GiB`."""
    takes: StageEstimate
    """Estimate of the stage that did not fit, after the change."""

    def line(self) -> str:
        """Return a line such as `--precision auto (decode takes 7.10 GiB with batch 8, int8)`."""
        peak = gib(self.takes.peak_bytes)
        return f"{self.option} ({self.takes.rung.stage} takes {peak} with {self.takes.rung.name})"


def cannot_fit(question: PlanRequest, refused: Sequence[StagePlan], budget: Budget) -> CannotFit:
    """Return the error that names what does not fit and what would."""
    worst = max(refused, key=lambda choice: choice.taken.peak_bytes)
    least = worst.taken
    where = "the host" if question.device == "cpu" else question.device
    message = (
        f"the {least.rung.stage} stage of {question.model.name} takes {gib(least.peak_bytes)} at "
        f"least ({least.rung.name}), and {gib(allowed(least, budget))} of {where} is allowed"
    )
    found = [change.line() for change in changes(question, worst, budget)]
    hint = f"Give {', or '.join(found[:NAMED])}" if found else "Choose a smaller model"
    return CannotFit(message, hint=hint)


def changes(question: PlanRequest, unfit: StagePlan, budget: Budget) -> list[Change]:
    """Return changes that make all stages fit, the smallest of each kind, gentlest first. `unfit`
    is one stage that does not."""
    stage = unfit.taken.rung.stage
    precisions = list(_precisions(question, stage))
    single = (_auto(question, stage), *_frames(question), *_pixels(question), *precisions)
    found = _fitting(single, stage, budget)
    if not found:
        found = _fitting(_in_pairs(precisions), stage, budget)
    more = rounded_up(_most(question, budget) + (LIBRARY_BYTES if budget.device == "cpu" else 0))
    if more <= budget.total_bytes:
        takes = _takes(question, stage, replace(budget, bytes=more))
        if takes is not None:
            found.append(Change(option=f"--memory {written(more)}", takes=takes))
    return found


def _fitting(
    tried: Iterable[tuple[str, PlanRequest | None]], stage: str, budget: Budget
) -> list[Change]:
    """Return the first of each kind of change that makes all stages fit."""
    found: dict[tuple[str, ...], Change] = {}
    for option, other in tried:
        kind = tuple(option.split()[::2])
        if other is None or kind in found:
            continue
        takes = _takes(other, stage, budget)
        if takes is not None:
            found[kind] = Change(option=option, takes=takes)
    return list(found.values())


def _in_pairs(
    precisions: Iterable[tuple[str, PlanRequest | None]],
) -> Iterator[tuple[str, PlanRequest | None]]:
    """Yield fewer frames, and fewer pixels, in each of these precisions."""
    for option, other in precisions:
        if other is not None:
            smaller = (*_frames(other), *_pixels(other))
            yield from ((f"{option} {more}", question) for more, question in smaller)


def _takes(question: PlanRequest, stage: str, budget: Budget) -> StageEstimate | None:
    """Return what that stage then takes; None when it or another one still does not fit."""
    found = choices(question, question.rungs, budget)
    return found[stage].taken if all(choice.fits for choice in found.values()) else None


def _most(question: PlanRequest, budget: Budget) -> int:
    """Return the least budget that all stages keep to, each on its smallest rung."""
    return max(
        min(question.estimate(rung).peak_bytes for rung in rungs)
        for stage, rungs in question.rungs.items()
        if STAGES[stage].part or budget.device == "cpu"
    )


def _auto(question: PlanRequest, stage: str) -> tuple[str, PlanRequest | None]:
    config, part = question.config, STAGES[stage].part
    if part is None or config.may_fall_back(part):
        return "", None
    asked = f"{part}_precision" if config.names(part) else "precision"
    return f"--{asked.replace('_', '-')} auto", in_precision(question, **{asked: "auto"})


def _frames(question: PlanRequest) -> Iterator[tuple[str, PlanRequest | None]]:
    if question.model.profile.max_video_pixels:
        return  # each of fewer frames would be seen larger
    most = max((w.frames for w in question.workloads if w.kind == "video"), default=0)
    for count in takewhile(lambda count: count >= 1, (most >> step for step in range(1, 32))):
        workloads = (w.with_frames(min(count, w.frames)) for w in question.workloads)
        yield f"--max-frames {count}", replace(question, workloads=tuple(workloads))


def _pixels(question: PlanRequest) -> Iterator[tuple[str, PlanRequest | None]]:
    model, least = question.model, question.least
    for most in fewer_pixels(model, question.workloads):
        workloads = tuple(kept_to(model, w, most) for w in question.workloads)
        smallest = least and kept_to(model, least, most)
        yield f"--max-pixels {most}", replace(question, workloads=workloads, least=smallest)


def _precisions(question: PlanRequest, stage: str) -> Iterator[tuple[str, PlanRequest | None]]:
    part = STAGES[stage].part
    # A rung that is there was tried already, or will be.
    there = {rung.precision for rung in question.rungs[stage]}
    for precision in ("bf16", *QUANTIZED) if part else ():
        if precision in there:
            continue
        other = in_precision(question, **{f"{part}_precision": precision})
        yield f"--{part}-precision {precision}", other


def in_precision(question: PlanRequest, **options: str) -> PlanRequest | None:
    """Return the same question with halves in another precision; None when they cannot be had in
    it."""
    changed: dict[str, Any] = options
    config, profile = replace(question.config, **changed), question.model.profile
    try:
        settings = resolve_settings(config, profile, question.device)
    except UsageError:
        return None
    if adapter := next((s.adapter for s in question.model.settings.get("language", ())), None):
        settings = with_adapter(settings, adapter)
    return replace(question, model=replace(question.model, settings=settings), config=config)
