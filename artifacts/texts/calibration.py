"""Fits the probabilities of labels to what people decided, and measures how far off they are.

1. A calibration multiplies log probabilities by a slope, the inverse of a temperature. A line adds
   a shift to the first label of two (Platt). The slope is positive.
2. From LEAST decisions on a slope is fitted, from LINE on a line too, with Newton's steps. Targets
   are a little below 1, as Platt's, and the slope is drawn weakly to 1: few decisions that agree
   would otherwise make everything certain.
3. Each way is fitted without a fifth of the decisions and compared on that fifth, in turn. The one
   of the smallest log loss is taken, which may be none. Decisions about one medium stay together.
4. From HALVED decisions on, half of them are held out of a second fit, which is measured on them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from artifacts.digests import digest_of

LEAST, LINE, HALVED = 5, 20, 40
"""Decisions from which on there is a slope, a line, and a measured error."""
FOLDS, BINS = 5, 10
PULL = 0.05
"""Weight of the pull to no change; a decision has 1."""
STEPS = 100
LEAST_P = 1e-6
"""Probability below which log loss counts no further."""
MOST_OF_ONE = 2 / 3
"""Share of the decisions from which on those about one medium are not kept together."""


def normalized(scores: Sequence[float]) -> list[float]:
    """Return the probabilities of labels among themselves from their log probabilities."""
    top = max(scores)
    parts = [math.exp(score - top) for score in scores]
    return [part / sum(parts) for part in parts]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How log probabilities of labels become probabilities."""

    slope: float = 1.0
    shift: float = 0.0
    """What is added to the first label of two."""

    def of(self, scores: Sequence[float]) -> list[float]:
        """Return the probabilities of labels among themselves."""
        first, *others = (self.slope * score for score in scores)
        return normalized([first + self.shift, *others])


RAW = Calibration()


class Decision(NamedTuple):
    """What a person decided on labels whose log probabilities are known."""

    scores: tuple[float, ...]
    label: int
    """The place of the true label."""
    medium: str
    """Identity of the medium."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibrated:
    """A calibration, and its error on decisions that it was not fitted on."""

    calibration: Calibration
    decisions: int
    held_out: int = 0
    """Number of held-out decisions; 0: too few for a measurement."""
    raw_error: float = 0.0
    error: float = 0.0
    """Calibration error on the held-out decisions, before and after."""


def calibrated(decisions: Sequence[Decision]) -> Calibrated:
    """Return what decisions on one question make of its probabilities."""
    own = Calibrated(calibration=best_fit(decisions), decisions=len(decisions))
    if len(decisions) < HALVED:
        return own
    fitted, held = parts_of(decisions, 2)
    calibration = best_fit(fitted)
    return Calibrated(
        calibration=own.calibration,
        decisions=own.decisions,
        held_out=len(held),
        raw_error=calibration_error(held, RAW),
        error=calibration_error(held, calibration),
    )


def best_fit(decisions: Sequence[Decision]) -> Calibration:
    """Return the calibration whose log loss is the smallest in cross-validation; RAW if that is
    none."""
    ways = [False] * (len(decisions) >= LEAST)
    ways += [True] * (len(decisions) >= LINE and _are_two(decisions))
    folds = parts_of(decisions, FOLDS) if ways else []
    best, least = RAW, log_loss(decisions, RAW)
    for with_shift in ways:
        loss = 0.0
        for at, fold in enumerate(folds):
            others = [one for other in (*folds[:at], *folds[at + 1 :]) for one in other]
            loss += log_loss(fold, fit(others, with_shift=with_shift))
        if loss < least:
            best, least = fit(decisions, with_shift=with_shift), loss
    return best


def parts_of(decisions: Sequence[Decision], count: int) -> list[list[Decision]]:
    """Divide decisions into parts of about equal size, those about one medium together unless most
    are about it. The order in which they were made does not count."""
    of_medium: dict[str, list[Decision]] = {}
    for one in decisions:
        of_medium.setdefault(one.medium, []).append(one)
    groups = [*of_medium.values()]
    if max(map(len, groups)) > MOST_OF_ONE * len(decisions):
        groups = [[one] for one in decisions]
    groups.sort(key=lambda group: (-len(group), digest_of(sorted([*one.scores] for one in group))))
    parts: list[list[Decision]] = [[] for _ in range(min(count, len(groups)))]
    for group in groups:
        min(parts, key=len).extend(group)
    return parts


def _are_two(decisions: Sequence[Decision]) -> bool:
    return all(len(one.scores) == 2 for one in decisions)


def fit(decisions: Sequence[Decision], *, with_shift: bool) -> Calibration:
    """Return the calibration of the largest likelihood. Two labels of which only one was ever
    decided say nothing."""
    import numpy as np

    if _are_two(decisions) and len({one.label for one in decisions}) < 2:
        return RAW
    logits = np.array([one.scores for one in decisions])
    labels = np.array([one.label for one in decisions])
    total, count = logits.shape
    # The probability of a true label should be below 1 by as much as one more decision could
    # change (Platt, 1999).
    alike = np.bincount(labels)[labels] if count == 2 else np.full(total, total)
    rest = 1 / (alike + 2)[:, None]
    targets = np.where(np.arange(count) == labels[:, None], 1 - rest, rest / (count - 1))
    log_slope, shift = 0.0, 0.0
    for _ in range(STEPS):
        scores = math.exp(log_slope) * logits
        shifted = scores + shift * (np.arange(count) == 0)
        shares = np.exp(shifted - shifted.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        mean, first = (shares * scores).sum(1), shares[:, 0]
        g0 = PULL * log_slope + (mean - (targets * scores).sum(1)).sum()
        g1 = PULL * shift + (first - targets[:, 0]).sum()
        h00 = PULL + np.maximum((shares * scores**2).sum(1) - mean**2, 0).sum()
        h01 = (first * (scores[:, 0] - mean)).sum()
        h11 = PULL + (first * (1 - first)).sum()
        if with_shift:
            det = h00 * h11 - h01 * h01
            steps = (h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det
        else:
            steps = g0 / h00, 0.0
        # Full steps overshoot where labels part well.
        far = max(1.0, *map(abs, steps))
        log_slope, shift = log_slope - steps[0] / far, shift - steps[1] / far
        if max(map(abs, steps)) < 1e-9:
            break
    return Calibration(slope=math.exp(log_slope), shift=float(shift))


def log_loss(decisions: Sequence[Decision], calibration: Calibration) -> float:
    """Return the sum of -log p of the true labels."""
    ps = (calibration.of(one.scores)[one.label] for one in decisions)
    return -sum(math.log(max(p, LEAST_P)) for p in ps)


def calibration_error(decisions: Sequence[Decision], calibration: Calibration) -> float:
    """Return by how much probabilities differ from how often they hold, over BINS bins: of two
    labels that of the first one, of more that of the most probable one."""
    sums: dict[int, float] = {}
    for one in decisions:
        shares = calibration.of(one.scores)
        label = 0 if len(shares) == 2 else shares.index(max(shares))
        at = min(BINS - 1, int(shares[label] * BINS))
        sums[at] = sums.get(at, 0.0) + shares[label] - (one.label == label)
    return sum(map(abs, sums.values())) / max(1, len(decisions))
