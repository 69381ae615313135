"""Counts the context tokens left for an answer after images and text. Loads no model."""

from dataclasses import dataclass

from flows.checkpoint.context import frame_room
from flows.checkpoint.models import Model
from flows.checkpoint.prompt_tokens import PromptTokens, max_prompt_tokens
from flows.ledger.prompts import example
from flows.options.commands import RunOptions
from flows.planning.choose import PlanRequest
from flows.planning.workloads import Workload
from stages.decode.generation import SamplingParams


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
    params = SamplingParams.of(config)
    return example(prompt, frames), params.system, params.start_with


def text_token_count(model: Model, config: RunOptions, frames: int, prompt: str) -> int:
    """Return the text tokens of a chunk with this number of frames, without the answer."""
    counter = PromptTokens(model.folder)
    prompt_tokens = sum(
        counter.count(text) for text in prompt_texts(config, frames, prompt) if text
    )
    return prompt_tokens + model.profile.words_a_prompt


def image_tokens_and_left(model: Model, workload: Workload) -> tuple[int, int]:
    """Return the image tokens of a chunk, and the context tokens left after them and the chat
    template."""
    profile = model.profile
    template = profile.words_a_frame * workload.frames if workload.kind == "video" else 0
    image_tokens = workload.tokens - workload.text_tokens + template
    return image_tokens, profile.context_tokens - image_tokens - profile.words_a_prompt


def answer_room(model: Model, config: RunOptions, workload: Workload, prompt: str) -> AnswerRoom:
    """Return the token budget for the answer to a prompt about a chunk."""
    prompt_tokens = text_token_count(model, config, workload.frames, prompt)
    image_tokens, answer_tokens = image_tokens_and_left(model, workload)
    answer_tokens += model.profile.words_a_prompt - prompt_tokens
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
    rooms = [answer_room(model, config, each, prompt).answer_tokens for each in request.workloads]
    return max(0, min(rooms)) if rooms else None
