"""Cards written by hand, from published dimensions: LLaVA-1.5-7B as its paper has it."""

from pathlib import Path
from typing import Any

from artifacts.frame_fit import FrameFit
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import resolve_settings
from flows.core.machine.budget import Budget
from flows.core.options.commands import CaptionConfig
from flows.core.plan.choose import PlanRequest
from flows.core.plan.workloads import Workload
from stages.models.footprint import BatchCost
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile, PartProfile, SamplingProfile

GIB = 1 << 30
WIDTH, INSIDE, LAYERS, VOCABULARY = 4096, 11008, 32, 32064
LAYER = 4 * WIDTH**2 + 3 * WIDTH * INSIDE + 2 * WIDTH
LANGUAGE = LAYERS * LAYER + 2 * VOCABULARY * WIDTH + WIDTH
LINEAR = LAYERS * (LAYER - 2 * WIDTH)
ROWS = LAYERS * (5 * WIDTH + 2 * INSIDE)
KV_PER_TOKEN = 2 * LAYERS * WIDTH * 2
"""Bytes in 16 bit."""
A_TOKEN = 100_000
"""Bytes that reading a token is said to take beside the KV cache."""
A_STEP = 2_000_000
"""And one more token of a row."""
SEES = 303_507_456 + 20_979_712
"""CLIP ViT-L/14 of 336 pixels, and the projector."""
TOKENS = 576
NUMBERS = 3 * 336 * 336
AN_IMAGE = 50_000_000
"""Bytes that encoding an image is said to take."""
WAITS = 3_000_000
"""Of them, those that it holds when a layer begins."""
A_SEEING_LAYER = 12_596_224


def decoding(rows: int, tokens: int) -> BatchCost:
    kept = rows * tokens * KV_PER_TOKEN
    return BatchCost(
        kind="image",
        rows=rows,
        units=tokens,
        peak_bytes=kept + rows * tokens * A_TOKEN,
        peak_bytes_32=2 * (kept + rows * tokens * A_TOKEN),
        step_bytes=kept + rows * A_STEP,
        mlp_bytes=rows * tokens * A_TOKEN // 2,
        kept_bytes=kept,
        flops=2 * LINEAR * rows * tokens,
        step_flops=2 * LANGUAGE * rows,
    )


def encoding(rows: int) -> BatchCost:
    return BatchCost(
        kind="image",
        rows=rows,
        units=NUMBERS,
        peak_bytes=rows * AN_IMAGE,
        peak_bytes_32=2 * rows * AN_IMAGE,
        kept_bytes=rows * TOKENS * WIDTH * 2,
        waiting_bytes=rows * WAITS,
        waiting_bytes_32=2 * rows * WAITS,
        flops=rows * 350 * 10**9,
    )


PROFILE = ModelProfile(
    folder="llava",
    class_name="LlavaForConditionalGeneration",
    model_type="llava",
    modalities=("image",),
    dtype="float16",
    parts={
        "vision": PartProfile(
            shards=("a.safetensors",),
            tensors=(),
            parameters=SEES,
            stored_bytes=2 * SEES,
            linear_modules=146,
            linear_parameters=302_000_000,
            linear_rows=200_000,
            largest_linear=WIDTH * WIDTH,
            widest_linear=WIDTH,
            layers=24,
            layer_parameters=A_SEEING_LAYER,
            batch_costs=(encoding(1), encoding(2)),
        ),
        "language": PartProfile(
            shards=("b.safetensors",),
            tensors=(),
            parameters=LANGUAGE,
            stored_bytes=2 * LANGUAGE,
            linear_modules=7 * LAYERS,
            linear_parameters=LINEAR,
            linear_rows=ROWS,
            largest_linear=WIDTH * INSIDE,
            widest_linear=INSIDE,
            layers=LAYERS,
            layer_parameters=LAYER,
            batch_costs=(decoding(1, 512), decoding(2, 512), decoding(1, 2048)),
        ),
    },
    sampling=SamplingProfile(),
    fit_video=FrameFit(long_edges=((1.0, 336),)),
    fit_image=FrameFit(long_edges=((1.0, 336),)),
    feature_width=WIDTH,
    image_tokens=TOKENS,
    frame_tokens=TOKENS,
    image_pixel_bytes=4 * NUMBERS,
    frame_pixel_bytes=4 * NUMBERS,
)


def model(profile: ModelProfile = PROFILE, device: str = "cuda:0", **options: str) -> Model:
    """A card with the settings that these options give it."""
    return Model(
        name="llava",
        checkpoint=Checkpoint(name="llava", folder=Path("llava")),
        profile=profile,
        digests={"vision": "v", "language": "l"},
        settings=resolve_settings(CaptionConfig(sources=("a",), **options), profile, device),  # type: ignore[arg-type]
    )


def images(count: int = 8, tokens: int = 1000) -> Workload:
    return Workload(
        kind="image",
        chunks=count,
        frames=1,
        stored=(336, 336),
        shown=(1000, 1000),
        units=NUMBERS,
        tokens=tokens,
        text_tokens=tokens - TOKENS,
        feature_bytes=2 * TOKENS * WIDTH,
    )


def question(*workloads: Workload, device: str = "cuda:0", **options: Any) -> PlanRequest:
    return PlanRequest(
        model=model(PROFILE, device, **options),
        config=CaptionConfig(sources=("a",), **{"max_new_tokens": 128, **options}),
        device=device,
        workloads=workloads or (images(),),
    )


def budget(gib: float, device: str = "cuda:0", host: float = 64) -> Budget:
    allowed = int(gib * GIB)
    return Budget(
        device=device,
        bytes=allowed,
        given=True,
        free_bytes=allowed,
        total_bytes=24 * GIB,
        host_bytes=int(host * GIB),
    )
