"""Counts the tokens of a context that remain for an answer after images and text. Loads no
model.
"""

from dataclasses import dataclass

from flows.checkpoint.context import frame_room
from flows.checkpoint.models import Model
from flows.checkpoint.prompt_tokens import PromptTokens, max_prompt_tokens
from flows.ledger.chunk_placeholders import example
from flows.options.commands import RunOptions
from flows.planning.choose import PlanRequest
from flows.planning.workloads import Workload
from stages.decode.generation import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRoom:
    """The token budget of a context for one chunk."""

    pictures: int
    """Those of its frames, and of the words about each of them."""
    words: int
    """Those of the prompt, the system turn and the beginning of the answer."""
    left: int
    """Those that are left for the answer; negative where pictures and words exceed the context."""


def texts_of(config: RunOptions, frames: int, prompt: str) -> tuple[str, str, str]:
    """Return what a chunk is asked, the system turn, and what its answer begins with."""
    params = SamplingParams.of(config)
    return example(prompt, frames), params.system, params.start_with


def words_of(model: Model, config: RunOptions, frames: int, prompt: str) -> int:
    """Return the tokens of all words beside a chunk of so many frames, without its answer."""
    counter = PromptTokens(model.folder)
    words = sum(counter.count(text) for text in texts_of(config, frames, prompt) if text)
    return words + model.profile.words_a_prompt


def beside_words(model: Model, workload: Workload) -> tuple[int, int]:
    """Return the tokens of a chunk's pictures, and those that are left beside them and the words
    that the chat template writes."""
    profile = model.profile
    around = profile.words_a_frame * workload.frames if workload.kind == "video" else 0
    pictures = workload.tokens - workload.text_tokens + around
    return pictures, profile.context_tokens - pictures - profile.words_a_prompt


def answer_room(model: Model, config: RunOptions, workload: Workload, prompt: str) -> AnswerRoom:
    """Return the room for the answer to a prompt about a chunk."""
    words = words_of(model, config, workload.frames, prompt)
    pictures, left = beside_words(model, workload)
    left += model.profile.words_a_prompt - words
    return AnswerRoom(pictures=pictures, words=words, left=left)


def longest_answer(question: PlanRequest) -> int | None:
    """Return the most tokens that an answer may have beside the chunks that take most; None: the
    context bounds none."""
    model, config = question.model, question.config
    if not frame_room(model.profile):
        return None
    prompt = max(question.prompts, key=max_prompt_tokens, default="")
    rooms = [answer_room(model, config, each, prompt).left for each in question.workloads]
    return max(0, min(rooms)) if rooms else None
