"""Suggests options with which a prompt and an answer fit the context. Loads no model."""

from flows.checkpoint.models import Model
from flows.options.commands import RunOptions
from flows.options.text import EngineOptions
from flows.planning.answer_room import AnswerRoom, image_tokens_and_left, text_token_count
from flows.planning.workloads import Workload, workload_of


def context_hint(model: Model, config: RunOptions, workload: Workload, room: AnswerRoom) -> str:
    """Return options with which prompt and answer fit: a shorter answer, else fewer frames, else
    a shorter prompt. `room`: the token budget of the chunk."""
    if room.answer_tokens > 0:
        return f"Give --max-new-tokens {room.answer_tokens} or less"
    requested, fewer = EngineOptions.of(config).max_new_tokens, _with_fewer(model, workload, room)
    spare = (
        room.answer_tokens
        + room.prompt_tokens
        - text_token_count(model, config, workload.frames, "")
    )
    answer = requested
    while fewer and answer:
        if found := next((each for each in fewer if each[1] >= answer), None):
            frames, left = found
            limit = "" if left >= requested else f" --max-new-tokens {left}"
            words = ", or shorten the prompt" if spare > requested else ""
            return f"Give --max-frames {frames}{limit}{words}"
        answer //= 2
    if spare > requested:
        return "Shorten the prompt"
    if spare > 1:
        return f"Shorten the prompt, and give --max-new-tokens {spare // 2}"
    return "Choose a model with a longer context, or give --as-stock to show it anyway"


def _with_fewer(model: Model, workload: Workload, room: AnswerRoom) -> list[tuple[int, int]]:
    """Return smaller numbers of frames, largest first, each with the tokens left for an answer.
    Empty for a model with a fixed number of frames."""
    if workload.kind == "image" or model.one_frame or model.profile.frames_a_video:
        return []
    found = []
    for frames in range(workload.frames - 1, 0, -1):
        sizes = (frames, workload.stored, workload.shown)
        fewer = workload_of(model, workload.kind, workload.chunks, *sizes, "")
        _, left = image_tokens_and_left(model, fewer)
        found.append((frames, left + model.profile.words_a_prompt - room.prompt_tokens))
    return [each for each in found if each[1] > 0]
