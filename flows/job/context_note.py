"""Describes how the model's context limits the frames of a chunk. Reads only a tokenizer."""

import math
from functools import lru_cache
from pathlib import Path

from artifacts.plurals import counted
from artifacts.schema import MediaKind, Sampling
from flows.checkpoint.context import frame_room, frames_of_any_size, frames_of_size
from flows.checkpoint.frame_tokens import chunk_frame_tokens, encoder_frames
from flows.checkpoint.models import Model
from flows.checkpoint.prompt_tokens import PromptTokens, max_prompt_tokens
from flows.checkpoint.requested_frames import full_chunk, requested_sampling
from flows.ledger.tasks import Task
from flows.options.commands import RunOptions
from stages.decode.generation import SamplingParams


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
    if config.as_published is False:
        return (
            f"{model.name}: {counted(requested, 'frame')} of a chunk exceed {context}, in which "
            f"{max_frames} fit; as stock all are shown"
        )
    fit = "frame of a chunk fits" if max_frames == 1 else "frames of a chunk fit"
    remedy = _remedy(sampling, max_frames)
    return f"{model.name}: {max_frames:,} {fit} {context}, of {requested:,}; {remedy}"


def beyond_context(model: Model, config: RunOptions, task: Task, answer: int) -> str:
    """Return that a chunk's frames, alone or with prompt and answer, exceed the context of a model
    that runs as stock; else an empty string. `answer` is the answer's length in tokens."""
    profile = model.profile
    if config.as_published is not False or not frame_room(profile):
        return ""
    kind, shown, *size = task.shape
    frames = counted(shown, "frame") if kind == "video" else "picture"
    context = f"the model's context of {profile.context_tokens:,} tokens"
    if kind == "video":
        max_frames = frames_of_size(profile, (size[0], size[1]))
        if max_frames is not None and shown > max_frames:
            return f"its {frames} exceed {context}, in which {max_frames:,} fit"
    image_tokens, prompt_tokens = _tokens(model, config, task, answer)
    if image_tokens + prompt_tokens + answer <= profile.context_tokens:
        return ""
    return (
        f"its {frames} ({image_tokens:,}), prompt ({prompt_tokens:,}) and answer ({answer:,}) "
        f"exceed {context}"
    )


def _tokens(model: Model, config: RunOptions, task: Task, answer: int) -> tuple[int, int]:
    """Return the tokens of a chunk's images and of its prompt. For a short prompt, the latter is an
    upper bound."""
    params = SamplingParams.of(config)
    profile = model.profile
    kind: MediaKind = "video" if task.medium.kind == "video" else "image"
    _, shown, *size = task.shape
    each, _ = chunk_frame_tokens(profile, kind, shown, (size[0], size[1]))
    around = profile.words_a_frame * shown if kind == "video" else 0
    image_tokens = math.ceil(each * encoder_frames(profile, kind, shown)) + around
    texts = (task.prompt, params.system, params.start_with)
    longest_prompt = sum(map(max_prompt_tokens, texts)) + profile.words_a_prompt
    if image_tokens + longest_prompt + answer <= profile.context_tokens:
        return image_tokens, longest_prompt
    count = _counter(model.folder).count
    return image_tokens, sum(count(text) for text in texts if text) + profile.words_a_prompt


@lru_cache(1)
def _counter(folder: Path) -> PromptTokens:
    """Return the tokenizer of a checkpoint."""
    return PromptTokens(folder)


def _remedy(sampling: Sampling, max_frames: int) -> str:
    """Return the option that shows more frames."""
    if sampling.fps and sampling.min_frames <= max_frames:
        return f"--chunk {max_frames / sampling.fps:g} shows them all"
    return "shorter chunks (--chunk) show more"
