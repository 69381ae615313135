"""Gives servers access to the media files that they display."""

import asyncio
from pathlib import Path

from artifacts.errors import PenstockError
from artifacts.remote.ahead import run_detached
from artifacts.remote.keeping import local_path


async def shown_file(place: str) -> Path | None:
    """Return the path of a file, fetched if it lies far away, by nobody whom the server's end would
    wait for; None where there is none."""
    try:
        path = await asyncio.wrap_future(run_detached(local_path, place))
    except (PenstockError, OSError, ValueError):
        return None
    # A FIFO would be waited for.
    return path if await asyncio.to_thread(path.is_file) else None
