"""How long portions of a run take on many workers beside what they would take if all workers ended
at the same moment. It is a simulation: no model, no server, arithmetic with chance.

    python -m benchmarks.portions

An item takes 10 s in the mean, log-normal; a fifth of the workers is half as fast; each dies once
a day, and what it had published is kept; starting a run takes 12 s.
"""

import heapq
import math
import random
import sys

MEAN_SECONDS, SPREAD = 10.0, 1.0
START_SECONDS = 12.0
DEATH_SECONDS = 86_400.0
NOTICED_SECONDS = 150.0
"""Time after which a death is known, and its portion asked for again."""
CASES = (
    (10_000, 10, (10, 50, 200, 1000)),
    (1_000_000, 100, (50, 200, 1000)),
    (1_000_000, 1000, (50, 200)),
)
SAMPLED = 200
"""Items of a portion that are drawn; of larger ones the sum is scaled."""


def makespan(items: int, workers: int, files: int, seed: int = 0) -> float:
    """Return how many times as long as in the ideal all portions take. The last are not shared, as
    they would be."""
    chance = random.Random(seed)
    mean = math.log(MEAN_SECONDS) - SPREAD * SPREAD / 2
    speeds = [chance.choice((1.0, 1.0, 1.0, 1.0, 0.5)) for _ in range(workers)]
    drawn = min(files, SAMPLED)
    portions = sorted(
        sum(chance.lognormvariate(mean, SPREAD) for _ in range(drawn)) * files / drawn
        for _ in range(items // files)
    )
    free = [(0.0, worker) for worker in range(workers)]
    ends: list[float] = []
    for work in reversed(portions):
        at, worker = heapq.heappop(free)
        seconds = START_SECONDS + work / speeds[worker]
        if chance.random() < 1 - math.exp(-seconds / DEATH_SECONDS):
            at += chance.random() * seconds + NOTICED_SECONDS
            seconds *= 1 - chance.random()
        heapq.heappush(free, (at + seconds, worker))
        ends.append(at + seconds)
    return max(ends) / (sum(portions) / sum(speeds))


def main() -> int:
    """Print a line a case."""
    print("items, workers, files a portion: runs, starts a second, time beside the ideal")
    for items, workers, sizes in CASES:
        for files in sizes:
            beside = makespan(items, workers, files)
            runs = items // files
            starts = runs / (beside * items * MEAN_SECONDS / workers)
            print(
                f"{items:>9,} {workers:>5,} {files:>5,}: {runs:>7,} runs, {starts:.2f} a second, "
                f"x {beside:.3f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
