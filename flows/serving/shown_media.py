"""Gives servers access to the media files that they display."""

import asyncio
from pathlib import Path

from artifacts.errors import PenstockError
from artifacts.remote.ahead import run_detached
from artifacts.remote.media_cache import local_path


async def shown_file(place: str) -> Path | None:
    """Return the local path of a file, or None. A remote file is fetched on a thread that does not
    delay the server's shutdown."""
    try:
        path = await asyncio.wrap_future(run_detached(local_path, place))
    except (PenstockError, OSError, ValueError):
        return None
    # Opening a FIFO would block.
    return path if await asyncio.to_thread(path.is_file) else None
