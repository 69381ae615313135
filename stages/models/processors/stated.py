"""Reads off a processor which frames of a video it was made for; knows no family."""

from typing import Any

from stages.models.profile import SamplingProfile


def stated_sampling(processor: Any) -> SamplingProfile:
    """Return what it states; nothing where it takes no videos."""
    part = getattr(processor, "video_processor", None)

    def number(name: str) -> Any:
        value = getattr(part, name, None)
        return value if isinstance(value, int | float) and value > 0 else None

    frames, least, most = number("num_frames"), number("min_frames"), number("max_frames")
    return SamplingProfile(
        fps=None if number("fps") is None else float(number("fps")),
        frames=None if frames is None else int(frames),
        min_frames=None if least is None else int(least),
        max_frames=None if most is None else int(most),
        seconds=number("chunk_seconds"),
    )
