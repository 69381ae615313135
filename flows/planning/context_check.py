"""Refuses frames and prompts that exceed the model's context before anything is encoded. Loads no
model.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from artifacts.errors import UsageError
from artifacts.words import counted
from flows.checkpoint.context import bound_by_size, frame_room, frames_of_any_size, frames_of_size
from flows.checkpoint.frame_tokens import encoder_frames, frame_size_tokens
from flows.checkpoint.models import Model
from flows.checkpoint.prompt_tokens import max_prompt_tokens
from flows.checkpoint.requested_frames import full_chunk, requested_sampling
from flows.job.context_note import context_note
from flows.job.prepare import Job
from flows.options.commands import RunOptions
from flows.options.text import EngineOptions
from flows.planning.answer_room import answer_room, beside_words, texts_of, words_of
from flows.planning.choose import PlanRequest, prompts_of
from flows.planning.fitting_words import what_fits
from flows.planning.sizes import UNKNOWN_SIZE, Estimate
from flows.planning.workloads import Workload
from stages.models.profile import ModelProfile

MARGIN = 0.9
"""Share of the pixels that would just fit that is proposed: processors round them to patches."""


def refuse_beyond_context(question: PlanRequest) -> None:
    """Refuse a frame, or a prompt and an answer of `--max-new-tokens`, for which the context has no
    room beside the frames of the longest chunk. As stock, explicitly asked for, nothing is refused.
    Raises UsageError."""
    model, config = question.model, question.config
    room = frame_room(model.profile)
    limited = any(stage.uses_token_limit for stage in question.stages)
    if not (room and limited) or config.as_published is False:
        return
    prompt = max(question.prompts, key=max_prompt_tokens, default="")
    for workload in question.workloads:
        if workload.kind == "video" and frames_of_size(model.profile, workload.stored) == 0:
            raise _no_frame(model, room, workload.stored)
        _refuse_words(model, config, workload, prompt)


def context_notes(job: Job, expected: Sequence[Estimate]) -> list[str]:
    """Return a line on the frames of which fewer are shown than there are, because of the context;
    or, as stock, of which more are: on the largest, of models whose frames are more tokens the
    larger they are. `expected` is an estimate for each medium."""
    pairs = zip(job.media, expected, strict=True)
    videos = [e for medium, e in pairs if medium.kind == "video" and e.chunks]
    longest = max((e.seconds for e in videos), default=0.0)
    if lost := _lost_note(job.model, job.config, longest):
        return [lost]
    prompt = max(prompts_of(job), key=max_prompt_tokens, default="")
    chunks = [(e.stored_frames, e.stored) for e in videos]
    return _size_notes(job.model, job.config, chunks, prompt)


def loses_frames(model: Model, config: RunOptions) -> bool:
    """Return whether the context does not hold a full chunk of frames of any size."""
    return bool(model.profile.context_tokens and context_note(model, config))


def _lost_note(model: Model, config: RunOptions, seconds: float) -> str:
    """Return the line on a full chunk, unless the longest video, of so many seconds, is a chunk all
    of whose frames fit."""
    if not loses_frames(model, config):
        return ""
    sampling, most = requested_sampling(model.profile, config), frames_of_any_size(model.profile)
    chunk = replace(sampling, chunk_seconds=min(sampling.chunk_seconds, seconds))
    return context_note(model, config) if full_chunk(chunk) > (most or 0) else ""


def standard_notes(model: Model, config: RunOptions) -> list[str]:
    """Return the same of a full chunk of a video in full HD."""
    frames = full_chunk(requested_sampling(model.profile, config))
    chunks = [(frames, model.fit("video").size(*UNKNOWN_SIZE))]
    return _size_notes(model, config, chunks, model.prompt_for(config, "video"))


def _size_notes(
    model: Model,
    config: RunOptions,
    chunks: Sequence[tuple[int, tuple[int, int]]],
    prompt: str,
) -> list[str]:
    """Return the line on chunks of so many frames, each of a height and width as stored. The prompt
    and the answer decide only which number of pixels is proposed."""
    profile = model.profile
    bound = bound_by_size(profile, full_chunk(requested_sampling(profile, config)))
    known = [(bound.of(size), count, size) for count, size in chunks] if bound else []
    cut = [(most, count, size) for most, count, size in known if most and most < count]
    if not cut:
        return []
    most, count, (high, wide) = min(cut)
    context = f"its context of {profile.context_tokens:,} tokens"
    if config.as_published is False:
        return [
            f"{model.name}: {count} frames of {wide}x{high} in a chunk exceed {context}, in which "
            f"{most} fit; as stock all are shown"
        ]
    hint = "shorter chunks (--chunk) show more"
    left = (
        profile.context_tokens
        - words_of(model, config, count, prompt)
        - EngineOptions.of(config).max_new_tokens
    )
    each = min(frame_room(profile), left) / encoder_frames(profile, "video", count)
    if pixels := _fitting_pixels(profile, (high, wide), each):
        hint = f"--max-pixels {pixels} shows them all"
    return [f"{model.name}: {most} frames of {wide}x{high} fit {context}, of {count}; {hint}"]


def _fitting_pixels(profile: ModelProfile, size: tuple[int, int], tokens: float) -> int:
    """Return to how many pixels frames of this height and width are to be kept, so that each is at
    most so many tokens with the words about it; 0 where nothing does."""
    each, _ = frame_size_tokens(profile, profile.fit_video, "video", size)
    share = MARGIN * (tokens - profile.words_a_frame) / each
    least = profile.least_pixels
    return int(share * math.prod(size)) // least * least if least and share > 0 else 0


def _no_frame(model: Model, room: int, size: tuple[int, int]) -> UsageError:
    profile = model.profile
    each = (
        math.ceil(frame_size_tokens(profile, profile.fit_video, "video", size)[0])
        + profile.words_a_frame
    )
    hint = "Choose a model with a longer context; --as-stock shows it all the same"
    if pixels := _fitting_pixels(profile, size, room):
        hint = f"Give --max-pixels {pixels}, or choose a model with a longer context"
    return UsageError(
        f"one frame is {each:,} tokens to {model.name}, and its context of "
        f"{profile.context_tokens:,} has room for {room:,} beside words",
        hint=hint,
    )


def _refuse_words(model: Model, config: RunOptions, workload: Workload, prompt: str) -> None:
    engine = EngineOptions.of(config)
    _, left = beside_words(model, workload)
    if left <= 0 and workload.kind == "image":  # it fails alone, and the others are captioned
        return
    texts = texts_of(config, workload.frames, prompt)
    if sum(map(max_prompt_tokens, texts)) + engine.max_new_tokens <= left:
        return
    room = answer_room(model, config, workload, prompt)
    if engine.max_new_tokens <= room.left:
        return
    shown = counted(workload.frames, "frame") if workload.kind == "video" else "the picture"
    raise UsageError(
        f"the context of {model.name} is {model.profile.context_tokens:,} tokens: beside {shown} "
        f"({room.pictures:,}) and the prompt ({room.words:,}) there is no room for an answer of "
        f"{engine.max_new_tokens:,}",
        hint=what_fits(model, config, workload, room),
    )
