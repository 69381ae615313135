"""Measures how fast this machine computes the blocks that models consist of, in its own process."""

import copy
import functools
import io
import os
import statistics
import tempfile
import time
import timeit
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = ((1, 1), (8, 1), (1, 256))
"""(rows, tokens of each) that go through a block at once: a step of one chunk, one of a batch, and
the reading of a prompt or the encoding of pictures."""
WIDTH = {"cpu": 1536, "cuda": 4096}
"""Width of a block: as large as in common models, so that a GPU has something to do."""
QUANTIZED_WIDTH = {"cpu": 1024, "cuda": 4096}
"""The same where each weight is quantized first, which takes a CPU seconds."""
PASS_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Weights that one pass reads: more than caches hold, as those of models are."""
PIECE_SECONDS = 0.15
"""Most seconds that one figure is measured, unless a single run takes longer."""
REPEATS = 15
HEAD = 64
PAST = 256
"""Tokens that were read before a step."""
SMALL = 64
"""Width of a block whose computing is nothing beside its being called."""

MakeLayer = Callable[[int, int], Any]
"""(numbers in, numbers out) → a linear layer."""


class DecoderBlock(nn.Module):
    """A decoder block with its KV cache: seven linear layers, four query heads per key head, and
    the operations around them."""

    LINEARS = 7

    def __init__(self, width: int, make: MakeLayer) -> None:
        super().__init__()
        self.width = width
        keys = max(HEAD, width // 4)
        self.square = nn.ModuleList(make(width, width) for _ in range(2))
        self.keyed = nn.ModuleList(make(width, keys) for _ in range(2))
        self.parameters_in_layers = 2 * width * (width + keys) + 12 * width**2
        self.rising = nn.ModuleList(make(width, 4 * width) for _ in range(2))
        self.falling = make(4 * width, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2))

    def forward(self, x: torch.Tensor, past: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = x.shape
        hidden = self.norms[0](x)
        layers = (self.square[0], *self.keyed)
        q, k, v = (f(hidden).view(rows, tokens, -1, HEAD).transpose(1, 2) for f in layers)
        half = HEAD // 2
        q, k = (t * turn + torch.cat((-t[..., half:], t[..., :half]), -1) * turn for t in (q, k))
        k, v = torch.cat((past, k), 2), torch.cat((past, v), 2)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + self.square[1](seen.transpose(1, 2).reshape(rows, tokens, self.width))
        hidden = self.norms[1](x)
        gate = nn.functional.silu(self.rising[0](hidden)) * self.rising[1](hidden)
        return torch.add(x, self.falling(gate))


class Run:
    """Some blocks, and the input that goes through them."""

    def __init__(
        self, blocks: list[DecoderBlock], rows: int, tokens: int, dtype: torch.dtype, device: str
    ) -> None:
        width = blocks[0].width
        self.blocks = blocks
        self._x = torch.randn(rows, tokens, width, device=device).to(dtype)
        before = PAST if tokens == 1 else 0
        self._past = torch.randn(rows, max(1, width // HEAD // 4), before, HEAD, device=device).to(
            dtype
        )
        self._turn = torch.randn(tokens, HEAD, device=device).to(dtype)

    def __call__(self) -> None:
        for block in self.blocks:
            block(self._x, self._past, self._turn)


def seconds_of(run: Callable[[], object], device: str, max_seconds: float = PIECE_SECONDS) -> float:
    """Return the median seconds of a few repeats; of a run that takes long, the first."""
    first = _timed(run, device)  # it finds its kernels
    if first > 2 * max_seconds:
        return first
    times: list[float] = []
    end = time.perf_counter() + max_seconds
    while len(times) < REPEATS and (len(times) < 2 or time.perf_counter() < end):
        times.append(_timed(run, device))
    return sorted(times)[len(times) // 2]


def _timed(run: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def passes(precision: str, device: str, companion: str) -> list[list[float]]:
    """Return [tokens, seconds a parameter] of blocks for each of SHAPES. Quantized ones compute in
    `companion`."""
    kind = device.partition(":")[0]
    width = (WIDTH if precision in DTYPES else QUANTIZED_WIDTH)[kind]
    dtype = DTYPES.get(precision, DTYPES[companion])
    first = DecoderBlock(width, functools.partial(_layer, precision, device)).to(device)
    for norm in first.norms:
        norm.to(dtype)
    held = sum(weight.nbytes for weight in first.parameters())
    # Copies of the first: to quantize each of them would take longer than all the rest.
    blocks = [first, *(copy.deepcopy(first) for _ in range(PASS_BYTES[kind] // held))]
    found = []
    for rows, tokens in SHAPES:
        # In a long pass the weights are read once and used often: one block tells as much.
        run = Run(blocks if tokens == 1 else blocks[:1], rows, tokens, dtype, device)
        parameters = len(run.blocks) * first.parameters_in_layers
        found.append([rows * tokens, seconds_of(run, device) / parameters])
    return found


def quantizing(precision: str, device: str) -> float:
    """Return how many parameters a second become 8 or 4 bit while a model is loaded."""
    _layer(precision, device, SMALL, SMALL).to(device)  # it loads its library
    width = 2048
    layer = _layer(precision, device, width, width)
    return width * width / _timed(lambda: layer.to(device), device)


def _layer(precision: str, device: str, taken: int, given: int) -> Any:
    # Drawn where that is fast; what is to be quantized must come from the host.
    weight = torch.randn(given, taken, device=device) / taken**0.5
    if precision in DTYPES:
        layer: Any = nn.Linear(taken, given, bias=False, device="meta")
        layer.weight = nn.Parameter(weight.to(DTYPES[precision]), requires_grad=False)
        return layer
    from bitsandbytes.nn import modules as bnb

    made: Any = bnb
    if precision == "int8":
        layer = made.Linear8bitLt(taken, given, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = made.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        return layer
    layer = made.Linear4bit(taken, given, bias=False, quant_type="nf4")
    layer.weight = made.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
    return layer


def call_seconds(device: str) -> float:
    """Return the seconds that a linear layer, with the operations around it, takes when there is
    nothing to compute."""
    block = DecoderBlock(SMALL, functools.partial(_layer, "fp32", device)).to(device)
    run = Run([block] * 8, 1, 1, torch.float32, device)
    return seconds_of(run, device) / (8 * DecoderBlock.LINEARS)


def preparing() -> float:
    """Return how many numbers of pixel input a second are made of frames: resized, and scaled."""
    frames = torch.randint(0, 255, (2, 3, 720, 1280), dtype=torch.uint8)

    def run() -> torch.Tensor:
        small = nn.functional.interpolate(
            frames.float(), (384, 384), mode="bicubic", antialias=True
        )
        return (small / 255 - 0.5) / 0.5

    return 2 * 3 * 384 * 384 / seconds_of(run, "cpu")


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


def jpeg_pixels() -> float:
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
