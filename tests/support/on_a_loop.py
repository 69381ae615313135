"""Runs work on an event loop beside the test, and fails where the loop stands still."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

HANGS_SECONDS = 30.0


def on_a_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run this on an event loop of its own."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANGS_SECONDS)
    assert not thread.is_alive(), "the event loop stands still"
    if failed:
        raise failed[0]
