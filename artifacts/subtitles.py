"""Writes captions as one file per medium: plain text, WebVTT and SubRip."""

from collections.abc import Iterator, Sequence

from artifacts.captions import Caption


def text_lines(captions: Sequence[Caption]) -> Iterator[str]:
    """Yield one line per chunk; line breaks inside a caption become spaces."""
    yield from (f"{one_line(caption.caption)}\n" for caption in captions)


def vtt_lines(captions: Sequence[Caption]) -> Iterator[str]:
    """Yield a WebVTT track with a cue for each chunk with a caption; nothing without chunks.

    Source: W3C WebVTT, section 4.1: `&`, `<` and so `-->` must be escaped.
    """
    if captions:
        yield "WEBVTT\n"
    for start, end, text in _cues(captions):
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"\n{cue_time(start)} --> {cue_time(end)}\n{text}\n"


def srt_lines(captions: Sequence[Caption]) -> Iterator[str]:
    """Yield a SubRip file with a cue for each chunk with a caption.

    The format has no escapes. Only the arrow, which readers parse as a time, is replaced.
    """
    for number, (start, end, text) in enumerate(_cues(captions), 1):
        gap = "\n" if number > 1 else ""
        text = text.replace("-->", "→")
        yield f"{gap}{number}\n{cue_time(start, ',')} --> {cue_time(end, ',')}\n{text}\n"


def cue_time(milliseconds: int, point: str = ".") -> str:
    """Return a time as `hh:mm:ss.mmm`; hours grow beyond two digits."""
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{milliseconds:03d}"


def _cues(captions: Sequence[Caption]) -> Iterator[tuple[int, int, str]]:
    """Yield start and end in milliseconds, which always differ, and the text, which is never
    empty."""
    for caption in captions:
        text = one_line(caption.caption)
        if text:
            start = round(caption.start * 1000)
            yield start, max(round(caption.end * 1000), start + 1), text


def one_line(text: str) -> str:
    """Return a text on one line: line breaks and runs of spaces become one space."""
    return " ".join(text.split()).replace("\0", "\N{REPLACEMENT CHARACTER}")


WRITERS = {"txt": text_lines, "vtt": vtt_lines, "srt": srt_lines}
"""Suffix → writer of a format with one file per medium."""
