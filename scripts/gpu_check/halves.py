"""Halves of a model on the device in every way in which they can be held, each against the plain
one."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import unheard
from penstock_demo import CHECKPOINT
from scripts.gpu_check.rows import DEMO, Row, Setting, mib, row, skipped

NEW_TOKENS = 12
CALLS = 5
"""Times that a streamed half is crossed together."""
SIDE, FRAMES = 64, 4
GRID, GRID_FRAMES = (28, 36), 8
"""Patches of a frame as high and as wide as published models get them, and frames of such a
clip."""
CLOSE = 1e-2
"""How far features in 32 bit may be from those of a CPU: a convolution may compute in TF32."""
REPEATS = 5


class Bench:
    """One model, one clip of noise, and what the plain halves make of it on the device."""

    def __init__(
        self, model: str, device: str, dtype: str = "float32", *, large: bool = False
    ) -> None:
        """Open the model. `large`: the clip has GRID patches a frame instead of a small picture, if
        the processor has patches."""
        from transformers.utils import logging

        from stages.models import resolve_model
        from stages.models.processors.loading import load_processor
        from stages.models.processors.prepare import prepare

        logging.set_verbosity_error()
        self.device, self.dtype = device, dtype
        self.model = str(resolve_model(CHECKPOINT if model == DEMO else Path(model), None))
        self.processor = load_processor(Path(self.model), False)
        clip = large_noise(self.processor) if large else noise()
        self.prepared = prepare(self.processor, clip, "x")

    def half(self, part: Any, **how: Any) -> Any:
        """A half of it, on the device unless `how` says otherwise."""
        from stages.models.loading import ModelJob

        given = {"device": self.device, "dtype": self.dtype, **how}
        return ModelJob(model=self.model, **given).load(part)

    def encode(self, half: Any) -> Any:
        from stages.models import encode

        return encode(half, self.prepared.inputs)

    @cached_property
    def features(self) -> Any:
        return self.encode(self.half("vision"))

    def tokens(self, half: Any, **options: Any) -> Any:
        """What that language half says of the plain features."""
        from stages.models import generate

        given = {"do_sample": False, "max_new_tokens": NEW_TOKENS, **options}
        return generate(half, self.inputs(half), self.features, **given).cpu()

    def inputs(self, half: Any, prompt: str = "x") -> Any:
        """The clip and a prompt, as that language half is given them."""
        from stages.models.processors.prepare import drop_end_token, rebuild

        return drop_end_token(half, rebuild(self.processor, [self.prepared], [prompt]))


def noise(frames: int = FRAMES, height: int = SIDE, width: int = SIDE) -> Any:
    """A clip that no two frames of are alike."""
    from stages.models.processors.loading import Clip

    shape = (frames, height, width, 3)
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    times = tuple(float(at) for at in range(frames))
    return Clip(frames=pixels, times=times, seconds=float(frames), kind="video")


def large_noise(processor: Any) -> Any:
    """Return a clip of GRID patches per frame, and have the processor keep its size."""
    part = getattr(processor, "video_processor", None) or processor.image_processor
    if not isinstance(patch := getattr(part, "patch_size", None), int):
        return noise()
    height, width = (patch * patches for patches in GRID)
    size = dict(part.size)
    if size.get("longest_edge"):
        size["longest_edge"] = max(size["longest_edge"], GRID_FRAMES * height * width)
        part.size = type(part.size)(**size)
    return noise(GRID_FRAMES, height, width)


def numbers(features: Mapping[str, Any]) -> Any:
    """All features as one tensor in 32 bit on the CPU."""
    import torch

    found = []
    for record in features.values():
        pooled = record.pooler_output
        extra_modules = [pooled] if isinstance(pooled, torch.Tensor) else list(pooled)
        found += [piece.reshape(-1, piece.shape[-1]).float().cpu() for piece in extra_modules]
    return torch.cat(found)


def fp32(setting: Setting) -> Iterator[Row]:
    """Features of the GPU beside those of the CPU."""
    bench = Bench(DEMO, setting.device)
    here = numbers(bench.encode(bench.half("vision", device="cpu")))
    apart = float((numbers(bench.features) - here).abs().max())
    largest = float(here.abs().max())
    found = f"{apart:.1e} apart, the largest being {largest:.1f}"
    yield row(
        "features in fp32, GPU beside CPU", f"less than {CLOSE:g} apart", found, apart < CLOSE
    )


def streamed(setting: Setting) -> Iterator[Row]:
    """A tower whose layers come one by one, crossed several times."""
    import torch

    from stages.models.loading import facts
    from stages.models.streaming.load import run_calls

    bench = Bench(DEMO, setting.device)
    plain = numbers(bench.features)
    half = bench.half("vision", offload=True)
    made = run_calls(half, [lambda: bench.encode(half)] * CALLS)
    same = sum(torch.equal(numbers(each), plain) for each in made)
    found = f"{same} of {CALLS} the same"
    yield row(
        "features of a streamed encoder", f"{CALLS} of {CALLS} the same", found, same == CALLS
    )
    fetched = int(facts(half)["bytes_fetched_a_pass"])
    yield row("bytes that a streamed encoder fetches", "some", f"{fetched:,}", fetched > 0)


def same_tokens(name: str, how: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """A check: the language half held so, or told so, says what the plain one says."""

    def check(setting: Setting) -> Iterator[Row]:
        import torch

        bench = Bench(DEMO, setting.device)
        plain = bench.tokens(bench.half("language"))
        found = bench.tokens(bench.half("language", **how), **options)
        good = torch.equal(found, plain)
        words = "the same" if good else f"{found.tolist()} for {plain.tolist()}"
        yield row(f"tokens, {name}", "the same", words, good)

    return check


def runs(name: str, how: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """A check: the language half held so, or told so, says anything at all."""

    def check(setting: Setting) -> Iterator[Row]:
        from stages.models.loading import facts

        bench = Bench(DEMO, setting.device, "bfloat16")
        half = bench.half("language", **how)
        made = bench.tokens(half, **options).shape[-1]
        quantized = sum(facts(half)["quantized_modules"].values())
        if not how:
            yield row(name, "tokens", f"{made} with the prompt's", made > 0)
            return
        found = f"{made} with the prompt's, {quantized} quantized layers"
        yield row(name, "tokens, of quantized layers", found, made > 0 and quantized > 0)

    return check


layer_by_layer = same_tokens("language half layer by layer", {"offload": True}, {})
kv_offloaded = same_tokens("KV cache offloaded", {}, {"cache_implementation": "offloaded"})
kv_quantized = runs(
    "KV cache quantized",
    {},
    {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
)
int8 = runs("language half in int8", {"precision": "int8"}, {})
nf4 = runs("language half in nf4", {"precision": "nf4"}, {})


def timed(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of a call, the median of some after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


COPIED_BYTES = 128 << 20


def copy_rate(setting: Setting, pinned: bool) -> float:
    """Return the bytes per second that are copied to the card from memory of the host."""
    import torch

    host = torch.ones(COPIED_BYTES, dtype=torch.uint8)
    host = host.pin_memory() if pinned else host
    there = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=setting.device)

    def copy() -> None:
        there.copy_(host, non_blocking=pinned)
        torch.cuda.synchronize()

    return COPIED_BYTES / timed(copy)


CLOSE = 5e-2
"""How far features in 16 bit may be from those of torch, in parts of the largest number."""
GRAPH_BYTES = 1 << 30
REPEATS = 20


class GraphBench(Bench):
    """The demo model with graphs in 16 bit, which a processor makes."""

    def __init__(self, device: str, folder: Path) -> None:
        from artifacts.keys import hash_file
        from stages.export import GraphJob
        from stages.export.graphs.run import run
        from stages.process.job import job_fields

        super().__init__(DEMO, device, "float16")
        weights = {p.name: hash_file(p) for p in Path(self.model).glob("*.safetensors")}
        job = GraphJob(
            model=self.model,
            recipe={},
            folder=str(folder / "model"),
            kind="onnx-fp16",
            weights={"vision": weights},
            extra_modules={},
        )
        run(job_fields(job), unheard())
        self.engines = folder / "engines"
        self.with_graphs = job.folder

    def by_graphs(self, backend: str) -> Any:
        """The vision half whose towers graphs compute."""
        from stages.models.loading import ModelJob

        messages: dict[str, Any] = {"device": self.device, "graph_bytes": GRAPH_BYTES}
        job = ModelJob(
            model=self.with_graphs, backend=backend, engines=str(self.engines), **messages
        )
        return job.load("vision")

    def seconds(self, half: Any) -> float:
        """The shortest of some passes."""
        import torch

        taken = []
        for _ in range(REPEATS):
            torch.cuda.synchronize(self.device)
            began = time.perf_counter()
            self.encode(half)
            torch.cuda.synchronize(self.device)
            taken.append(time.perf_counter() - began)
        return min(taken)


def by_cuda(setting: Setting) -> Iterator[Row]:
    """Features by CUDA's provider, their speed, and what it takes of the card."""
    with tempfile.TemporaryDirectory() as folder:
        bench = GraphBench(setting.device, Path(folder))
        yield from _beside_torch(bench, "onnx")


def by_tensorrt(setting: Setting) -> Iterator[Row]:
    """The same by TensorRT's, and how much sooner it starts when it finds what it made."""
    from flows.checkpoint.graphs import missing_libraries, tensorrt_version

    if missing := missing_libraries():
        yield skipped("graphs by tensorrt", f"{' and '.join(missing)} cannot be opened")
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = GraphBench(setting.device, Path(folder))
        taken = []
        for _ in range(2):
            began = time.perf_counter()
            bench.encode(bench.by_graphs("tensorrt"))
            taken.append(time.perf_counter() - began)
        found = f"{taken[0]:.1f} s, then {taken[1]:.1f} s, version {tensorrt_version()}"
        sooner = taken[1] < taken[0] / 2
        yield row("start of tensorrt", "half as long the second time", found, sooner)
        yield from _beside_torch(bench, "tensorrt")


def _beside_torch(bench: GraphBench, backend: str) -> Iterator[Row]:
    import torch

    from stages.process.device import device_used_bytes

    expected, plain = numbers(bench.features), bench.half("vision")
    before = device_used_bytes(bench.device)
    half = bench.by_graphs(backend)
    apart = float((numbers(bench.encode(half)) - expected).abs().max() / expected.abs().max())
    words = f"less than {CLOSE:g} apart"
    yield row(f"features by {backend} beside torch", words, f"{apart:.1e} apart", apart < CLOSE)
    used = device_used_bytes(bench.device) - before
    limit = f"at most {mib(GRAPH_BYTES)}"
    yield row(f"taken by {backend}", limit, mib(used), 0 <= used <= GRAPH_BYTES)
    ratio = bench.seconds(plain) / bench.seconds(half)
    yield row(f"speed of {backend} beside torch in fp16", "reported", f"x {ratio:.2f}", ratio > 0)
    torch.cuda.empty_cache()
