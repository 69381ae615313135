"""Halves of a model on the device in every way in which they can be held, each against the plain
one."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from penstock_demo import CHECKPOINT
from scripts.prove.gpu_check.rows import DEMO, Row, Setting, row

NEW_TOKENS = 12
CALLS = 5
"""Times that a streamed half is crossed together."""
SIDE, FRAMES = 64, 4
GRID, GRID_FRAMES = (28, 36), 8
"""Patches of a frame as high and as wide as published models get them, and frames of such a
clip."""
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
    from stages.models.processors.blank_clips import Clip

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


def streamed(setting: Setting) -> Iterator[Row]:
    """A tower whose layers come one by one, crossed several times."""
    import torch

    from stages.models.halves.generate import offloaded_bytes
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
    fetched = offloaded_bytes(half)
    yield row("bytes that a streamed encoder fetches", "some", f"{fetched:,}", fetched > 0)


def layer_by_layer(setting: Setting) -> Iterator[Row]:
    """Whether a language half whose layers are copied one by one says what the plain one says."""
    import torch

    bench = Bench(DEMO, setting.device)
    plain = bench.tokens(bench.half("language"))
    found = bench.tokens(bench.half("language", offload=True))
    good = torch.equal(found, plain)
    words = "the same" if good else f"{found.tolist()} for {plain.tolist()}"
    yield row("tokens, language half layer by layer", "the same", words, good)


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
