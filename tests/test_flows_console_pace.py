"""How long a stage still takes, said of stages that were never run: their clock is made up."""

import random
from collections.abc import Callable, Iterator
from itertools import accumulate

import pytest

from flows.console.pace import GROUP_SECONDS, WINDOW_SECONDS, Pace
from flows.console.units import duration, gib
from flows.console.units import pace as pace_told

LOADING_SECONDS = 40.0
Seconds = Iterator[float]
"""Seconds from one item to the next."""


def lognormal(dice: random.Random, mean: float, sigma: float) -> float:
    return mean * dice.lognormvariate(-sigma * sigma / 2, sigma)


def one_by_one(dice: random.Random) -> Seconds:
    """200 captions of about half a second."""
    yield from (lognormal(dice, 0.5, 0.6) for _ in range(200))


def slow_first(dice: random.Random) -> Seconds:
    """The same, the first of which compiles and warms up for half as long as all others take."""
    yield 50.0
    yield from one_by_one(dice)


def in_batches(dice: random.Random) -> Seconds:
    """60 batches of 8, each told item by item."""
    for _ in range(60):
        yield lognormal(dice, 4.0, 0.4)
        yield from (0.0005 for _ in range(7))


def slow_first_batch(dice: random.Random) -> Seconds:
    yield 45.0
    yield from (0.0005 for _ in range(7))
    yield from in_batches(dice)


def very_long(dice: random.Random) -> Seconds:
    """200 items of three minutes: the window alone would hold none."""
    yield from (lognormal(dice, 180.0, 0.8) for _ in range(200))


def very_fast(dice: random.Random) -> Seconds:
    """30,000 pictures in two minutes."""
    yield from (lognormal(dice, 0.004, 1.0) for _ in range(30_000))


STAGES: list[Callable[[random.Random], Seconds]] = [
    one_by_one,
    slow_first,
    in_batches,
    slow_first_batch,
    very_long,
    very_fast,
]


@pytest.mark.parametrize("stage", STAGES)
def test_time_left_is_within_a_factor_of_two_after_a_tenth(
    stage: Callable[[random.Random], Seconds],
) -> None:
    for seed in range(5):
        ends = [LOADING_SECONDS + end for end in accumulate(stage(random.Random(seed)))]
        assert ends[-1] - LOADING_SECONDS >= 60
        pace, made = Pace(0.0), 0
        pace.begin(LOADING_SECONDS)
        for share in (0.1, 0.3, 0.6, 0.8):
            before, made = made, round(share * len(ends))
            for end in ends[before:made]:
                pace.count(end)
            now = ends[made - 1] + GROUP_SECONDS  # when a line that moves is drawn next
            truth = ends[-1] - now
            told = pace.seconds_left(len(ends) - made, now)
            assert truth / 2 < told < truth * 2, (seed, share)


def test_a_batch_that_is_only_being_told_says_nothing_of_the_rate() -> None:
    pace = Pace(0.0)
    pace.count(10.0)
    assert pace.rate(10.0) == 0.0
    for _ in range(7):
        pace.count(10.0)
    assert pace.rate(10.0 + 2 * GROUP_SECONDS) == 0.8
    pace.count(20.0)
    assert pace.rate(20.0) == 0.8


def test_time_left_counts_from_when_the_first_could_begin() -> None:
    pace = Pace(0.0)
    pace.begin(300.0)  # it loaded for five minutes
    pace.count(306.0)
    pace.begin(400.0)
    assert pace.seconds_left(90, 307.0) == 90 * 6.0


def test_time_left_follows_a_stage_that_becomes_slower() -> None:
    pace, now = Pace(0.0), 0.0
    for _ in range(1000):
        now += 0.1
        pace.count(now)
    for _ in range(100):
        now += 5.0
        pace.count(now)
    assert 5.0 / 2 < pace.seconds_left(1, now) < 5.0 * 2 and WINDOW_SECONDS < 100 * 5


def test_a_rate_is_told_in_figures_that_say_something_and_memory_in_powers_of_two() -> None:
    assert [pace_told(rate) for rate in (3.24, 0.1, 1 / 30)] == ["3.2/s", "0.1/s", "2.0/min"]
    sizes = {3 << 29: "1.50 GiB", 150 << 20: "0.15 GiB", 102 << 20: "102 MiB", 5 << 20: "5.0 MiB"}
    assert {count: gib(count) for count in sizes} == sizes


def test_a_time_has_two_units_at_most() -> None:
    times = {9.96: "10.0 s", 10: "10 s", 59.4: "59 s", 59.6: "1 min 00 s", 200: "3 min 20 s"}
    times |= {3599.7: "1 h 00 min", 7500: "2 h 05 min"}
    assert {seconds: duration(seconds) for seconds in times} == times
