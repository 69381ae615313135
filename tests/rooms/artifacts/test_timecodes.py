"""Timecode by the rule of SMPTE, counted label by label for a day, and clocks of recordings."""

from collections.abc import Iterator
from fractions import Fraction

import pytest

from artifacts.timecodes import RecordingClock, Timecode, label_rate

FILM, PAL, NTSC, NTSC_60 = (
    Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60000, 1001)
)  # fmt: skip


def labels(nominal: int, dropped: int) -> Iterator[str]:
    """Every label of a day in order."""
    mark = ";" if dropped else ":"
    for minute in range(24 * 60):
        for second in range(60):
            first = dropped if second == 0 and minute % 10 else 0
            for frame in range(first, nominal):
                yield f"{minute // 60:02d}:{minute % 60:02d}:{second:02d}{mark}{frame:02d}"


@pytest.mark.parametrize(
    ("rate", "nominal", "dropped", "count"),
    [(NTSC, 30, 2, 2_589_408), (NTSC, 30, 0, 2_592_000), (FILM, 24, 0, 2_073_600)],
)
def test_labels_are_those_of_a_day(rate: Fraction, nominal: int, dropped: int, count: int) -> None:
    number = -1
    for number, label in enumerate(labels(nominal, dropped)):
        if number % 1009 == 0 or number > count - 3:
            timecode = Timecode.parse(label, rate)
            assert timecode is not None
            assert (timecode.frames, timecode.label) == (number, label)
    assert number + 1 == count
    last = Timecode(frames=number, rate=rate, is_drop=bool(dropped))
    assert last.after(float(1 / rate)).frames == 0, "a day begins anew"


def test_drop_frame_follows_the_clock_on_the_wall() -> None:
    start = Timecode.parse("00:00:00;00", NTSC)
    plain = Timecode.parse("00:00:00:00", NTSC)
    assert start is not None and plain is not None
    for hour in range(1, 24):
        assert abs(start.after(3600 * hour).seconds - 3600 * hour) < 0.09
    assert 3600 * 23 - plain.after(3600 * 23).seconds == pytest.approx(3600 * 23 / 1001, abs=0.04)
    assert start.after(60.06).label == "00:01:00;02"
    sixty = Timecode.parse("00:00:59;59", NTSC_60)
    assert sixty is not None and sixty.after(float(1 / NTSC_60)).label == "00:01:00;04"


@pytest.mark.parametrize(
    ("average", "largest", "expected"),
    [
        (NTSC, NTSC, NTSC),
        (Fraction(19001, 317), Fraction(19001, 317), NTSC_60),  # Matroska rounds to milliseconds
        (Fraction(525990000, 18000983), NTSC, NTSC),  # one frame of 40 is missing
        (Fraction(24165, 827), Fraction(24165, 827), NTSC),  # the same in Matroska
        (Fraction(2454, 100), PAL, PAL),
        (PAL, Fraction(50), PAL),  # interlaced
        (Fraction(251, 10), Fraction(50), PAL),
        (Fraction(2999, 100), Fraction(600), Fraction(30)),  # a phone
        (Fraction(15), Fraction(15), Fraction(15)),
        (Fraction(0), Fraction(0), Fraction(0)),
    ],
)
def test_labels_count_the_rate_of_the_camera(
    average: Fraction, largest: Fraction, expected: Fraction
) -> None:
    assert label_rate(average, largest) == expected


@pytest.mark.parametrize(
    "label", ["", "01:00", "25:00:00:00", "00:00:60:00", "00:00:00:25", "aa:00:00:00"]
)
def test_what_is_no_label_is_none(label: str) -> None:
    assert Timecode.parse(label, PAL) is None
    assert Timecode.parse("01:00:00:00", Fraction(0)) is None


def test_a_span_by_a_clock() -> None:
    clock = RecordingClock(
        timecode="23:59:59:00", rate="25", recorded="2026-03-29T23:59:59.500000Z"
    )
    assert clock.times("timecode", (0.0, 0.5)) == (86399.0, 86399.48)
    assert clock.times("timecode", (0.5, 2.0)) == (86399.48, 86401.0)
    assert clock.times("wall", (1.0, 2.0)) == (0.5, 1.5)
    assert RecordingClock().times("wall", (0.0, 1.0)) is None
    assert RecordingClock(recorded="9999-12-31T23:59:59Z").times("wall", (2.0, 3.0)) is None
    assert RecordingClock(recorded="yesterday").times("wall", (0.0, 1.0)) is None
