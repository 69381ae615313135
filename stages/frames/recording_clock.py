"""Reads what a video file says of when it was recorded: timecode and time of creation."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

from av import VideoFrame
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.video.stream import VideoStream

from artifacts.timecodes import RecordingClock, Timecode

TIMECODE, CREATED = "timecode", "creation_time"
"""Keys of metadata, in small letters. Timecode is that of the stream, of a track of timecodes, of
the file, or of the first group of pictures of MPEG-2."""


def clock_of(container: InputContainer, stream: VideoStream, first: VideoFrame) -> RecordingClock:
    """Return the clocks of a file, as far as it states them in a form that can be read."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(0)
    others = [other.metadata for other in container.streams if other.type == "data"]
    places = [stream.metadata, *others, container.metadata]
    stated = [*(_value(place, TIMECODE) for place in places), _of_pictures(first)]
    labels = (label for label in stated if label and Timecode.parse(label, rate))
    created = (_value(place, CREATED) for place in (container.metadata, stream.metadata))
    clock = RecordingClock(timecode=next(labels, ""), rate=str(rate))
    recorded = replace(clock, recorded=next(filter(None, created), ""))
    return clock if recorded.recorded_after(0) is None else recorded


def _value(metadata: dict[str, str], name: str) -> str:
    return next((text for key, text in metadata.items() if key.lower() == name), "")


def _of_pictures(frame: VideoFrame) -> str:
    """Return the label in the header of a group of pictures: 25 bits of MPEG-2 (ISO 13818-2,
    6.3.8); empty: there is none."""
    every: Any = frame.side_data
    data = next((one for one in every if one.type == Type.GOP_TIMECODE), None)
    if data is None:
        return ""
    bits = int.from_bytes(bytes(data)[:8], "little")
    hours, minutes, seconds, pictures = bits >> 19 & 31, bits >> 13 & 63, bits >> 6 & 63, bits & 63
    mark = ";" if bits >> 24 & 1 else ":"
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{mark}{pictures:02d}"
