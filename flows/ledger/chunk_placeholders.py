"""Inserts the length, the number of frames and the frame times of a chunk into its prompt:
`{seconds}`, `{frames}`, `{times}`.
"""

import re
from collections.abc import Sequence

from artifacts.schema import ChunkIndex
from stages.encode.shown_frames import shown_frames

SECONDS, FRAMES, TIMES = "{seconds}", "{frames}", "{times}"
PLACEHOLDERS = re.compile("|".join(map(re.escape, (SECONDS, FRAMES, TIMES))))
"""Placeholders that are replaced; other braces stay."""


def fill_placeholders(prompt: str, chunk: ChunkIndex, frames_a_video: int = 0) -> str:
    """Return the prompt for a chunk of a video, or for an image, which is one frame without length.
    A model with a fixed `frames_a_video` sees that many frames (0: any number)."""
    if not PLACEHOLDERS.search(prompt):
        return prompt
    # The first frame of a chunk may have been on screen before the chunk begins.
    times: Sequence[float] = [max(0.0, time - chunk.start) for time in chunk.times]
    seconds = chunk.end - chunk.start
    if seconds and frames_a_video not in (0, len(times)):
        times = shown_frames(times, seconds, frames_a_video)[1]
    return _fill(prompt, seconds, times)


def added_bytes(prompt: str, frames: int) -> int:
    """Return an estimate of how many bytes longer a prompt becomes for a chunk of so many
    frames."""
    return max(0, len(example(prompt, frames).encode()) - len(prompt.encode()))


def example(prompt: str, frames: int) -> str:
    """Return the prompt for a chunk with one frame per second."""
    return _fill(prompt, float(frames), [float(second) for second in range(frames)])


def _fill(prompt: str, seconds: float, times: Sequence[float]) -> str:
    """Return the prompt with numbers in the format that LLaVA-Video was trained on."""
    values = {
        SECONDS: f"{seconds:.2f}",
        FRAMES: str(len(times)),
        TIMES: ",".join(f"{time:.2f}s" for time in times),
    }
    return PLACEHOLDERS.sub(lambda word: values[word[0]], prompt)
