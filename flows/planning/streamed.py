"""What a half takes whose layers are streamed, term by term; knows no budget."""

import math
from collections.abc import Iterator

from flows.console.display import gib
from flows.planning.estimate import Purpose, Term
from flows.planning.loads import PIXEL_BYTES, Load
from flows.planning.rungs import Rung
from flows.planning.works import Expected
from stages.memory.shrinking import items_a_block
from stages.models.card import PartCard


def power_of_two(count: int) -> int:
    """What a pinned allocation of so many bytes takes."""
    return 1 << max(0, count - 1).bit_length()


def weight_terms(half: PartCard, layer: int, ends: int, each: int, device: str) -> Iterator[Term]:
    """Of the weights: `layer` bytes a layer, `ends` outside of layers, `each` of a number."""
    why = f"2 of {half.layers} layers x {gib(layer)}, one computes while the next is read; and "
    yield Term(part="weight", bytes=2 * layer + ends, why=f"{why}what is outside of layers")
    if device.startswith("cuda"):
        why = "2 layers in pinned host memory, each a power of two"
        yield Term(part="host", bytes=2 * power_of_two(layer), why=why)
    if half.stored_bytes != half.parameters * each:
        largest = half.largest_linear * half.stored_bytes // half.parameters
        part: Purpose = "host" if device.startswith("cuda") else "workspace"
        yield Term(part=part, bytes=largest, why="the largest matrix as it is stored, to cast")


def batches_a_block(rung: Rung, load: Load, rows: int) -> int:
    """Batches of so many rows that pass a layer together."""
    block = items_a_block(rung.block, load.frames)
    return max(1, min(block // rows, math.ceil(load.chunks / rows)))


def waiting_terms(rung: Rung, load: Load, rows: int, work: Expected, device: str) -> Iterator[Term]:
    """Of a half that is streamed: what the batches hold that wait while one computes."""
    others = batches_a_block(rung, load, rows) - 1 if rung.block else 0
    if not others:
        return
    held = math.ceil(max(work.waiting_bytes, work.kept_bytes))
    what = f"{others} batch{'' if others == 1 else 'es'}"
    why = f"{what} that wait for a layer x {gib(held)}"
    yield Term(part="activation", bytes=others * held, why=why)
    pixels = rows * load.units * PIXEL_BYTES
    part: Purpose = "workspace" if device == "cpu" else "host"
    yield Term(part=part, bytes=others * pixels, why=f"pixels of {what} x {gib(pixels)}")


def block_ahead(rung: Rung, load: Load, rows: int) -> Term:
    """The next block, whose batches are prepared one after the other."""
    batches = batches_a_block(rung, load, rows)
    pixels, frames = rows * load.units * PIXEL_BYTES, load.reading_bytes(rows)
    next_one = batches * pixels + frames if load.chunks > batches * rows else 0
    why = f"the next block's pixels, {batches} x {gib(pixels)}, and frames of what is read"
    return Term(part="workspace", bytes=next_one, why=why)
