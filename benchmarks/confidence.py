"""What it costs to decode captions with their confidence: CPU seconds with it over those without.

Both sides say the same, in turns, on one thread. `slots` is the loop of `inflight`, `batches` is
`generate` as the engine `transformers` calls it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks._common import cells, heads, met
from benchmarks._drawn_lengths import Work
from benchmarks.inflight import in_slots, one_thread
from penstock_demo import CHECKPOINT

GOAL = 1.03
SCALE = 0.5
"""Of the lengths of captions."""
INFLIGHT, WATCH = "stages.decode.engines.inflight.scheduler", "stages.decode.confidence"
Said = dict[int, list[int]]
Scores = Callable[[Any, Any], Any]


def in_batches(work: Work, size: int, watched: bool) -> Said:
    """Batches of so many rows, each until its longest caption ends."""
    from stages.decode.confidence import LogitsWatch
    from stages.models.halves.inject_features import generate, new_tokens, prompt_in

    said: Said = {}
    for first in range(0, len(work.wanted), size):
        chunks = range(first, min(first + size, len(work.wanted)))
        inputs, features = work.inputs(chunks)
        most, watch = max(work.wanted[at] for at in chunks), LogitsWatch()
        options: dict[str, Any] = {"custom_generate": watch.sample} if watched else {}
        made = generate(work.half, inputs, features, max_new_tokens=most, **options)
        new = new_tokens(made, prompt_in(work.half, inputs))
        if watched:
            assert None not in watch.confidences(new, [work.wanted[at] for at in chunks])
        said |= dict(zip(chunks, new.tolist(), strict=True))
    return said


def slots(work: Work, size: int, watched: bool) -> Said:
    return in_slots(work, size).said


@contextmanager
def scores_by(function: Scores) -> Iterator[None]:
    """Score tokens by this function."""
    with patch(f"{INFLIGHT}.token_scores", function), patch(f"{WATCH}.token_scores", function):
        yield


def ratios(
    way: Callable[[Work, int, bool], Said], work: Work, size: int, rounds: int
) -> tuple[list[float], list[float]]:
    """CPU seconds with confidence over those without, of each round: of two runs in turns, and of
    one run, from which the time of its scores is subtracted. The second is steady on a busy
    machine, but counts no work around the scores."""
    import torch

    from stages.decode.confidence import token_scores

    spent = [0.0]

    def timed(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        started = time.process_time()
        found = token_scores(logits, tokens)
        spent[0] += time.process_time() - started
        return found

    def nothing(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(logits), 2)

    in_turns, within = [], []
    for number in range(rounds + 1):
        seconds: dict[bool, float] = {}
        said: dict[bool, Said] = {}
        spent[0] = 0.0
        for watched in (True, False) if number % 2 else (False, True):
            started, read = time.process_time(), work.read_seconds
            with scores_by(timed if watched else nothing):
                said[watched] = way(work, size, watched)
            whole = time.process_time() - started
            seconds[watched] = whole - (work.read_seconds - read)  # without reading prompts
        assert said[True] == said[False]
        in_turns.append(seconds[True] / seconds[False])
        within.append(seconds[True] / (seconds[True] - spent[0]))
    return in_turns[1:], within[1:]  # the first round warmed up


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--chunks", type=int, default=16)
    options.add_argument("--size", type=int, default=8, help="slots, or rows of a batch")
    options.add_argument("--rounds", type=int, default=15)
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, one_thread():
        work = Work(CHECKPOINT, "float32", f"{folder}/store", given.chunks, SCALE)
        print(f"demo, float32: {given.chunks} chunks, {given.size} at once")
        print(heads(f"way | with ÷ without, in turns | least | most | within a run | goal {GOAL}"))
        for name, way in {"slots": slots, "batches": in_batches}.items():
            found, within = ratios(way, work, given.size, given.rounds)
            own = statistics.median(within)
            figures = [
                f"{each:.3f}" for each in (statistics.median(found), min(found), max(found), own)
            ]
            print(cells([name, *figures, met(own <= GOAL)]), flush=True)


if __name__ == "__main__":
    main()
