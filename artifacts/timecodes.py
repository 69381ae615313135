"""Clocks of recordings: SMPTE timecode, and the time at which a file was recorded.

Timecode counts frames. Of 29.97 and 59.94 frames a second, drop frame leaves out the first labels
of each minute but every tenth, so that labels follow the clock on the wall (SMPTE ST 12-1).
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction

START, TIMECODE, WALL = "start", "timecode", "wall"
CLOCKS = (START, TIMECODE, WALL)
"""What the times of a track count from: the file's start, its timecode, or midnight."""
LABEL = re.compile(r"(\d{2}):(\d{2}):(\d{2})([:;.,])(\d{2,3})")
NTSC_24, NTSC_30, NTSC_60 = (Fraction(1000 * whole, 1001) for whole in (24, 30, 60))
USUAL_RATES = (
    NTSC_24,
    *map(Fraction, (24, 25)),
    NTSC_30,
    *map(Fraction, (30, 48, 50)),
    NTSC_60,
    Fraction(60),
)
"""Frames a second of cameras that write timecode."""
EXACT, NEAR = Fraction(1, 5000), Fraction(1, 200)
"""How far a rate as a file states it, and an average over missing frames, may be from the rate."""
MOST_MISSING = Fraction(3, 2)
"""A rate so many times larger than the average counts fields, or ticks of a clock."""
DROPPED_SHARE = Fraction(1, 15)
"""Labels that drop frame leaves out of a minute, as a share of the frames of a second."""
DAY_MINUTES = 24 * 60
DAY_SECONDS = 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Timecode:
    """The label of a frame."""

    frames: int
    """Frames since the label 00:00:00:00."""
    rate: Fraction
    """Frames a second."""
    is_drop: bool

    @classmethod
    def parse(cls, label: str, rate: Fraction) -> "Timecode | None":
        """Return the timecode of a label, such as `01:00:00;00` in drop frame; None: it is none."""
        if not (match := LABEL.fullmatch(label.strip())) or rate <= 0:
            return None
        hours, minutes, seconds, frames = (int(match[at]) for at in (1, 2, 3, 5))
        nominal, minutes = round(rate), 60 * hours + minutes
        if minutes >= DAY_MINUTES or seconds >= 60 or frames >= nominal:
            return None
        is_drop = match[4] in ";." and rate.denominator != 1 and nominal % 30 == 0
        dropped = _dropped(nominal) * (minutes - minutes // 10) if is_drop else 0
        counted = (60 * minutes + seconds) * nominal + frames - dropped
        return cls(frames=counted, rate=rate, is_drop=is_drop)

    def after(self, seconds: float) -> "Timecode":
        """Return the timecode so many seconds later, within one day."""
        nominal = round(self.rate)
        day = DAY_MINUTES * 60 * nominal
        day -= _dropped(nominal) * (DAY_MINUTES - DAY_MINUTES // 10) if self.is_drop else 0
        later = self.frames + round(Fraction(seconds).limit_denominator(1_000_000) * self.rate)
        return replace(self, frames=later % day)

    def _parts(self) -> tuple[int, int]:
        """Return seconds by labels, and frames."""
        nominal, labels = round(self.rate), self.frames
        if self.is_drop:
            left_out = _dropped(nominal)
            of_ten, of_one = 600 * nominal - 9 * left_out, 60 * nominal - left_out
            tens, rest = divmod(self.frames, of_ten)
            labels += 9 * left_out * tens + left_out * max(0, (rest - left_out) // of_one)
        return divmod(labels, nominal)

    @property
    def label(self) -> str:
        seconds, frames = self._parts()
        minutes, seconds = divmod(seconds, 60)
        mark = ";" if self.is_drop else ":"
        return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}{mark}{frames:02d}"

    @property
    def seconds(self) -> float:
        """Return the label as seconds since 00:00:00:00, as subtitles have it."""
        seconds, frames = self._parts()
        return seconds + frames / round(self.rate)


def label_rate(average: Fraction, largest: Fraction) -> Fraction:
    """Return how many labels a second a film has, of the average number of frames a second, and the
    rate in which all of its frames can be timed. Labels count a whole number, or a 1001st less. The
    average is neither where frames are missing or last longer."""
    for stated in (largest, average):
        exact = min(_whole_rates(stated), key=lambda rate: abs(rate - stated))
        is_frames = average * (1 - EXACT) <= exact <= average * MOST_MISSING
        if is_frames and abs(exact - stated) <= stated * EXACT:
            return exact
    nearest = min(USUAL_RATES, key=lambda rate: abs(rate - average))
    if abs(nearest - average) <= nearest * NEAR:
        return nearest
    return next((rate for rate in USUAL_RATES if rate > average), average)


def _whole_rates(rate: Fraction) -> tuple[Fraction, ...]:
    return Fraction(round(rate)), Fraction(1000 * round(rate), 1001)


def _dropped(nominal: int) -> int:
    return round(nominal * DROPPED_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordingClock:
    """What a file says of when it was recorded."""

    timecode: str = ""
    """Label of its first frame; empty: it states none."""
    rate: str = ""
    """Frames a second as a fraction, such as 30000/1001."""
    recorded: str = ""
    """When recording began, in ISO 8601: by the clock on the wall if the file states its time zone,
    else in UTC; empty: it does not say."""

    def timecode_after(self, seconds: float) -> Timecode | None:
        """Return the timecode so many seconds after the first frame; None: there is none."""
        rate = Fraction(self.rate) if self.rate else Fraction(0)
        first = Timecode.parse(self.timecode, rate) if self.timecode else None
        return None if first is None else first.after(seconds)

    def recorded_after(self, seconds: float) -> datetime | None:
        """Return the time on the wall so many seconds after the first frame; None: unknown."""
        try:
            return datetime.fromisoformat(self.recorded) + timedelta(seconds=seconds)
        except (ValueError, OverflowError):
            return None

    def times(self, clock: str, span: tuple[float, float]) -> tuple[float, float] | None:
        """Return a span of seconds after the first frame by a clock, as seconds since midnight or
        since label 0; None: the file has no such clock."""
        start, end = span
        if clock == TIMECODE:
            first, last = self.timecode_after(start), self.timecode_after(end)
            if first is None or last is None:
                return None
            day = DAY_SECONDS * (last.seconds < first.seconds)
            return first.seconds, last.seconds + day
        if (begun := self.recorded_after(start)) is None:
            return None
        midnight = begun.replace(hour=0, minute=0, second=0, microsecond=0)
        first_second = (begun - midnight).total_seconds()
        return first_second, first_second + end - start
