"""Refuses frames and words that do not fit the model's context, before anything is encoded. It
loads no model."""

from collections.abc import Iterable

from artifacts.errors import UsageError
from artifacts.words import counted
from flows.job.config import CaptionConfig
from flows.job.context import frame_room, frames_of_any_size
from flows.job.models import Model
from flows.job.prompt_tokens import PromptTokens, most_tokens
from flows.planning.choose import Question
from flows.planning.workloads import Workload


def refuse_beyond_context(question: Question, prompts: Iterable[str]) -> None:
    """Refuse a frame, or a prompt and an answer of `--max-new-tokens`, for which the context has no
    room beside the frames of the longest chunk. As stock, explicitly asked for, nothing is refused.
    Raises UsageError."""
    model, config = question.model, question.config
    room = frame_room(model.profile)
    limited = any(stage.limited for stage in question.stages)
    if not (room and limited) or config.as_published is False:
        return
    prompt = max(prompts, key=most_tokens, default="")
    for workload in question.workloads:
        if workload.kind == "video" and frames_of_any_size(model.profile) == 0:
            raise _no_frame(model, room)
        _refuse_words(model, config, workload, prompt)


def _no_frame(model: Model, room: int) -> UsageError:
    profile = model.profile
    each = profile.frame_tokens + profile.words_a_frame
    hint = "Choose a model with a longer context; --as-stock shows it all the same"
    if profile.least_pixels:
        fitting = profile.least_pixels * max(1, room - profile.words_a_frame)
        hint = f"Give --max-pixels {fitting}, or choose a model with a longer context"
    return UsageError(
        f"one frame is {each:,} tokens to {model.name}, and its context of "
        f"{profile.context_tokens:,} has room for {room:,} beside words",
        hint=hint,
    )


def _refuse_words(model: Model, config: CaptionConfig, workload: Workload, prompt: str) -> None:
    profile = model.profile
    around = profile.words_a_frame * workload.frames if workload.kind == "video" else 0
    pictures = workload.tokens - workload.text_tokens + around
    left = profile.context_tokens - pictures - profile.words_a_prompt
    texts = (prompt, config.system, config.start_with)
    if sum(map(most_tokens, texts)) + config.max_new_tokens <= left:
        return
    counter = PromptTokens(model.folder)
    words = sum(counter.count(text) for text in texts if text)
    if words + config.max_new_tokens <= left:
        return
    seen = counted(workload.frames, "frame") if workload.kind == "video" else "the picture"
    most = left - words
    raise UsageError(
        f"the context of {model.name} is {profile.context_tokens:,} tokens: beside {seen} "
        f"({pictures:,}) and the prompt ({words + profile.words_a_prompt:,}) there is no room for "
        f"an answer of {config.max_new_tokens:,}",
        hint=f"Give --max-new-tokens {most}, or less" if most > 0 else "Ask in fewer words",
    )
