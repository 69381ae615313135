"""Describes how the model's context limits the frames of a chunk."""

from artifacts.schema import Sampling
from flows.checkpoint.context import frames_of_any_size
from flows.checkpoint.models import Model
from flows.checkpoint.requested_frames import full_chunk, requested_sampling
from flows.options.commands import RunOptions


def context_note(model: Model, config: RunOptions) -> str:
    """Return how many frames of a chunk fit the context if not all do, or that the context is
    unknown; else an empty string."""
    profile = model.profile
    if profile.route in ("dual", "served") or profile.is_encoder_decoder:
        return ""
    if not profile.context_tokens:
        return f"{model.name} does not state its context length, so it limits no frames"
    sampling, max_frames = requested_sampling(profile, config), frames_of_any_size(profile)
    requested = full_chunk(sampling)
    if not max_frames or requested <= max_frames:
        return ""
    context = f"its context of {profile.context_tokens:,} tokens"
    fit = "frame of a chunk fits" if max_frames == 1 else "frames of a chunk fit"
    remedy = _remedy(sampling, max_frames)
    return f"{model.name}: {max_frames:,} {fit} {context}, of {requested:,}; {remedy}"


def _remedy(sampling: Sampling, max_frames: int) -> str:
    """Return the option that shows more frames."""
    if sampling.fps and sampling.min_frames <= max_frames:
        return f"--chunk {max_frames / sampling.fps:g} shows them all"
    return "shorter chunks (--chunk) show more"
