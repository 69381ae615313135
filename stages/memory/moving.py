"""Measures how fast this machine moves bytes and decodes pictures: disk, device, video. Runs in a
process of its own and knows no model."""

import io
import os
import statistics
import tempfile
import time
import timeit
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

DISK_BYTES = 256 << 20
"""Most bytes that are written and read again."""
DISK_SECONDS = 0.8
"""Most seconds that writing goes on, so that a slow disk is known soon."""
PIECE_BYTES = 16 << 20
PINNED_BYTES = 64 << 20
VIDEO_FRAMES = 48
VIDEO_SIZE = (720, 1280)
CODECS = ("libx264", "h264", "mpeg4")
"""Codecs of which the first that PyAV can write is taken; what people have is H.264 nearly
always."""


def disk(folder: Path) -> dict[str, float]:
    """Return the bytes a second that the disk of the store's folder writes and reads. Written
    counts when it has reached the disk, and read is what the kernel does not remember."""
    folder.mkdir(parents=True, exist_ok=True)
    piece = np.random.default_rng(0).integers(0, 255, PIECE_BYTES, dtype=np.uint8).tobytes()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        written, started = 0, time.perf_counter()
        while written < DISK_BYTES and time.perf_counter() - started < DISK_SECONDS:
            written += file.write(piece)
            os.fsync(file.fileno())
        write = written / (time.perf_counter() - started)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        buffer, read, started = memoryview(bytearray(PIECE_BYTES)), 0, time.perf_counter()
        while time.perf_counter() - started < DISK_SECONDS and (got := file.readinto(buffer)):
            read += got
        return {"disk_write": write, "disk_read": read / (time.perf_counter() - started)}


def copies(device: str) -> dict[str, float]:
    """Return the bytes a second between pinned memory and the device, each way."""
    import torch

    host = torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(PINNED_BYTES, dtype=torch.uint8, device=device)

    def rate(to: torch.Tensor, of: torch.Tensor) -> float:
        def copy() -> None:
            to.copy_(of, non_blocking=True)
            torch.cuda.synchronize()

        copy()  # the first takes longer
        return PINNED_BYTES / statistics.median(timeit.repeat(copy, number=1, repeat=5))

    return {"to_device": rate(there, host), "from_device": rate(host, there)}


def video_pixels() -> float:
    """Return the pixels a second that come of decoding H.264, all cores together."""
    from artifacts.containers import open_media

    with tempfile.TemporaryDirectory(prefix="penstock-measure-") as folder:
        path = Path(folder, "video.mp4")
        _write(path)

        def decode() -> None:
            with open_media(path) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                deque(container.decode(stream), maxlen=0)

        seconds = min(timeit.repeat(decode, number=1, repeat=2))
    return VIDEO_FRAMES * VIDEO_SIZE[0] * VIDEO_SIZE[1] / seconds


def _write(path: Path) -> None:
    """Write a picture with detail that moves, under changing light, as decoding depends on both."""
    import av

    from artifacts.containers import open_media

    height, width = VIDEO_SIZE
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (height // 8, width // 8 + VIDEO_FRAMES, 3), dtype=np.uint8)
    fine = np.kron(coarse, np.ones((8, 8, 1), np.uint8)) // 2
    fine += random.integers(0, 24, fine.shape, dtype=np.uint8)
    with open_media(path, "w") as container:
        stream: Any = container.add_stream(_codec(), rate=24, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for at in range(VIDEO_FRAMES):
            shown = np.ascontiguousarray(fine[:, 4 * at : 4 * at + width]) + np.uint8(at)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode(None))


def _codec() -> str:
    import av

    return next(name for name in CODECS if name in av.codecs_available)


def picture_pixels() -> float:
    """Return the pixels a second that come of decoding JPEG, on one core."""
    from PIL import Image

    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (90, 160, 3), dtype=np.uint8)
    kept = io.BytesIO()
    Image.fromarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))).save(kept, "JPEG", quality=90)

    def decode() -> None:
        with Image.open(kept) as image:
            image.convert("RGB").load()

    return 720 * 1280 / statistics.median(timeit.repeat(decode, number=1, repeat=4))
