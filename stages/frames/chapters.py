"""Reads where the chapters of a video file begin and end."""

from av.container import InputContainer


def borders_of(container: InputContainer) -> tuple[float, ...]:
    """Return where chapters begin and end, ascending, in seconds since time 0 of the file."""
    chapters = container.chapters()
    times = {float(c[edge] * (c["time_base"] or 0)) for c in chapters for edge in ("start", "end")}
    return tuple(sorted(times))
