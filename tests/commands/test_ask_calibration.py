"""Probabilities of the demo about drawn films against what was drawn, and a line that was fitted on
one film against the other."""

from pathlib import Path
from statistics import median

import pytest

from benchmarks.calibration import COUNTS, figures_of, windows_of

BLUNTED, SEED = 0.08, 7


def test_decisions_on_a_short_film_mend_another(tmp_path: Path) -> None:
    figures = figures_of(windows_of(tmp_path, 0.5, SEED), BLUNTED, SEED)
    assert all(area > 0.98 for area in figures.areas.values())
    assert all(error < 0.05 for error in figures.errors.values())
    assert figures.blunted > 2 * figures.calibrated


@pytest.mark.slow
def test_probabilities_are_those_of_what_is_drawn(tmp_path: Path) -> None:
    figures = figures_of(windows_of(tmp_path, 4, SEED), BLUNTED, SEED)
    assert all(area >= 0.999 for area in figures.areas.values())
    assert all(error <= 0.02 for error in figures.errors.values())
    assert figures.blunted >= 0.19 and figures.calibrated <= 0.02
    medians = [median(figures.by_count[count]) for count in COUNTS]
    assert figures.blunted > medians[0] > medians[1] > medians[2]
