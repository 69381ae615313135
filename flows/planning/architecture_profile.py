"""Builds a model profile from a checkpoint's dimensions, so that a model without a supported class
can be planned. Its compute costs are formulas of the dimensions.
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
    attention_bytes,
    logits_bytes,
    mlp_bytes,
    pass_bytes,
    pass_flops,
    step_flops,
)
from flows.planning.towers import Tower
from flows.planning.workloads import PIXEL_BYTES
from stages.models.footprint import ITEM_BYTES, BatchCost
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile, PartProfile, SamplingProfile

ROWS = (1, 8)
"""Rows of the batch costs; between them all is linear."""
FRAME_COUNTS = (1, 8)
PROMPTS = (64, 256, 1024, 4096, 16384)
"""Tokens of a prompt in the batch costs: attention that is not fused grows with their square."""


def profile_of(
    architecture: Architecture, folder: Path, *, fused: bool = True, why: str = ""
) -> ModelProfile:
    """Return the profile of a checkpoint of which only the architecture is known. Without `fused`,
    attention keeps its scores."""
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
                [tower for tower in architecture.towers if tower.kind != "text"],
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


def _edge(vision: Tower | None) -> int:
    """Return the pixels of the side of an image as it is seen."""
    return vision.image_size or PROBED_EDGE if vision else PROBED_EDGE


def _half(
    towers: Sequence[Tower], parameters: int, attention: str, batch_costs: tuple[BatchCost, ...]
) -> PartProfile:
    matrices = [matrix for tower in towers for matrix in tower.matrices * tower.layers]
    largest = max(towers, key=lambda tower: tower.layers * tower.layer_parameters, default=None)
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
        attention=attention,
        batch_costs=batch_costs,
    )


def encoder_costs(architecture: Architecture, *, fused: bool) -> tuple[BatchCost, ...]:
    """Return the batch costs of encoding. A frame is a row of its own to a tower that sees pictures
    one by one."""
    tower, text = architecture.vision, architecture.text
    if tower is None:
        return ()
    each, edge = ITEM_BYTES, _edge(tower)
    width = text.width if text and architecture.writes else tower.width
    found = []
    for rows, frames in product(ROWS, FRAME_COUNTS):
        pictures = rows * frames
        units = 3 * edge * edge * frames
        tokens = tower.tokens_of(edge)
        kept = pictures * tower.handed_over(edge) * width * each
        computed = pass_bytes(tower, pictures, tokens, each, fused=fused)
        found.append(
            BatchCost(
                kind="image",
                rows=rows,
                units=units,
                # Pixels as the processor gives them, and in what is computed in; features are
                # made when what a layer makes is gone.
                peak_bytes=rows * units * (PIXEL_BYTES + each) + max(computed, 2 * kept),
                kept_bytes=kept,
                # What goes on from layer to layer, beside the pixels that it was made of.
                waiting_bytes=(pictures * tokens * tower.width + rows * units) * each,
                flops=pass_flops(tower, pictures, tokens),
            )
        )
    return tuple(found)


def decoder_costs(architecture: Architecture, *, fused: bool) -> tuple[BatchCost, ...]:
    """Return the batch costs of reading prompts; logits only of the last token."""
    tower = architecture.text
    assert tower is not None
    each = ITEM_BYTES
    more_of_mlp = max(0, mlp_bytes(tower, each) - attention_bytes(tower, each))
    found = []
    for rows, tokens in product(ROWS, PROMPTS):
        cache = 2 * tower.layers * tower.attention.key_width * each * rows * tokens
        computed = pass_bytes(tower, rows, tokens, each, fused=fused)
        logits = logits_bytes(architecture.vocabulary, rows, each)
        found.append(
            BatchCost(
                kind="image",
                rows=rows,
                units=tokens,
                peak_bytes=cache + max(computed, logits),
                kept_bytes=cache,
                # Read in pieces, attention is what takes most.
                mlp_bytes=rows * tokens * more_of_mlp,
                flops=pass_flops(tower, rows, tokens),
                step_flops=step_flops(tower, architecture.vocabulary, rows),
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
    """Return a model that can be planned and not run; `why` says why not. Raises UsageError for a
    precision that it cannot be had in."""
    profile = profile_of(architecture, checkpoint.folder, fused=fused, why=why)
    named: dict[Part, str] = {} if profile.language.parameters else {"language": "native"}
    return Model(
        name=checkpoint.name,
        checkpoint=checkpoint,
        profile=profile,
        digests=dict.fromkeys(profile.parts, ""),
        settings=resolve_settings(config, profile, device, overrides=named),
    )
