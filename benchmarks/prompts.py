"""Eight prompts about one chunk, read from what they have in common, over one batch of eight.

A model of random weights sees clips of some thousand tokens and says as many tokens each time, so
that both ways make the same work of different reading. In one run, in 32 bit: `one batch` is
`generate` over the eight prompts of a chunk; `alone` is slots that read each prompt by itself;
`shared` slots that read the beginning once. Prints seconds a chunk, the ratio to one batch, how
many captions have the tokens of the batch's, and what the beginning takes in memory, planned and
measured. `python -m benchmarks.prompts [--frames N] [--chunks N] [--tokens N] [--rounds N]`
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from benchmarks._bench import features_of
from benchmarks._common import met
from benchmarks._models import Shape, build

SMALL = Shape(layers=6, width=512, tower_layers=1, tower_width=64, vocabulary=512)
PROMPTS = (
    "Describe this video in detail.",
    "What colour is it?",
    "How many objects are there?",
    "Describe the background.",
    "What happens first?",
    "Is anything moving?",
    "Name the shapes.",
    "What happens at the end of it all, in one sentence?",
)
GOAL = 3.0
WAYS = {"one batch": "transformers", "alone": "inflight", "shared": "inflight-shared"}


class Asking:
    """A language half that is asked by one engine."""

    def __init__(self, engine: str, job: dict[str, Any], asked: Sequence[Sequence[Any]]) -> None:
        from stages.decode.engines import engine_of
        from stages.decode.job import DecodeJob
        from stages.process.job import parse_job

        told = {**job, "engine": engine, "slots": len(PROMPTS)}
        self._speaker: Any = resolve_name(engine_of(engine).entry)(parse_job(DecodeJob, told))
        self._asked = asked
        self._speaker.resolve_engine(asked[0][0])
        self.seconds: list[float] = []
        self.said: dict[str, str] = {}

    def ask(self) -> None:
        """Ask all prompts of all chunks, and take the time."""
        from stages.memory.oom_retry import OomRetry
        from tests.support.waves import events

        with events() as (report, _):
            oom_retry = OomRetry(report, lambda: self._speaker.generate_batch(self._asked[0][:1]))
            started = time.monotonic()
            for some, said in self._speaker.run(iter(self._asked), oom_retry):
                self.said |= {
                    one.item.key: words.caption for one, words in zip(some, said, strict=True)
                }
            self.seconds.append((time.monotonic() - started) / len(self._asked))

    def found(self) -> dict[str, Any]:
        """Return what the engine tells of it."""
        found: dict[str, Any] = self._speaker.run_stats()
        return found


def _asked(model: Path, store: str, frames: int, chunks: int) -> tuple[dict[str, Any], list[Any]]:
    """Return a decode job and the prompts of each chunk."""
    from stages.decode.job import DecodeItem
    from stages.decode.protocol import DecodeRequest

    asked = [
        [
            DecodeRequest(DecodeItem(f"{key}-{n}", key, prompt), row)
            for n, prompt in enumerate(PROMPTS)
        ]
        for key, row in features_of(model, "float32", store, [frames] * chunks).items()
    ]
    half = {"model": str(model), "device": "cpu", "dtype": "float32", "attention": "sdpa"}
    rest = {"features_namespace": "", "namespace": "", "batches": []}
    return {"half": half, "store": store, **rest}, asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=136)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder) / "model", SMALL, given.tokens)
        job, asked = _asked(model, f"{folder}/store", given.frames, given.chunks)
        tokens = asked[0][0].row.count.tokens
        job["max_new_tokens"] = given.tokens
        ways = {way: Asking(engine, job, asked) for way, engine in WAYS.items()}
        for _ in range(given.rounds):
            for way in ways.values():
                way.ask()
    print(f"{len(PROMPTS)} prompts, {tokens:,} tokens of pictures, {given.tokens} new tokens, fp32")
    batch = ways["one batch"]
    slow = statistics.median(batch.seconds)
    for name, way in ways.items():
        seconds = statistics.median(way.seconds)
        same = sum(way.said[key] == text for key, text in batch.said.items())
        print(
            f"{name:10s} {seconds:6.2f} s a chunk, x {slow / seconds:4.2f}, "
            f"{same} of {len(batch.said)} captions as in one batch"
        )
    shared = ways["shared"]
    ratio = slow / statistics.median(shared.seconds)
    good = ratio >= GOAL and shared.said == batch.said and shared.found().get("shared_prefix")
    print(f"goal: x {GOAL:g} and the same tokens: {met(bool(good))}")


if __name__ == "__main__":
    main()
