"""Calibrations against the likelihood that they maximize, and what decisions were drawn by."""

import math
import random
from collections.abc import Sequence
from statistics import median

import pytest

from artifacts.texts.calibration import (
    HALVED,
    LEAST,
    LINE,
    PULL,
    RAW,
    Calibration,
    Decision,
    best_fit,
    calibrated,
    calibration_error,
    fit,
    log_loss,
    parts_of,
)


def logit_scores(logit: float) -> tuple[float, float]:
    """Log probabilities of Yes and No whose difference is this."""
    return -math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))


def drawn(
    seed: int, count: int, slope: float = 1.0, shift: float = 0.0, media: int = 0
) -> list[Decision]:
    """Decisions that follow a logit, of which a half says (logit - shift) / slope."""
    rng = random.Random(seed)
    logits = [rng.gauss(-1, 4) for _ in range(count)]
    return [
        Decision(
            logit_scores((logit - shift) / slope),
            int(rng.random() >= 1 / (1 + math.exp(-logit))),
            f"medium {at % media if media else at}",
        )
        for at, logit in enumerate(logits)
    ]


def test_a_line_undoes_what_blunted_the_logits() -> None:
    line = fit(drawn(1, 4000, slope=10, shift=-2), with_shift=True)
    assert line.slope == pytest.approx(10, rel=0.1) and line.shift == pytest.approx(-2, abs=0.3)
    slope = fit(drawn(2, 4000, slope=0.4), with_shift=False)
    assert slope.slope == pytest.approx(0.4, rel=0.1) and slope.shift == 0


def test_a_fit_is_where_the_penalized_likelihood_is_the_largest() -> None:
    decisions = drawn(3, 60, slope=3, shift=1)
    counts = [sum(one.label == label for one in decisions) for label in (0, 1)]

    def loss(line: Calibration) -> float:
        """By Platt's targets, written from his paper, and a weak pull."""
        total = PULL / 2 * (math.log(line.slope) ** 2 + line.shift**2)
        for one in decisions:
            p = line.of(one.scores)[0]
            yes, no = counts
            target = (yes + 1) / (yes + 2) if one.label == 0 else 1 / (no + 2)
            total -= target * math.log(p) + (1 - target) * math.log(1 - p)
        return total

    line = fit(decisions, with_shift=True)
    for slope, shift in ((1.01, 0), (0.99, 0), (1, 0.02), (1, -0.02)):
        assert loss(line) < loss(Calibration(slope=line.slope * slope, shift=line.shift + shift))


def test_a_temperature_of_several_labels_keeps_their_order() -> None:
    rng, decisions = random.Random(4), []
    for at in range(600):
        logits = [rng.gauss(0, 3) for _ in range(4)]
        weights = [math.exp(logit) for logit in logits]
        (label,) = rng.choices(range(4), weights)
        blunt = [logit / 5 for logit in logits]
        decisions.append(Decision(tuple(blunt), label, f"{at}"))
    calibration = best_fit(decisions)
    assert calibration.slope == pytest.approx(5, rel=0.15) and calibration.shift == 0
    assert calibration_error(decisions, calibration) < 0.05
    assert calibration_error(decisions, RAW) > 0.2
    for one in decisions:
        before, after = RAW.of(one.scores), calibration.of(one.scores)
        assert before.index(max(before)) == after.index(max(after))


def test_few_decisions_change_nothing_and_a_line_needs_more() -> None:
    blunted = drawn(5, 400, slope=12, shift=6)
    assert best_fit(blunted[: LEAST - 1]) == RAW
    assert all(best_fit(blunted[at : at + LINE - 1]).shift == 0 for at in range(0, 300, LINE))
    assert best_fit(blunted).shift > 0


def test_only_yes_says_nothing_of_a_probability() -> None:
    only = [Decision(logit_scores(-1), 0, f"{at}") for at in range(50)]
    assert best_fit(only) == RAW and best_fit([]) == RAW


def test_good_probabilities_stay_as_they_are() -> None:
    kept = [best_fit(drawn(seed, 50)) == RAW for seed in range(20)]
    assert sum(kept) >= 12
    own = best_fit(every := drawn(6, 2000))
    assert log_loss(every, own) <= log_loss(every, RAW)
    assert calibration_error(every, own) < 0.03


def test_an_error_is_stated_from_enough_decisions_that_were_held_out() -> None:
    few = calibrated(drawn(7, HALVED - 1, slope=12))
    assert few.held_out == 0 and few.calibration != RAW
    enough = calibrated(drawn(7, 142, slope=12))
    assert (enough.decisions, enough.held_out) == (142, 71)
    assert enough.raw_error > 0.2 > enough.error


def test_what_is_held_out_is_of_other_media_and_the_order_does_not_count() -> None:
    decisions = drawn(8, 120, media=9)
    parts = parts_of(decisions, 2)
    first, second = ({one.medium for one in part} for part in parts)
    assert not first & second and abs(len(parts[0]) - len(parts[1])) <= 14
    assert calibrated(decisions[::-1]).error == pytest.approx(calibrated(decisions).error)
    of_one = [Decision(one.scores, one.label, "film") for one in decisions]
    assert [len(part) for part in parts_of(of_one, 2)] == [60, 60]


def test_a_calibration_error_is_the_gap_in_each_bin() -> None:
    def sure(p: float, label: int) -> Decision:
        return Decision((math.log(p), math.log(1 - p)), label, "")

    # 0.9 holds in 1 of 2, 0.2 in 0 of 2: gaps of 0.4 and 0.2, each of a half.
    decisions = [sure(0.9, 0), sure(0.9, 1), sure(0.2, 1), sure(0.2, 1)]
    assert calibration_error(decisions, RAW) == pytest.approx(0.3)
    assert calibration_error([], RAW) == 0


@pytest.mark.parametrize("scores", [(-900.0, -901.0), (0.0, -1e4), (-1e4, 0.0)])
def test_extreme_scores_give_finite_probabilities(scores: Sequence[float]) -> None:
    decisions = [Decision(tuple(scores), at % 2, f"{at}") for at in range(30)]
    shares = best_fit(decisions).of(scores)
    assert all(map(math.isfinite, shares)) and sum(shares) == pytest.approx(1)


def test_the_median_error_falls_with_the_number_of_decisions() -> None:
    test = drawn(9, 3000, slope=12)
    errors = [
        median(calibration_error(test, best_fit(drawn(seed, n, slope=12))) for seed in range(20))
        for n in (20, 50, 100)
    ]
    assert calibration_error(test, RAW) > errors[0] > errors[1] > errors[2]
