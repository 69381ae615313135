"""Suggests options that fit the context where a prompt and an answer do not. Loads no model."""

from flows.checkpoint.models import Model
from flows.options.commands import RunOptions
from flows.options.text import EngineOptions
from flows.planning.answer_room import AnswerRoom, beside_words, words_of
from flows.planning.workloads import Workload, workload_of


def what_fits(model: Model, config: RunOptions, workload: Workload, room: AnswerRoom) -> str:
    """Return options with which prompt and answer fit beside a chunk that leaves only this room: a
    shorter answer, else fewer frames, else fewer words."""
    if room.left > 0:
        return f"Give --max-new-tokens {room.left}, or less"
    wanted, fewer = EngineOptions.of(config).max_new_tokens, _with_fewer(model, workload, room)
    spare = room.left + room.words - words_of(model, config, workload.frames, "")
    answer = wanted
    while fewer and answer:
        if found := next((each for each in fewer if each[1] >= answer), None):
            frames, left = found
            limit = "" if left >= wanted else f" --max-new-tokens {left}"
            words = ", or ask in fewer words" if spare > wanted else ""
            return f"Give --max-frames {frames}{limit}{words}"
        answer //= 2
    if spare > wanted:
        return "Ask in fewer words"
    if spare > 1:
        return f"Ask in fewer words, and give --max-new-tokens {spare // 2}"
    return "Choose a model with a longer context; --as-stock shows it all the same"


def _with_fewer(model: Model, workload: Workload, room: AnswerRoom) -> list[tuple[int, int]]:
    """Return numbers of frames below that of a chunk, most first, each with the tokens that it
    leaves for an answer; none of a model that takes as many of any chunk."""
    if workload.kind == "image" or model.one_frame or model.profile.frames_a_video:
        return []
    found = []
    for frames in range(workload.frames - 1, 0, -1):
        sizes = (frames, workload.stored, workload.shown)
        fewer = workload_of(model, workload.kind, workload.chunks, *sizes, "")
        _, left = beside_words(model, fewer)
        found.append((frames, left + model.profile.words_a_prompt - room.words))
    return [each for each in found if each[1] > 0]
