"""Writes uploaded bodies to files, within limits, and computes identical requests only once.

A body is written to its file as it arrives, and its digest is computed on the way. Little of it is
in memory, and a cached result is found as soon as the last part has arrived. Threads do the
writing, because a disk may block. The module opens none of the uploaded files.

Identical concurrent requests are coalesced into one computation. If one client disconnects, the
others still get the result. If all do, the computation is cancelled.
"""

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from artifacts.disk.faults import is_full
from artifacts.records.keys import content_key
from artifacts.schema import MediaKind
from flows.interfaces.serve.refusals import HttpRefusal, bad_request
from flows.interfaces.serve.temp_store import TempStore
from stages.frames.image_formats import AVIF_BRANDS, HEIC_BRANDS

LOG = logging.getLogger(__name__)

PIECE_SECONDS = 10.0
"""Longest wait for the next part of a body."""
MIN_RATE = 16 << 10
"""Smallest average rate of a body in bytes per second."""
GRACE_SECONDS = 20.0
"""Seconds before that rate is required."""
MAX_DIGITS = 20
"""Largest number of digits of a content length that is parsed. More are too large anyway."""
START_BYTES = 64
WRITTEN_BYTES = 256 << 10
"""Bytes of a body that are written at a time."""
SIGNS: dict[bytes, tuple[MediaKind, str]] = {
    b"\xff\xd8\xff": ("image", ".jpg"),
    b"\x89PNG\r\n\x1a\n": ("image", ".png"),
    b"BM": ("image", ".bmp"),
    b"II*\x00": ("image", ".tif"),
    b"MM\x00*": ("image", ".tif"),
    b"P5": ("image", ".pgm"),
    b"P6": ("image", ".ppm"),
    b"\x1a\x45\xdf\xa3": ("video", ".mkv"),
    b"GIF8": ("video", ".gif"),
    b"FLV": ("video", ".flv"),
    b"OggS": ("video", ".ogv"),
    b"\x00\x00\x01\xba": ("video", ".mpg"),
    b"\x00\x00\x01\xb3": ("video", ".mpg"),
    b"\x30\x26\xb2\x75": ("video", ".wmv"),
    b"YUV4MPEG2": ("video", ".y4m"),
}
"""First bytes of files → their kind and suffix."""
SEND_HINT = "Send JPEG, PNG, WebP, HEIC, AVIF, BMP or TIFF, or a video such as MP4, WebM or MKV"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A complete body in a file."""

    path: Path
    digest: str
    """Content digest, the identity of the medium."""
    kind: MediaKind

    def remove(self) -> None:
        """Delete the file."""
        with suppress(OSError):
            self.path.unlink()


async def upload_of(request: Request, max_bytes: int, temp_store: TempStore) -> Upload:
    """Write a request's body to a file. Raises HttpRefusal."""
    _check_length(request, max_bytes)
    return await receive(request.stream(), max_bytes, temp_store)


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > MAX_DIGITS or int(length) > max_bytes):
        raise _too_large(max_bytes)


async def receive(body: AsyncIterator[bytes], max_bytes: int, temp_store: TempStore) -> Upload:
    """Write a body of at most `max_bytes` bytes to a file. Raises HttpRefusal."""
    file, waiting = BodyFile(temp_store.path(".upload")), bytearray()
    try:
        async for piece in _limited(body, max_bytes):
            waiting += piece
            if len(waiting) >= WRITTEN_BYTES:
                taken, waiting = waiting, bytearray()
                await asyncio.to_thread(file.add, taken)
        return await asyncio.to_thread(file.end, waiting)
    except BaseException:
        asyncio.get_running_loop().run_in_executor(None, file.remove)
        raise


async def body_of(request: Request, max_bytes: int) -> bytes:
    """Return a body as bytes. Raises HttpRefusal."""
    _check_length(request, max_bytes)
    body = bytearray()
    async for piece in _limited(request.stream(), max_bytes):
        body += piece
    return bytes(body)


def stored(data: bytes, max_bytes: int, temp_store: TempStore) -> Upload:
    """Write a file that came inside a JSON body; runs on a thread. Raises HttpRefusal."""
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    file = BodyFile(temp_store.path(".upload"))
    try:
        return file.end(data)
    except BaseException:
        file.remove()
        raise


class BodyFile:
    """The file of a body that is still arriving. Its methods are called on threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._start = b""
        self._lock = threading.Lock()

    def add(self, data: bytes | bytearray) -> None:
        """Append bytes. Raises HttpRefusal if they do not fit on the disk."""
        with self._lock:
            self._start = (self._start + data[:START_BYTES])[:START_BYTES]
            self._digest.update(data)
            try:
                with open(self._path, "ab") as file:
                    file.write(data)
            except OSError as error:
                if not is_full(error):
                    raise
                LOG.warning("an upload does not fit on the disk of %s", self._path.parent)
                why = "the server has no room for the upload"
                raise HttpRefusal(507, why, "Ask again later, or send less", 5.0) from error

    def end(self, data: bytes | bytearray) -> Upload:
        """Append the last bytes, and return the upload. Raises HttpRefusal."""
        self.add(data)
        with self._lock:
            upload = _named(self._path, self._start, self._digest.hexdigest())
            self._path = upload.path
        return upload

    def remove(self) -> None:
        """Delete the file, after a write in progress."""
        with self._lock, suppress(OSError):
            self._path.unlink()


def _named(path: Path, start: bytes, digest: str) -> Upload:
    """Rename a file to the suffix of its type, and return it as an upload."""
    if not start:
        hint = "Send an image or a clip as the body of the request"
        raise bad_request("the body is empty", hint, "empty_image_file")
    kind, suffix = kind_of(start)
    named = path.with_suffix(suffix)
    os.rename(path, named)
    return Upload(path=named, digest=content_key(digest, kind), kind=kind)


def _too_large(max_bytes: int) -> HttpRefusal:
    return HttpRefusal(
        413, f"the body exceeds {max_bytes >> 20} MiB", "Send a smaller file, or a shorter clip"
    )


async def _limited(body: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the parts of a body within the limits of time and size. Raises HttpRefusal."""
    loop, size = asyncio.get_running_loop(), 0
    began, pieces = loop.time(), aiter(body)
    while True:
        try:
            async with asyncio.timeout(PIECE_SECONDS):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise _slow() from error
        except ClientDisconnect as error:
            raise HttpRefusal(499, "the client disconnected while sending the body") from error
        size += len(piece)
        if loop.time() - began > GRACE_SECONDS + size / MIN_RATE:
            raise _slow()
        if size > max_bytes:
            raise _too_large(max_bytes)
        if piece:
            yield piece


def _slow() -> HttpRefusal:
    return HttpRefusal(408, "the body arrives too slowly", "Use a faster connection")


def kind_of(start: bytes) -> tuple[MediaKind, str]:
    """Return the kind and suffix of a file by its first bytes. Raises HttpRefusal."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image", ".webp"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "video", ".avi"
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand in AVIF_BRANDS:
            return "image", ".avif"
        return ("image", ".heic") if brand in HEIC_BRANDS else ("video", ".mp4")
    for sign, kind_and_suffix in SIGNS.items():
        if start.startswith(sign):
            return kind_and_suffix
    if start[:1] == b"\x47" and len(start) >= START_BYTES:
        return "video", ".ts"
    error, code = "unknown image or video format", "unsupported_image_media_type"
    raise HttpRefusal(415, error, SEND_HINT, code=code)


ResultT = TypeVar("ResultT")


class SingleFlight(Generic[ResultT]):
    """A computation that several requests await."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[ResultT]] = {}
        self._waiters: dict[str, int] = {}

    async def once(self, key: str, make: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Return the result of `make`, which runs once for all concurrent requests of a key."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(self._made(key, make))
        self._waiters[key] = self._waiters.get(key, 0) + 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiters[key] -= 1
            if not self._waiters[key]:
                del self._waiters[key]
                if not task.done():
                    del self._tasks[key]  # later requests start a new computation
                    task.cancel()

    async def once_of(
        self, upload: Upload, key: str, make: Callable[[], Awaitable[ResultT]]
    ) -> ResultT:
        """Do the same for an upload, and delete it when no computation needs it. Other requests may
        share the computation's result."""
        is_ours = False

        async def made() -> ResultT:
            nonlocal is_ours
            is_ours = True
            try:
                return await make()
            finally:
                upload.remove()

        try:
            return await self.once(key, made)
        finally:
            if not is_ours:
                upload.remove()

    async def _made(self, key: str, make: Callable[[], Awaitable[ResultT]]) -> ResultT:
        try:
            return await make()
        finally:
            if self._tasks.get(key) is asyncio.current_task():
                del self._tasks[key]
