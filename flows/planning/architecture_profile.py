"""Builds a model profile from a checkpoint's dimensions, so that a model without a supported class
can be planned. Computes its costs from formulas.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from artifacts.schema import FrameFit, Part
from flows.checkpoint.frame_tokens import PROBED_EDGE
from flows.checkpoint.models import Model
from flows.checkpoint.precision import resolve_settings
from flows.options.commands import RunOptions
from flows.planning.architecture import Architecture
from flows.planning.layers import (
    SCORES_BYTES,
    attention_bytes,
    mlp_bytes,
    pass_bytes,
    pass_flops,
    step_flops,
)
from flows.planning.transformer import Transformer
from flows.planning.workloads import PIXEL_BYTES
from stages.models.footprint import ITEM_BYTES, BatchCost
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile, PartProfile, SamplingProfile

ROWS = (1, 8)
"""Numbers of rows in the batch costs; costs are linear in between."""
FRAME_COUNTS = (1, 8)
PROMPTS = (64, 256, 1024, 4096, 16384)
"""Prompt lengths in the batch costs, in tokens. Unfused attention grows with their square."""


def profile_of(
    architecture: Architecture, folder: Path, *, fused: bool = True, why: str = ""
) -> ModelProfile:
    """Return the profile of a checkpoint from its architecture. Without `fused`, attention stores
    its scores."""
    vision, text = architecture.vision, architecture.text
    edge = _edge(vision)
    pixels = 3 * edge * edge * PIXEL_BYTES if vision else 0
    tokens = vision.handed_over(edge) if vision else 0
    attention = "sdpa" if fused else "eager"
    fit = FrameFit(long_edges=((1.0, edge),) if vision and vision.image_size else ())
    written = architecture.writes and text is not None
    width = text.width if written and text else vision.width if vision else 1
    return ModelProfile(
        folder=str(folder),
        class_name="",
        model_type="",
        modalities=("image",),
        dtype=architecture.dtype,
        route="protocol" if written else "dual",
        why=why,
        by_dimensions=True,
        parts={
            "vision": _half(
                [
                    transformer
                    for transformer in architecture.transformers
                    if transformer.kind != "text"
                ],
                architecture.vision_parameters,
                attention,
                encoder_costs(architecture, fused=fused),
            ),
            "language": _half(
                [text] if written and text else [],
                architecture.text_parameters if written else 0,
                attention,
                decoder_costs(architecture, fused=fused) if written else (),
            ),
        },
        sampling=SamplingProfile(),
        fit_video=fit,
        fit_image=fit,
        feature_width=width,
        image_tokens=tokens,
        frame_tokens=tokens,
        image_pixel_bytes=pixels,
        frame_pixel_bytes=pixels,
    )


def _edge(vision: Transformer | None) -> int:
    """Return the side length of an encoded image, in pixels."""
    return vision.image_size or PROBED_EDGE if vision else PROBED_EDGE


def _half(
    transformers: Sequence[Transformer],
    parameters: int,
    attention: str,
    batch_costs: tuple[BatchCost, ...],
) -> PartProfile:
    matrices = [
        matrix
        for transformer in transformers
        for matrix in transformer.matrices * transformer.layers
    ]
    largest = max(
        transformers,
        key=lambda transformer: transformer.layers * transformer.layer_parameters,
        default=None,
    )
    return PartProfile(
        shards=(),
        tensors=(),
        parameters=parameters,
        stored_bytes=0,
        linear_modules=len(matrices),
        linear_parameters=sum(rows * columns for rows, columns in matrices),
        linear_rows=sum(rows for rows, _ in matrices),
        largest_linear=max((rows * columns for rows, columns in matrices), default=0),
        widest_linear=max((rows for rows, _ in matrices), default=0),
        layers=largest.layers if largest else 0,
        layer_parameters=largest.layer_parameters if largest else 0,
        stack_parameters=largest.stack_parameters if largest else 0,
        attention=attention,
        batch_costs=batch_costs,
    )


def encoder_costs(architecture: Architecture, *, fused: bool) -> tuple[BatchCost, ...]:
    """Return the batch costs of encoding. A vision encoder that encodes images one by one processes
    each frame as a row."""
    transformer, text = architecture.vision, architecture.text
    if transformer is None:
        return ()
    each, edge = ITEM_BYTES, _edge(transformer)
    width = text.width if text and architecture.writes else transformer.width
    found = []
    for rows, frames in product(ROWS, FRAME_COUNTS):
        images = rows * frames
        units = 3 * edge * edge * frames
        tokens = transformer.tokens_of(edge)
        kept = images * transformer.handed_over(edge) * width * each
        computed = pass_bytes(transformer, images, tokens, each, fused=fused)
        found.append(
            BatchCost(
                kind="image",
                rows=rows,
                units=units,
                # Pixels from the processor, and a copy in the computing precision. Features are
                # created after the layer's activations are freed.
                peak_bytes=rows * units * (PIXEL_BYTES + each) + max(computed, 2 * kept),
                kept_bytes=kept,
                # The residual stream between layers, and the input pixels.
                waiting_bytes=(images * tokens * transformer.width + rows * units) * each,
                flops=pass_flops(transformer, images, tokens),
            )
        )
    return tuple(found)


def decoder_costs(architecture: Architecture, *, fused: bool) -> tuple[BatchCost, ...]:
    """Return the batch costs of prefill, with logits of the last token only."""
    transformer = architecture.text
    assert transformer is not None
    each = ITEM_BYTES
    mlp_extra = max(0, mlp_bytes(transformer, each) - attention_bytes(transformer, each))
    found = []
    for rows, tokens in product(ROWS, PROMPTS):
        cache = 2 * transformer.layers * transformer.attention.key_width * each * rows * tokens
        computed = pass_bytes(transformer, rows, tokens, each, fused=fused)
        # The logits of the last token of every row, as computed and in 32 bit.
        logits = rows * architecture.vocabulary * (each + SCORES_BYTES)
        found.append(
            BatchCost(
                kind="image",
                rows=rows,
                units=tokens,
                peak_bytes=cache + max(computed, logits),
                kept_bytes=cache,
                # With chunked prefill, attention has the peak.
                mlp_bytes=rows * tokens * mlp_extra,
                flops=pass_flops(transformer, rows, tokens),
                step_flops=step_flops(transformer, architecture.vocabulary, rows),
            )
        )
    return tuple(found)


def model_by_dimensions(
    checkpoint: Checkpoint,
    architecture: Architecture,
    config: RunOptions,
    device: str,
    *,
    fused: bool = True,
    why: str = "",
) -> Model:
    """Return a model that can be planned but not run. `why`: the reason. Raises UsageError for
    a precision that the model does not support."""
    profile = profile_of(architecture, checkpoint.folder, fused=fused, why=why)
    named: dict[Part, str] = {} if profile.language.parameters else {"language": "native"}
    return Model(
        name=checkpoint.name,
        checkpoint=checkpoint,
        profile=profile,
        digests=dict.fromkeys(profile.parts, ""),
        settings=resolve_settings(config, profile, device, overrides=named),
    )
