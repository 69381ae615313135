"""Fills the placeholders of prompts, each once: those of a medium, and those of a chunk, which are
its length, the number and the times of its frames, and the caption before.
"""

import re
from collections.abc import Mapping, Sequence

from artifacts.schema import ChunkIndex
from stages.encode.shown_frames import shown_frames

SECONDS, FRAMES, TIMES, PREVIOUS = "{seconds}", "{frames}", "{times}", "{previous}"
BRACE = "{\ufdd0}"
"""Stands for a brace that is text. No user writes it: the character means nothing in Unicode."""
OF_CHUNK = re.compile("({})".format("|".join((SECONDS, FRAMES, TIMES, PREVIOUS))))
"""Placeholders that are replaced; other braces stay."""
PLACEHOLDERS = re.compile(f"{OF_CHUNK.pattern}|{BRACE}")


def fill_of_medium(prompt: str, values: Mapping[str, str]) -> str:
    """Return the prompt with a medium's `values`, by placeholder. Of the result, only placeholders
    of chunks that stood in the prompt are filled later, whatever the values hold."""
    of_medium = re.compile("|".join(map(re.escape, values)))
    pieces = OF_CHUNK.split(prompt)
    for at in range(0, len(pieces), 2):  # each other piece is a placeholder of chunks
        text = of_medium.sub(lambda word: values[word[0]], pieces[at])
        pieces[at] = PLACEHOLDERS.sub(lambda word: BRACE + word[0][1:], text)
    return "".join(pieces)


def fill_placeholders(
    prompt: str, chunk: ChunkIndex, frames_a_video: int = 0, previous: str | None = None
) -> str:
    """Return the prompt for a chunk of a video, or for an image, which is one frame without length.
    A model with a fixed `frames_a_video` sees that many frames (0: any number). While the caption
    of the `previous` chunk is unknown (None), its placeholder stays."""
    if not PLACEHOLDERS.search(prompt):
        return prompt
    # The first frame of a chunk may have been on screen before the chunk begins.
    times: Sequence[float] = [max(0.0, time - chunk.start) for time in chunk.times]
    seconds = chunk.end - chunk.start
    if seconds and frames_a_video not in (0, len(times)):
        times = shown_frames(times, seconds, frames_a_video)[1]
    return _fill(prompt, seconds, times, PREVIOUS if previous is None else previous)


def added_bytes(prompt: str, frames: int) -> int:
    """Return an estimate of how many bytes longer a prompt becomes for a chunk of so many
    frames."""
    return max(0, len(example(prompt, frames).encode()) - len(prompt.encode()))


def example(prompt: str, frames: int) -> str:
    """Return the prompt for a chunk with one frame per second."""
    return _fill(prompt, float(frames), [float(second) for second in range(frames)], PREVIOUS)


def _fill(prompt: str, seconds: float, times: Sequence[float], previous: str) -> str:
    """Return the prompt with numbers in the format that LLaVA-Video was trained on."""
    values = {
        SECONDS: f"{seconds:.2f}",
        FRAMES: str(len(times)),
        TIMES: ",".join(f"{time:.2f}s" for time in times),
        PREVIOUS: previous,
        BRACE: "{",
    }
    return PLACEHOLDERS.sub(lambda word: values[word[0]], prompt)
