"""Reads what a video file says of when it was recorded: timecode and time of creation."""

from fractions import Fraction
from typing import Any

from av import VideoFrame
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.video.stream import VideoStream

from artifacts.timecodes import RecordingClock, Timecode, label_rate

TIMECODE = "timecode"
"""Key of metadata, in small letters: of the stream, of a track of timecodes, or of the file. In
MPEG-2 the first group of pictures has it."""
CREATED = ("com.apple.quicktime.creationdate", "creation_time")
"""Keys of metadata. The first is that of phones, by the clock on the wall with its distance from
UTC; the second is in UTC."""


def clock_of(container: InputContainer, stream: VideoStream, first: VideoFrame) -> RecordingClock:
    """Return the clocks of a file, as far as it states them in a form that can be read."""
    average = _exact(stream.average_rate or stream.guessed_rate)
    rate = label_rate(average, _exact(stream.base_rate) or average)
    others = [other.metadata for other in container.streams if other.type == "data"]
    places = [stream.metadata, *others, container.metadata]
    stated = [*(_value(place, TIMECODE) for place in places), _of_pictures(first)]
    labels = (label for label in stated if label and Timecode.parse(label, rate))
    places = [container.metadata, stream.metadata]
    created = (_value(place, name) for name in CREATED for place in places)
    return RecordingClock(
        timecode=next(labels, ""), rate=str(rate), recorded=next(filter(_is_time, created), "")
    )


def _exact(rate: Fraction | None) -> Fraction:
    """Return a rate as a fraction: PyAV 19 has a class of its own, which cannot be rounded."""
    return Fraction(rate.numerator, rate.denominator) if rate else Fraction(0)


def _is_time(created: str) -> bool:
    """Return whether a time can be read, and is later than 1970. A camera whose clock was never set
    writes 0, and containers count seconds from 1904 or 1970."""
    begun = RecordingClock(recorded=created).recorded_after(0)
    return begun is not None and begun.year > 1970


def _value(metadata: dict[str, str], name: str) -> str:
    return next((text for key, text in metadata.items() if key.lower() == name), "")


def _of_pictures(frame: VideoFrame) -> str:
    """Return the label in the header of a group of pictures: 25 bits of MPEG-2 (ISO 13818-2,
    6.3.8); empty: there is none."""
    every: Any = frame.side_data
    if (data := every.get(Type.GOP_TIMECODE)) is None:
        return ""
    bits = int.from_bytes(bytes(data)[:8], "little")
    hours, minutes, seconds, pictures = bits >> 19 & 31, bits >> 13 & 63, bits >> 6 & 63, bits & 63
    mark = ";" if bits >> 24 & 1 else ":"
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{mark}{pictures:02d}"
