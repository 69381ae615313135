"""Rungs of the ladder: the ways in which a stage can be run, cheapest first; knows no machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stages.memory.shrinking import smaller, tighter

PREFILLS = (1024, 256)
"""Positions that go through an MLP at once, where all of a prompt, or of frames, are too many."""
BLOCK = 256
"""Chunks that cross a streamed half together, where they all fit and have no more pictures than
stages/memory/shrinking.py says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One way to run one stage."""

    stage: str
    """`frames`, `encode` or `decode`."""
    batch: int
    """Chunks computed at once at the most; of the frames stage, files cut at once."""
    prefill: int = 0
    """Positions, of prompts or of frames, that go through an MLP at once; 0: all."""
    kv: str = ""
    """Where the KV cache is: empty, on the device; `offloaded`, in host memory; `quantized`, on the
    device in few bits, which changes words."""
    precision: str = ""
    """What the half computes in, as HalfSettings has it; empty for frames."""
    offload: bool = False
    """Weights stay in host memory (of a CPU, and of the encode stage: on disk) and come to the
    device layer by layer."""
    block: int = 0
    """Chunks whose batches pass a layer together while it is there, at the most; of the encode
    stage when it offloads."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def name(self) -> str:
        """`batch 4, int8`, for people."""
        if self.stage == "frames":
            return f"{self.batch} file{'s' if self.batch > 1 else ''} at once"
        past = f" past up to {self.block} at a time" if self.block > self.batch else ""
        pieces = [
            f"batch {self.batch}",
            self.precision,
            f"read {self.prefill} positions at a time" if self.prefill else "",
            f"KV cache {self.kv}" if self.kv else "",
            "weights offloaded" if self.offload and not self.block else "",
            f"streamed layer by layer{past}" if self.block else "",
        ]
        return ", ".join(filter(None, pieces))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Rung":
        return cls(**{name: value[name] for name in cls.__slots__})


def frames_rungs(workers: int) -> list[Rung]:
    """Fewer and fewer files at once."""
    return [Rung(stage="frames", batch=batch) for batch in sizes(workers)]


def encode_rungs(
    batch: int, precisions: Sequence[str], *, streamed: bool, weights: bool = True
) -> list[Rung]:
    """Smaller and smaller batches, then frames that are read in pieces, then, of a half that can be
    `streamed`, its layers one after the other past many batches; and so on in each other precision
    the half may be had in, the best first, where it cannot be. Without `weights`, of a model whose
    pixels go on as they are, there is no more than batches."""
    found: list[Rung] = []
    for precision in precisions:
        alone = Rung(stage="encode", batch=1, precision=precision)
        found += [replace(alone, batch=size) for size in sizes(batch)]
        found += [replace(alone, prefill=tokens) for tokens in PREFILLS if weights]
        if streamed and precision == precisions[0]:
            found += _streamed(batch, alone)
    return found


def _streamed(batch: int, alone: Rung) -> list[Rung]:
    """Smaller and smaller blocks, then smaller batches: a batch decides bytes, a block does not."""
    found: list[Rung] = []
    size, block = batch, max(batch, BLOCK)
    while block:
        found.append(replace(alone, batch=size, block=block, offload=True))
        size, block = tighter(size, block)
    return found + [replace(found[-1], prefill=tokens) for tokens in PREFILLS]


def decode_rungs(
    batch: int, ways: Sequence[tuple[str, str]], *, on_gpu: bool, offload: bool
) -> list[Rung]:
    """As for encode, and within each precision: prompts read in pieces, and on a GPU the KV cache
    in host memory. `ways` are precisions, each with `quantized` if the KV cache is, else with an
    empty text."""
    found: list[Rung] = []
    for precision, kv in ways:
        alone = Rung(stage="decode", batch=1, prefill=PREFILLS[-1], precision=precision, kv=kv)
        if kv:  # where it is, all else was tried
            found.append(alone)
            continue
        found += [replace(alone, batch=size, prefill=0) for size in sizes(batch)]
        found += [replace(alone, prefill=tokens) for tokens in PREFILLS]
        if on_gpu:
            found.append(replace(alone, kv="offloaded"))
    if not offload or not ways:
        return found
    # Layers come to the device one by one, so that a batch costs hardly more than an item.
    last = Rung(stage="decode", batch=1, prefill=PREFILLS[-1], precision=ways[0][0], offload=True)
    return found + [replace(last, batch=size) for size in sizes(batch)]


def sizes(most: int) -> list[int]:
    """The largest, then the powers of two below it: pieces of the one are whole pieces of the
    next."""
    found = [most]
    while found[-1] > 1:
        found.append(smaller(found[-1]))
    return found
