"""Counts the tokens that frames and prompt leave of the context for an answer, and refuses those
that exceed it before anything is encoded. Loads no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.errors import UsageError
from artifacts.wording import counted
from flows.core.checkpoint.frame_room import (
    frame_bound,
    frame_room,
    frames_of_any_size,
    frames_of_size,
)
from flows.core.checkpoint.frame_sampling import full_chunk, requested_sampling
from flows.core.checkpoint.frame_tokens import encoder_frames, frame_size_tokens
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.prompt_tokens import PromptTokens, max_prompt_tokens
from flows.core.job.prepare import Job
from flows.core.job.summary import context_note
from flows.core.ledger.prompts import example, prompt_for
from flows.core.options.commands import RunOptions
from flows.core.plan.choose import PlanRequest, prompts_of
from flows.core.plan.sizes import UNKNOWN_SIZE, Estimate
from flows.core.plan.workloads import ChunkFrames, Workload, workload_of
from stages.models.profile import ModelProfile

MARGIN = 0.9
"""Share of the fitting pixels that is suggested, because processors round up to patches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRoom:
    """The token budget of a context for one chunk."""

    image_tokens: int
    """Tokens of the frames, and of the template text around each of them."""
    prompt_tokens: int
    """Tokens of the prompt, the system turn and the beginning of the answer."""
    answer_tokens: int
    """Tokens left for the answer; negative if images and text exceed the context."""


def prompt_texts(config: RunOptions, frames: int, prompt: str) -> tuple[str, str, str]:
    """Return the prompt of a chunk, the system turn, and the beginning of the answer."""
    params = config.groups.generation
    return example(prompt, frames), params.system, params.start_with


def text_token_count(model: Model, config: RunOptions, frames: int, prompt: str) -> int:
    """Return the text tokens of a chunk with this number of frames, without the answer."""
    counter = PromptTokens(model.folder)
    prompt_tokens = sum(
        counter.count(text) for text in prompt_texts(config, frames, prompt) if text
    )
    return prompt_tokens + model.profile.tokens_per_prompt


def image_tokens_and_left(model: Model, workload: Workload) -> tuple[int, int]:
    """Return the image tokens of a chunk, and the context tokens left after them and the chat
    template."""
    profile = model.profile
    template = profile.tokens_per_frame * workload.frames if workload.kind == "video" else 0
    image_tokens = workload.tokens - workload.text_tokens + template
    return image_tokens, profile.context_tokens - image_tokens - profile.tokens_per_prompt


def answer_room(model: Model, config: RunOptions, workload: Workload, prompt: str) -> AnswerRoom:
    """Return the token budget for the answer to a prompt about a chunk."""
    prompt_tokens = text_token_count(model, config, workload.frames, prompt)
    image_tokens, answer_tokens = image_tokens_and_left(model, workload)
    answer_tokens += model.profile.tokens_per_prompt - prompt_tokens
    return AnswerRoom(
        image_tokens=image_tokens, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens
    )


def longest_answer(request: PlanRequest) -> int | None:
    """Return the maximum tokens of an answer next to the largest chunks; None: not limited by the
    context."""
    model, config = request.model, request.config
    if not frame_room(model.profile):
        return None
    prompt = max(request.prompts, key=max_prompt_tokens, default="")
    rooms = [answer_room(model, config, w, prompt).answer_tokens for w in request.workloads]
    return max(0, min(rooms)) if rooms else None


def context_hint(model: Model, config: RunOptions, workload: Workload, room: AnswerRoom) -> str:
    """Return options with which prompt and answer fit: a shorter answer, else fewer frames, else
    a shorter prompt. `room`: the token budget of the chunk."""
    if room.answer_tokens > 0:
        return f"Give --max-new-tokens {room.answer_tokens} or less"
    requested, fewer = config.groups.engine.max_new_tokens, _with_fewer(model, workload, room)
    spare = (
        room.answer_tokens
        + room.prompt_tokens
        - text_token_count(model, config, workload.frames, "")
    )
    answer = requested
    while fewer and answer:
        if best := next((pair for pair in fewer if pair[1] >= answer), None):
            frames, left = best
            limit = "" if left >= requested else f" --max-new-tokens {left}"
            words = ", or shorten the prompt" if spare > requested else ""
            return f"Give --max-frames {frames}{limit}{words}"
        answer //= 2
    if spare > requested:
        return "Shorten the prompt"
    if spare > 1:
        return f"Shorten the prompt, and give --max-new-tokens {spare // 2}"
    return "Choose a model with a longer context"


def _with_fewer(model: Model, workload: Workload, room: AnswerRoom) -> list[tuple[int, int]]:
    """Return smaller numbers of frames, largest first, each with the tokens left for an answer.
    Empty for a model with a fixed number of frames."""
    if workload.kind == "image" or model.profile.one_frame or model.profile.frames_per_video:
        return []
    pairs = []
    for frames in range(workload.frames - 1, 0, -1):
        of_chunk = ChunkFrames(frames, workload.stored, workload.shown)
        fewer = workload_of(model, workload.kind, workload.chunks, of_chunk, "")
        _, left = image_tokens_and_left(model, fewer)
        pairs.append((frames, left + model.profile.tokens_per_prompt - room.prompt_tokens))
    return [pair for pair in pairs if pair[1] > 0]


def refuse_beyond_context(request: PlanRequest) -> None:
    """Refuse a frame, or a prompt with an answer of `--max-new-tokens`, that does not fit into the
    context with the frames of the longest chunk. Raises UsageError."""
    model, config = request.model, request.config
    room = frame_room(model.profile)
    limited = any(stage.uses_token_limit for stage in request.stages)
    if not (room and limited):
        return
    prompt = max(request.prompts, key=max_prompt_tokens, default="")
    for workload in request.workloads:
        if workload.kind == "video" and frames_of_size(model.profile, workload.stored) == 0:
            raise _no_frame(model, room, workload.stored)
        _refuse_prompt(model, config, workload, prompt)


def context_notes(job: Job, expected: Sequence[Estimate]) -> list[str]:
    """Return a line if the context holds fewer frames than a chunk has.

    For models whose token count depends on frame size, it is about the largest frames. `expected`:
    an estimate for each medium.
    """
    pairs = zip(job.media, expected, strict=True)
    videos = [e for medium, e in pairs if medium.kind == "video" and e.chunks]
    if not videos:
        return []
    if lost := _lost_note(job.model, job.config, max(e.seconds for e in videos)):
        return [lost]
    prompt = max(prompts_of(job), key=max_prompt_tokens, default="")
    chunks = [(e.stored_frames, e.stored) for e in videos]
    return _size_notes(job.model, job.config, chunks, prompt)


def loses_frames(model: Model, config: RunOptions) -> bool:
    """Return whether the context cannot hold the frames of a full chunk, at any size."""
    return bool(model.profile.context_tokens and context_note(model, config))


def _lost_note(model: Model, config: RunOptions, seconds: float) -> str:
    """Return the line about a full chunk. Empty if the longest video, of this many seconds, is one
    chunk whose frames all fit."""
    if not loses_frames(model, config):
        return ""
    max_frames = frames_of_any_size(model.beside_sound(config)) or 0
    frames = full_chunk(requested_sampling(model.profile, config), seconds)
    return context_note(model, config) if frames > max_frames else ""


def standard_notes(model: Model, config: RunOptions) -> list[str]:
    """Return the notes for a full chunk of a full HD video."""
    frames = full_chunk(requested_sampling(model.profile, config))
    chunks = [(frames, model.fit("video").size(*UNKNOWN_SIZE))]
    return _size_notes(model, config, chunks, prompt_for(model, config, "video"))


def _size_notes(
    model: Model, config: RunOptions, chunks: Sequence[tuple[int, tuple[int, int]]], prompt: str
) -> list[str]:
    """Return the line about chunks, each given by its number of frames and their stored (height,
    width). Prompt and answer only affect the suggested number of pixels."""
    profile = model.beside_sound(config)
    bound = frame_bound(profile, config)
    sizes = [(bound.of(size), count, size) for count, size in chunks] if bound else []
    cut = [
        (max_frames, count, size)
        for max_frames, count, size in sizes
        if max_frames and max_frames < count
    ]
    if not cut:
        return []
    max_frames, count, (height, width) = min(cut)
    context = f"its context of {model.profile.context_tokens:,} tokens"
    context += " beside the sound" if profile != model.profile else ""
    hint = "shorter chunks (--chunk) show more"
    room = (
        profile.context_tokens
        - text_token_count(model, config, count, prompt)
        - config.groups.engine.max_new_tokens
    )
    frame_tokens = min(frame_room(profile), room) / encoder_frames(profile, "video", count)
    if pixels := _fitting_pixels(profile, (height, width), frame_tokens):
        hint = f"--max-pixels {pixels} shows them all"
    frames = f"{counted(max_frames, 'frame')} of {width}x{height}"
    fit = "fits" if max_frames == 1 else "fit"
    return [f"{model.name}: {frames} {fit} {context}, of {count:,}; {hint}"]


def _fitting_pixels(profile: ModelProfile, size: tuple[int, int], tokens: float) -> int:
    """Return the pixel limit with which a frame of this height and width, with its template text,
    has at most `tokens` tokens. 0: impossible."""
    frame_tokens, _ = frame_size_tokens(profile, "video", size)
    share = MARGIN * (tokens - profile.tokens_per_frame) / frame_tokens
    multiple = profile.least_pixels
    return int(share * math.prod(size)) // multiple * multiple if multiple and share > 0 else 0


def _no_frame(model: Model, room: int, size: tuple[int, int]) -> UsageError:
    profile = model.profile
    needed = math.ceil(frame_size_tokens(profile, "video", size)[0]) + profile.tokens_per_frame
    hint = "Choose a model with a longer context"
    if pixels := _fitting_pixels(profile, size, room):
        hint = f"Give --max-pixels {pixels}, or choose a model with a longer context"
    return UsageError(
        f"one frame takes {needed:,} tokens of {model.name}, but its context of "
        f"{profile.context_tokens:,} has room for {room:,} besides text",
        hint=hint,
    )


def _refuse_prompt(model: Model, config: RunOptions, workload: Workload, prompt: str) -> None:
    engine = config.groups.engine
    _, left = image_tokens_and_left(model, workload)
    if left <= 0 and workload.kind == "image":  # it fails alone; the others are captioned
        return
    texts = prompt_texts(config, workload.frames, prompt)
    if sum(map(max_prompt_tokens, texts)) + engine.max_new_tokens <= left:
        return
    room = answer_room(model, config, workload, prompt)
    if engine.max_new_tokens <= room.answer_tokens:
        return
    shown = counted(workload.frames, "frame") if workload.kind == "video" else "the image"
    raise UsageError(
        f"the context of {model.name} is {model.profile.context_tokens:,} tokens: with {shown} "
        f"({room.image_tokens:,}) and the prompt ({room.prompt_tokens:,}), an answer of "
        f"{engine.max_new_tokens:,} does not fit",
        hint=context_hint(model, config, workload, room),
    )
