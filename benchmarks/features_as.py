"""Features stored as int8-64 against features as computed: bytes, captions, logits, and the CPU
time of packing and unpacking.

Drawn clips are captioned with the demo's language half in 32 bit from three stores: the vision half
in 32 bit, in 16 bit, and in 16 bit stored as int8-64. Logits are those of the true captions,
against the vision half in 32 bit. Times are those of one thread for features of a real width.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from artifacts.records.eight_bits import INT8_64, pack_vectors, packed_bytes, unpack_vectors
from artifacts.records.packs import RecordSet, stored_namespaces
from artifacts.records.store import open_store
from penstock.training import FeatureCollator, captions, language_half, processor_of
from penstock_demo.clips import write_clips
from tests.support.builders.common import run_penstock

SEED = 11
TOGETHER = 25
"""Rows of a forward pass."""
TOKENS, WIDTH = 3072, 2560
TIMES = 7
WAYS = {
    "fp32": ("--vision-precision", "fp32"),
    "bf16": ("--vision-precision", "bf16"),
    INT8_64: ("--vision-precision", "bf16", "--features-as", INT8_64),
}
"""Name of a store → options of the run that fills it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a form of stored features changes."""

    clips: int
    bytes: int
    """Bytes of the features, with 16 bits each."""
    packed_bytes: int
    equal: int
    """Captions that are those of features with 16 bits."""
    moved: float
    """How far 16 bits of the vision half move the logits (root of the mean square)."""
    moved_packed: float
    """How far int8-64 of these moves them."""


def measure(folder: Path, clips: int, seed: int = SEED) -> Figures:
    """Caption so many drawn clips in all ways."""
    truths = {truth.file: truth.caption for truth in write_clips(folder / "clips", clips, seed)}
    outs = {name: folder / name for name in WAYS}
    for name, options in WAYS.items():
        store, precision = folder / f"store-{name}", ("--language-precision", "fp32", *options)
        run_penstock("caption", folder / "clips", "demo", outs[name], store, *precision)
    rows = {name: (out / "captions.jsonl").read_text().splitlines() for name, out in outs.items()}
    texts = {name: [json.loads(row)["caption"] for row in lines] for name, lines in rows.items()}
    exact = torch.cat(list(_logits(outs["fp32"], truths)))
    moved = {
        name: (torch.cat(list(_logits(outs[name], truths))) - exact).pow(2).mean().sqrt().item()
        for name in ("bf16", INT8_64)
    }
    return Figures(
        clips=clips,
        bytes=_stored(folder / "store-bf16"),
        packed_bytes=_stored(folder / f"store-{INT8_64}"),
        equal=sum(map(str.__eq__, texts["bf16"], texts[INT8_64])),
        moved=moved["bf16"],
        moved_packed=moved[INT8_64],
    )


def _stored(store: Path) -> int:
    """Return the bytes of the features in a store, without the headers of packs."""
    opened = open_store(str(store))
    sets = [RecordSet(opened, "features", n) for n in stored_namespaces(opened, "features")]
    return sum(records.place(key).length for records in sets for key in records.keys())  # noqa: SIM118


def _logits(out: Path, truths: dict[str, str]) -> Iterator[torch.Tensor]:
    """Yield the logits of the tokens of the true captions, by batch: [tokens, vocabulary]."""
    half = language_half(out, dtype=torch.float32)
    collate = FeatureCollator(out, processor_of(out), dtype=torch.float32)
    lines = (out / "captions.jsonl").read_text().splitlines()
    files = {json.loads(line)["features"]: json.loads(line)["media_path"] for line in lines}
    rows = captions(out, lambda _: None)
    rows = [{**row, "caption": truths[files[row["features"]]]} for row in rows]
    for at in range(0, len(rows), TOGETHER):
        batch = collate(rows[at : at + TOGETHER])
        with torch.inference_mode():
            logits = half(**batch).logits
        yield logits[:, :-1][batch["labels"][:, 1:] >= 0].float()


def milliseconds(work: Callable[[], object]) -> float:
    """Return the least CPU time of a call in this process."""
    work()
    times = []
    for _ in range(TIMES):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=200, help="number of drawn clips [200]")
    parser.add_argument("--seed", type=int, default=SEED, help="random seed of the clips [11]")
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # waiting threads take seconds, too
    torch.set_num_threads(1)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), given.clips, given.seed)
    share = figures.packed_bytes / figures.bytes
    print(f"{figures.clips} clips, features of {figures.bytes:,} bytes in 16 bits:")
    print(f"  bytes as {INT8_64}          {figures.packed_bytes:,}, {share:.1%}")
    print(f"  equal captions            {figures.equal} of {figures.clips}")
    print(f"  logits moved by 16 bits   {figures.moved:.4f} (rms)")
    ratio = figures.moved_packed / figures.moved
    print(f"  logits moved by {INT8_64}   {figures.moved_packed:.4f} (rms), {ratio:.2f} x")
    vectors = torch.randn(TOKENS, WIDTH).bfloat16()
    size = vectors.nbytes / 1e6
    packed = pack_vectors(vectors)
    share = TOKENS * packed_bytes(WIDTH) / vectors.nbytes
    print(f"{TOKENS} vectors of {WIDTH} numbers, CPU time per MB in 16 bits, one thread:")
    print(f"  bytes   {share:.1%}")
    print(f"  pack    {milliseconds(lambda: pack_vectors(vectors)) / size:.2f} ms")
    unpack = milliseconds(lambda: unpack_vectors(*packed, torch.bfloat16))
    print(f"  unpack  {unpack / size:.2f} ms")


if __name__ == "__main__":
    main()
