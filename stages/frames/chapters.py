"""Reads where the chapters of a video file begin and end."""

import av
from av.container import InputContainer


def borders_of(container: InputContainer) -> tuple[float, ...]:
    """Return where chapters begin and end, ascending, in seconds since the start of the file.

    The times of Matroska count from time 0 of its clock, as those of frames do, and a recording may
    start later. FFmpeg moves frames without the chapters, which then begin before the file does:
    such ones count from its start.
    """
    chapters = container.chapters()
    times = {float(c[edge] * (c["time_base"] or 0)) for c in chapters for edge in ("start", "end")}
    start = (container.start_time or 0) / av.time_base
    shift = start if times and min(times) >= start else 0.0
    return tuple(time - shift for time in sorted(times))
