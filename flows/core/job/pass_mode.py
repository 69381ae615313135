"""Decides how a run's inputs pass the vision half: in a fixed number of rows or in batches
(stages/models/encoding/__init__.py).

A half that was found to compute one input twice with different results runs in batches.
"""

from dataclasses import replace

from artifacts.records.store import Store
from flows.core.checkpoint.models import Model
from flows.core.options.commands import RunOptions
from stages.models.footprint import FittedCosts, Size
from stages.models.graphs.sessions import TENSORRT
from stages.process.checks import PASSES, Verdicts

CPU_TOKENS, GPU_TOKENS = 256, 1024
"""Encoder tokens from which an input passes alone. On a CPU eight inputs of 257 tokens
(ViT-L/14) take as long together as one by one, eight of 50 (ViT-B/32) 0.65 to 0.75 times as long.
On a GPU the limit is an assumption: none was measured."""


def with_pass_mode(config: RunOptions, model: Model, store: Store, device: str) -> Model:
    """Return the model with how its inputs pass the vision half."""
    model = with_planned_pass_mode(config, model, device)
    if model.in_batches:
        return model
    verdicts = Verdicts(store, device)
    halves = [model.half_digest("vision", settings) for settings in model.settings["vision"]]
    alone = [v for half in halves for v in verdicts.of(PASSES, {"half": half, "rows": 1})]
    if all(verdict.outcome["holds"] for verdict in alone):
        return model
    note = "inputs are encoded in batches: the vision half computes one input twice differently"
    return replace(model, in_batches=True, notes=(*model.notes, note))


def with_planned_pass_mode(config: RunOptions, model: Model, device: str) -> Model:
    """Return the model with how its inputs pass the vision half unless a check has shown
    otherwise."""
    if config.groups.passes.in_batches or not _has_pass_modes(model):
        return model
    return replace(model, in_batches=False, images_per_row=_images_per_row(model, device))


def answering(config: RunOptions, model: Model) -> list[Model]:
    """Return the model in the forms whose stored records answer: of a server also that of runs."""
    others = config.groups.passes.in_batches and _has_pass_modes(model)
    return [model, replace(model, in_batches=False)] if others else [model]


def _has_pass_modes(model: Model) -> bool:
    """Return whether its inputs can pass the vision half apart from their batch. Without a place to
    split, it stores pixels; a TensorRT engine computes batches; a tagger has passes of its own."""
    if model.served or model.tagger or model.profile.route == "joint":
        return False
    graph = model.best("vision").graph
    return not (graph and graph.backend == TENSORRT)


def _images_per_row(model: Model, device: str) -> int:
    """Return the largest number of images of an input that shares a pass with others. It is 0 for
    an encoder of images of any size, whose inputs seldom have the same shape."""
    profile, half = model.profile, model.profile.vision
    seen = {size.pixel_bytes for size in (*profile.image_sizes, *profile.frame_sizes)}
    if (
        profile.least_pixels
        or not half.batch_costs
        or seen - {profile.image_pixel_bytes, profile.frame_pixel_bytes}
    ):
        return 0
    size = Size("image", 1, profile.image_pixel_bytes // 4)
    flops = FittedCosts(half.batch_costs).figure(size, lambda cost: cost.flops)
    tokens = flops / (2 * max(1, half.linear_parameters))
    limit = CPU_TOKENS if device == "cpu" else GPU_TOKENS
    return int(limit // max(1, tokens))
