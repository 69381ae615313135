"""The stage that benchmarks this machine: model blocks, quantization, memory, disk, device copies,
media decoding and process start.
"""

import copy
import functools
import importlib
import io
import os
import statistics
import tempfile
import time
import timeit
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stages.memory.oom_retry import MeasureJob
from stages.process.device_limit import context_bytes
from stages.process.events import EventReporter
from stages.process.exit_diagnosis import first_line
from stages.process.job import parse_job

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = ((1, 1), (8, 1), (1, 256))
"""(rows, tokens per row) of one pass: a decode step of one chunk, one of a batch, and the prefill
of a prompt or the encoding of images."""
WIDTH = {"cpu": 1536, "cuda": 4096}
"""Width of a block, as in common models, so that a GPU is busy."""
QUANTIZED_WIDTH = {"cpu": 1024, "cuda": 4096}
"""Width of a quantized block; quantizing each weight takes a CPU seconds."""
PASS_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Bytes of weights per pass: more than the caches hold, as with models."""
PIECE_SECONDS = 0.15
"""Most seconds per figure, unless a single run takes longer."""
REPEATS = 15
HEAD = 64
PAST = 256
"""Tokens in the KV cache before a decode step."""
SMALL = 64
"""Width of a block whose compute time is negligible against its call overhead."""

MakeLayer = Callable[[int, int], Any]
"""(input width, output width) → a linear layer."""


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


def pass_through(
    blocks: Sequence[DecoderBlock], rows: int, tokens: int, dtype: torch.dtype, device: str
) -> Callable[[], None]:
    """Return a function that passes one input through all blocks."""
    width, before = blocks[0].width, PAST if tokens == 1 else 0
    x = torch.randn(rows, tokens, width, device=device).to(dtype)
    past = torch.randn(rows, max(1, width // HEAD // 4), before, HEAD, device=device).to(dtype)
    turn = torch.randn(tokens, HEAD, device=device).to(dtype)

    def run() -> None:
        for block in blocks:
            block(x, past, turn)

    return run


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Return the median seconds of a few runs; if the first run takes long, its own."""
    first = _timed(run, device)  # warm-up: it selects kernels
    if first > 2 * PIECE_SECONDS:
        return first
    times: list[float] = []
    end = time.perf_counter() + PIECE_SECONDS
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
    """Return [tokens, seconds per parameter] of blocks for each of SHAPES. Quantized blocks compute
    in `companion`."""
    kind = device.partition(":")[0]
    width = (WIDTH if precision in DTYPES else QUANTIZED_WIDTH)[kind]
    dtype = DTYPES.get(precision, DTYPES[companion])
    first = DecoderBlock(width, functools.partial(_layer, precision, device)).to(device)
    for norm in first.norms:
        norm.to(dtype)
    held = sum(weight.nbytes for weight in first.parameters())
    # Copies of the first: quantizing each block would take longer than all the rest.
    blocks = [first, *(copy.deepcopy(first) for _ in range(PASS_BYTES[kind] // held))]
    found = []
    for rows, tokens in SHAPES:
        # A long pass reads the weights once and uses them often, so one block suffices.
        some = blocks if tokens == 1 else blocks[:1]
        run = pass_through(some, rows, tokens, dtype, device)
        parameters = len(some) * first.parameters_in_layers
        found.append([rows * tokens, seconds_of(run, device) / parameters])
    return found


def quantizing(precision: str, device: str) -> float:
    """Return the parameters per second that are quantized to 8 or 4 bit when a model is loaded."""
    _layer(precision, device, SMALL, SMALL).to(device)  # load the library first
    width = 2048
    layer = _layer(precision, device, width, width)
    return width * width / _timed(lambda: layer.to(device), device)


def _layer(precision: str, device: str, taken: int, given: int) -> Any:
    # Random numbers are fastest on the device; weights to be quantized must be on the host.
    weight = torch.randn(given, taken, device=device) / taken**0.5
    if precision in DTYPES:
        layer: Any = nn.Linear(taken, given, bias=False, device="meta")
        layer.weight = nn.Parameter(weight.to(DTYPES[precision]), requires_grad=False)
        return layer
    from bitsandbytes.nn import modules as bnb

    layers: Any = bnb
    if precision == "int8":
        layer = layers.Linear8bitLt(taken, given, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = layers.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        return layer
    layer = layers.Linear4bit(taken, given, bias=False, quant_type="nf4")
    layer.weight = layers.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
    return layer


def call_seconds(device: str) -> float:
    """Return the call overhead in seconds of a linear layer and the operations around it."""
    block = DecoderBlock(SMALL, functools.partial(_layer, "fp32", device)).to(device)
    run = pass_through([block] * 8, 1, 1, torch.float32, device)
    return seconds_of(run, device) / (8 * DecoderBlock.LINEARS)


def preparing() -> float:
    """Return the pixel values per second of preprocessing frames: resizing and scaling."""
    frames = torch.randint(0, 255, (2, 3, 720, 1280), dtype=torch.uint8)

    def run() -> torch.Tensor:
        small = nn.functional.interpolate(
            frames.float(), (384, 384), mode="bicubic", antialias=True
        )
        return (small / 255 - 0.5) / 0.5

    return 2 * 3 * 384 * 384 / seconds_of(run, "cpu")


DISK_BYTES = 256 << 20
"""Most bytes that are written and read."""
DISK_SECONDS = 0.8
"""Most seconds of writing, and of reading, so that a slow disk is measured quickly."""
PIECE_BYTES = 16 << 20
PINNED_BYTES = 64 << 20
VIDEO_FRAMES = 48
VIDEO_SIZE = (720, 1280)


def disk(folder: Path) -> dict[str, float]:
    """Return the bytes per second that the disk of the store's folder writes and reads. Writes are
    synced; reads bypass the page cache."""
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
    """Return the bytes per second between pinned memory and the device, in both directions."""
    host = torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(PINNED_BYTES, dtype=torch.uint8, device=device)

    def rate(to: torch.Tensor, of: torch.Tensor) -> float:
        def copy() -> None:
            to.copy_(of, non_blocking=True)
            torch.cuda.synchronize()

        copy()  # warm-up
        return PINNED_BYTES / statistics.median(timeit.repeat(copy, number=1, repeat=5))

    return {"to_device": rate(there, host), "from_device": rate(host, there)}


def video_pixels() -> float:
    """Return the pixels per second of H.264 decoding on all cores."""
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
    """Write a video with moving detail under changing light, which both affect decoding."""
    import av

    from artifacts.containers import open_media

    height, width = VIDEO_SIZE
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (height // 8, width // 8 + VIDEO_FRAMES, 3), dtype=np.uint8)
    fine = np.kron(coarse, np.ones((8, 8, 1), np.uint8)) // 2
    fine += random.integers(0, 24, fine.shape, dtype=np.uint8)
    with open_media(path, "w") as container:
        # Nearly all videos of users are H.264.
        stream: Any = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for at in range(VIDEO_FRAMES):
            pixels = np.ascontiguousarray(fine[:, 4 * at : 4 * at + width]) + np.uint8(at)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def jpeg_pixels() -> float:
    """Return the pixels per second of JPEG decoding on one core."""
    from PIL import Image

    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (90, 160, 3), dtype=np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))).save(jpeg, "JPEG", quality=90)

    def decode() -> None:
        with Image.open(jpeg) as image:
            image.convert("RGB").load()

    return 720 * 1280 / statistics.median(timeit.repeat(decode, number=1, repeat=4))


QUANTIZED = ("nf4", "int8")
LIBRARIES = (
    "transformers.modeling_utils",
    "transformers.generation",
    "transformers.processing_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.image_processing_utils",
    "transformers.video_processing_utils",
    "torchvision.transforms.v2.functional",
)
"""Modules that a stage with half a model imports in addition to torch, whatever the model."""


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Run the benchmarks and send a note `machine`."""
    job = parse_job(MeasureJob, job_fields)
    found: dict[str, Any] = {"python_seconds": _since_start()}
    if job.device != "cpu":
        started, dtype = time.perf_counter(), str(DTYPES[job.companion]).removeprefix("torch.")
        taken = context_bytes(job.device, dtype)
        found |= {"context_seconds": time.perf_counter() - started, "context_bytes": taken}
    end = time.perf_counter() + job.seconds
    figures: dict[str, Any] = {}
    missing: dict[str, str] = {}
    with torch.inference_mode():
        found |= {"call_seconds": call_seconds(job.device), "prepare": preparing()}
        found |= disk(Path(job.folder))
        if job.device != "cpu":
            found |= copies(job.device)
        for name, benchmark in _benchmarks(job.device, job.companion).items():
            if time.perf_counter() > end:
                missing[name] = "there was no time left, so measure again when it is quiet"
                continue
            try:
                figures[name] = benchmark()
            except Exception as error:  # a library without a kernel may raise any error
                missing[name] = f"{type(error).__name__}: {first_line(error)}"[:200]
    for kind in ("passes", "quantize"):
        named = {n: value for n, value in figures.items() if n.startswith(f"{kind} ")}
        found[kind] = {name.partition(" ")[2]: value for name, value in named.items()}
    found |= {name: value for name, value in figures.items() if " " not in name}
    report.note(machine={**found, "missing": missing})


def _benchmarks(device: str, companion: str) -> dict[str, Callable[[], Any]]:
    """Return benchmarks that may be missing, the most used first. Those of a precision are named
    after it behind a blank."""
    benchmarks: dict[str, Callable[[], Any]] = {}
    benchmarks |= {"video_pixels": video_pixels, "picture_pixels": jpeg_pixels}
    for precision in ("fp32", "bf16"):
        benchmarks[f"passes {precision}"] = functools.partial(passes, precision, device, companion)
    benchmarks["library_seconds"] = _imports
    for precision in (*QUANTIZED, "fp16"):
        if precision in QUANTIZED:
            benchmarks[f"quantize {precision}"] = functools.partial(quantizing, precision, device)
        benchmarks[f"passes {precision}"] = functools.partial(passes, precision, device, companion)
    return benchmarks


def _since_start() -> float:
    """Return the age of this process in seconds: the time to start Python and import torch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _imports() -> float:
    started = time.perf_counter()
    for name in LIBRARIES:
        importlib.import_module(name)
    return time.perf_counter() - started
