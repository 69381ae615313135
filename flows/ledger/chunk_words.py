"""Inserts the length, the number of frames and the frame times of a chunk into its prompt:
`{seconds}`, `{frames}`, `{times}`.
"""

import re
from collections.abc import Sequence

from artifacts.schema import ChunkIndex
from stages.encode.shown_frames import shown_frames

SECONDS, FRAMES, TIMES = "{seconds}", "{frames}", "{times}"
WORDS = re.compile("|".join(map(re.escape, (SECONDS, FRAMES, TIMES))))
"""The words that are replaced; other braces are left alone."""


def asked_of(prompt: str, chunk: ChunkIndex, frames_a_video: int = 0) -> str:
    """Return the prompt for a chunk of a video, or for an image, which is one frame of no length. A
    model that takes only `frames_a_video` frames (0: any number) sees that many."""
    if not WORDS.search(prompt):
        return prompt
    # The first frame of a chunk may have been on screen before the chunk begins.
    times: Sequence[float] = [max(0.0, time - chunk.start) for time in chunk.times]
    seconds = chunk.end - chunk.start
    if seconds and frames_a_video not in (0, len(times)):
        times = shown_frames(times, seconds, frames_a_video)[1]
    return _filled(prompt, seconds, times)


def added_bytes(prompt: str, frames: int) -> int:
    """Return about how many bytes longer a prompt becomes for a chunk of so many frames."""
    return max(0, len(example(prompt, frames).encode()) - len(prompt.encode()))


def example(prompt: str, frames: int) -> str:
    """Return the prompt for a chunk of one frame a second."""
    return _filled(prompt, float(frames), [float(second) for second in range(frames)])


def _filled(prompt: str, seconds: float, times: Sequence[float]) -> str:
    """Return the prompt with numbers written as LLaVA-Video was trained to read them."""
    said = {
        SECONDS: f"{seconds:.2f}",
        FRAMES: str(len(times)),
        TIMES: ",".join(f"{time:.2f}s" for time in times),
    }
    return WORDS.sub(lambda word: said[word[0]], prompt)
