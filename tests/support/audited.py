"""`penstock` with a book of everything on which its event loop waited for a file, a pipe or a disk,
from the moment it says that it serves. Run as a module: the file of the book, then the command."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

ALLOWED = {
    "<frozen importlib._bootstrap>": "what is imported at the first use, once",
    "linecache.py": "sources of routes, which FastAPI reads once",
    "temp_store.py:temp_folder": "the temporary folder, deleted when nobody is served any more",
}
"""Modules that may wait, or functions of them: name → for what."""
SHOWN = 8
found: dict[str, int] = {}
begun = threading.Event()


def on_the_loop() -> bool:
    return begun.is_set() and asyncio._get_running_loop() is not None


def note(what: str) -> None:
    """Book what the loop waits for, by who does it."""
    frame: FrameType | None = sys._getframe(2)
    who: list[str] = []
    while frame is not None:
        module = frame.f_code.co_filename.rpartition("/")[2]
        if not {module, f"{module}:{frame.f_code.co_name}"}.isdisjoint(ALLOWED):
            return
        who.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    line = " < ".join([what, *who[:SHOWN]])
    found[line] = found.get(line, 0) + 1


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and on_the_loop() and not isinstance(arguments[0], int):
        note(f"open {os.fsdecode(arguments[0])}")


def watched(name: str) -> None:
    """Book calls of a function of `os` with a descriptor that waits."""
    real: Callable[..., Any] = getattr(os, name)

    def called(descriptor: Any, *rest: Any, **options: Any) -> Any:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if on_the_loop() and (name in SYNCS or os.get_blocking(number)):
            note(name)
        return real(descriptor, *rest, **options)

    setattr(os, name, called)


SYNCS = ("fsync", "fdatasync")


def main(book: str, *words: str) -> int:
    from flows.interfaces.cli import main as command
    from flows.interfaces.serve import listening
    from flows.interfaces.serve import server as serving
    from flows.interfaces.studio import server as studio

    for name in (*SYNCS, "write", "read", "pread", "pwrite", "writev", "readv", "sendfile"):
        watched(name)
    sys.addaudithook(hook)
    real = listening.address_of

    def address_of(listener: Any) -> str:
        begun.set()
        return real(listener)

    for server in (serving, studio):
        server.address_of = address_of  # type: ignore[attr-defined]
    try:
        return int(command.main(list(words)) or 0)
    finally:
        begun.clear()
        with open(book, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
