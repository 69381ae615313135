"""Opens media files with PyAV, using arguments that every supported PyAV version accepts."""

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, overload

import av
import av.logging
from av.container import InputContainer, OutputContainer

NO_METADATA_ERRORS = 19
"""First major version of PyAV without `metadata_errors`; it accepts any bytes in a title."""


@overload
def open_media(
    path: Path, *, format: str | None = None, options: Mapping[str, str] | None = None
) -> InputContainer: ...
@overload
def open_media(
    path: Path | BytesIO,
    mode: Literal["w"],
    *,
    format: str | None = None,
    options: Mapping[str, str] | None = None,
) -> OutputContainer: ...
def open_media(
    path: Path | BytesIO,
    mode: Literal["r", "w"] = "r",
    *,
    format: str | None = None,
    options: Mapping[str, str] | None = None,
) -> InputContainer | OutputContainer:
    """Open a media file for reading or writing. FFmpeg detects the format if it is None. Raises
    FFmpegError."""
    # torchvision 0.24 sets a level when it is imported. PyAV then waits for the GIL to log, while
    # the thread that frees a decoder holds it and waits for the decoder's threads, for good.
    av.logging.set_level(None)
    arguments = open_arguments(
        av.__version__, mode=mode, format=format, options=dict(options or {})
    )
    place = os.fspath(path.absolute()) if isinstance(path, Path) else path
    opened: InputContainer | OutputContainer = av.open(place, **arguments)
    return opened


def open_arguments(version: str, **given: Any) -> dict[str, Any]:
    """Return the keyword arguments of `av.open` for a version of PyAV."""
    if int(version.partition(".")[0]) < NO_METADATA_ERRORS:
        return {**given, "metadata_errors": "replace"}  # titles in Latin-1 are common
    return given
