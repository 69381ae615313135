"""Slots that are refilled as captions end, over batches that wait for their longest; prints ratios.

Captions end where a seeded log-normal says (median 60 tokens, 95 of 100 within 180, at most 256),
so that both sides say as much whatever the model would. Ways run in one process: `static` is
`generate` over batches in the order of the stage, the longest prompts first; `oracle` the same over
batches that were sorted by what nobody knows beforehand, the lengths of captions; `slots` is the
loop of the engine. Row-steps are counted: rows times steps after the prompt. Those that make no
token of a caption are wasted. It does not know what reading features and publishing take.
Clips are taken again where there are more chunks; 1,000 show the waste of a large wave.
"""

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.digests import digest_of
from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from penstock_demo import CHECKPOINT
from tests.support.builders.common import cells, heads
from tests.support.builders.models import FRAMES, LARGE, build, publish_clips
from tests.support.builders.modes import perform

CLIPS, SLOTS = 64, 8
MEDIAN, MANY, MOST, LEAST = 60, 180, 256, 4
"""Tokens of a caption: of the middle one, within which 95 of 100 are, of the longest, of the
shortest."""
PROMPTS = ("Describe this video in detail.", "What happens in this video?", "Name the colours.")


def lengths(chunks: int, scale: float, seed: int = 5) -> list[int]:
    """The tokens of each caption."""
    rng, spread = random.Random(seed), math.log(MANY / MEDIAN) / 1.645
    drawn = (rng.lognormvariate(math.log(MEDIAN), spread) for _ in range(chunks))
    return [max(2, round(scale * min(MOST, max(LEAST, each)))) for each in drawn]


class Work:
    """A language half, features of clips, and how long each caption is to be."""

    def __init__(self, model: Path, store: str, chunks: int, scale: float) -> None:
        from stages.decode.generate_kwargs import make_greedy
        from stages.models.loading import ModelJob

        frames = random.Random(3).choices((4, 6, 8, 12, 16), k=min(CLIPS, chunks))
        self._rows = features_of(model, store, frames)
        source = ModelJob(model=str(model), dtype="float32", attention="sdpa")
        self._processor, self.half = source.processor(), source.load_reloadable("language").model
        make_greedy(self.half, self._processor)
        settings = self.half.generation_config
        settings.eos_token_id, settings.min_new_tokens, settings.pad_token_id = None, None, 0
        self.wanted = lengths(chunks, scale)
        self.given = [self.inputs([at]) for at in range(chunks)]
        self.prompts = [inputs["input_ids"].shape[1] for inputs, _ in self.given]
        self.read_seconds = 0.0
        prefill = self.half._prefill

        def timed(*message: Any, **options: Any) -> Any:
            started = time.process_time()
            output = prefill(*message, **options)
            self.read_seconds += time.process_time() - started
            return output

        self.half._prefill = timed

    def inputs(self, chunks: Sequence[int]) -> tuple[dict[str, Any], Any]:
        """What `generate` is given of these chunks."""
        from stages.models.halves.features import Features
        from stages.models.halves.records import merge_blank, merge_rows
        from stages.models.processors.prepare import drop_end_token, rebuild

        rows = [self._rows[at % len(self._rows)] for at in chunks]
        texts = [PROMPTS[at % len(PROMPTS)] for at in chunks]
        inputs = drop_end_token(self.half, rebuild(self._processor, rows, texts))
        return inputs, Features(merge_rows(rows), rows[0].needs, merge_blank(rows))


def features_of(model: Path, store: str, frames: list[int]) -> list[Any]:
    """Features of clips with so many frames each, made by the real stage."""
    from stages.decode.protocol import read_features

    members = publish_clips(store, frames)
    namespace = digest_of("features")
    job = {
        "store": store,
        "model": str(model),
        "device": "cpu",
        "dtype": "float32",
        "attention": "sdpa",
        "frames_namespace": FRAMES,
        "namespace": namespace,
        "batches": [[{**one, "key": digest_of(["features", one["frames"]])}] for one in members],
    }
    perform("encode", job)
    record_set = RecordSet(open_store(store), "features", namespace)
    return [read_features(record_set, key) for key in sorted(record_set.keys())]


@dataclass(kw_only=True, slots=True)
class Way:
    """What one way took, and said."""

    cpu_seconds: float = 0.0
    read_seconds: float = 0.0
    """Of them, CPU seconds of the half's pass over prompts."""
    steps: int = 0
    """Rows times steps."""
    said: dict[int, list[int]] = field(default_factory=dict)
    """Chunk → its tokens."""

    @property
    def wasted(self) -> float:
        """The share of row-steps that made no token."""
        return 1 - sum(len(tokens) - 1 for tokens in self.said.values()) / self.steps


def static(work: Work, order: Sequence[int], slots: int) -> Way:
    """Batches of so many rows in this order, each until its longest caption ends."""
    from stages.models.halves.generate import generate, new_tokens, prompt_in

    way = Way()
    for first in range(0, len(order), slots):
        chunks = order[first : first + slots]
        inputs, features = work.inputs(chunks)
        most = max(work.wanted[at] for at in chunks)
        made = generate(work.half, inputs, features, max_new_tokens=most)
        new = new_tokens(made, prompt_in(work.half, inputs)).tolist()
        way.said |= {at: row[: work.wanted[at]] for at, row in zip(chunks, new, strict=True)}
        way.steps += (most - 1) * len(chunks)
    return way


def by_prompt(work: Work, slots: int) -> Way:
    return static(work, _sorted(work.prompts), slots)


def oracle(work: Work, slots: int) -> Way:
    return static(work, _sorted(work.wanted), slots)


def in_slots(work: Work, slots: int) -> Way:
    """Rows in the order of the stage, each in a slot as soon as there is one."""
    from stages.decode.engines.inflight.pool_shape import PoolLayout, rows_for
    from stages.decode.engines.inflight.prefill import PrefilledSequence, prefill_row
    from stages.decode.engines.inflight.scheduler import InflightScheduler, RequestPrefetcher
    from stages.decode.generation import DecodeItem
    from stages.decode.protocol import DecodeRequest
    from stages.memory.oom_retry import ItemFaults, OomRetry

    way = Way()

    def read(requests: DecodeRequest) -> PrefilledSequence:
        at = int(requests.item.key)
        return prefill_row(work.half, *work.given[at], max_new_tokens=work.wanted[at])

    nothing: Any = None
    layout = PoolLayout(rows=rows_for(slots))
    requests = [DecodeRequest(DecodeItem(str(at), "", ""), nothing) for at in _sorted(work.prompts)]
    loop = InflightScheduler(
        read, OomRetry(nothing, list, ItemFaults("decode", nothing)), layout, slots=slots
    )
    with ThreadPoolExecutor(1) as beside:
        for flight in loop.run(RequestPrefetcher([requests], beside)):
            if flight is not None:
                way.said[int(flight.request.item.key)] = flight.output_ids
    way.steps = loop.usage["row_steps"]
    return way


def _sorted(sizes: Sequence[int]) -> list[int]:
    """The chunks, the largest first."""
    return sorted(range(len(sizes)), key=lambda at: -sizes[at])


WAYS: dict[str, Callable[[Work, int], Way]] = {
    "static": by_prompt,
    "oracle": oracle,
    "slots": in_slots,
}


def measured(work: Work) -> dict[str, Way]:
    """Each way, with the CPU seconds that it took."""
    found: dict[str, Way] = {}
    for name, way in WAYS.items():
        started, before = time.process_time(), work.read_seconds
        found[name] = way(work, SLOTS)
        found[name].cpu_seconds = time.process_time() - started
        found[name].read_seconds = work.read_seconds - before
    return found


def table(ways: dict[str, Way]) -> Iterator[str]:
    """What a person reads of one run."""
    last = [*ways.values()][-1]
    yield heads("way | CPU s | of it reading | row-steps | wasted | tokens as the last one")
    for name, way in ways.items():
        same = sum(way.said[at] == last.said[at] for at in way.said)
        seconds = f"{way.cpu_seconds:.1f}", f"{way.read_seconds:.1f}"
        yield cells(
            [name, *seconds, f"{way.steps:,}", f"{way.wasted:.1%}", f"{same} of {len(way.said)}"]
        )
    for name, way in [*ways.items()][:-1]:
        decoding = (way.cpu_seconds - way.read_seconds) / (last.cpu_seconds - last.read_seconds)
        whole, steps = way.cpu_seconds / last.cpu_seconds, way.steps / last.steps
        text = f"CPU {whole:.2f}, decoding {decoding:.2f}, row-steps {steps:.2f}"
        yield f"{name} ÷ {[*ways][-1]}: {text}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", choices=("demo", "large"), default="demo")
    options.add_argument("--chunks", type=int, default=CLIPS)
    options.add_argument("--scale", type=float, default=1.0)
    given = options.parse_args(arguments)
    import torch

    torch.set_num_threads(1)  # others would make CPU seconds of waiting
    with tempfile.TemporaryDirectory() as folder:
        model = CHECKPOINT if given.only == "demo" else build(Path(folder, "model"), LARGE, 1)
        work = Work(model, f"{folder}/store", given.chunks, given.scale)
        found = measured(work)
    print(f"{given.only}, float32: {given.chunks:,} chunks, {SLOTS} slots")
    print("\n".join(table(found)), flush=True)


if __name__ == "__main__":
    main()
