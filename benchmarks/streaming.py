"""The encode stage with its tower held whole, against the same stage with the tower's layers coming
one after the other past blocks of batches; prints a table.

Each variant is a real stage process over the same clips and a tower of random weights; variants
take turns, and the table has medians. Memory is anonymous, above the imports. Features are compared
too. On a CPU layers come from the page cache, on a GPU through pinned host memory.

    python -m benchmarks.streaming [--device cuda:0] [--rounds 3] [--clips 64] [--quick]
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from artifacts.keys import digest_of
from artifacts.packs import RecordSet
from artifacts.store import open_store
from benchmarks._common import MIB, cells, heads, taken
from benchmarks._models import FRAMES, TINY, Shape, build, publish_clips
from flows.machine.launch import DirectLauncher, StageCall
from tests.support.started import made_job

SHAPE = Shape(layers=1, width=128, tower_layers=24, tower_width=1280, vocabulary=512)
"""A tower of half a billion parameters, 43 MB a layer in 16 bit, and next to nothing else."""
FRAMES_A_CLIP, BATCH = 2, 4


class Variant(NamedTuple):
    """How the tower is held."""

    name: str
    batches: int
    """That pass a layer together; 0: all layers are there."""


VARIANTS = (
    Variant("whole", 0),
    Variant("streamed, a batch at a time", 1),
    Variant("streamed, 4 batches at a time", 4),
    Variant("streamed, 16 batches at a time", 16),
)


class Found(NamedTuple):
    """What one process took."""

    seconds: float
    peak: int
    """Bytes."""
    digest: str
    """Of all features."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--clips", type=int, default=64)
    options.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder, "model"), TINY if given.quick else SHAPE, 1)
        store = str(Path(folder, "store"))
        members = publish_clips(store, [FRAMES_A_CLIP] * given.clips)
        found: dict[Variant, list[Found]] = {variant: [] for variant in VARIANTS}
        for turn in range(given.rounds):
            for variant in VARIANTS:
                namespace = digest_of([variant.name, turn])
                job = {"store": store, "model": str(model), "device": given.device}
                job["namespace"] = namespace
                found[variant].append(run(job, variant, members, Path(folder, "encode.log")))
    print("\n".join(table(found)))


def run(job: dict[str, Any], variant: Variant, members: list[dict[str, str]], log: Path) -> Found:
    """One process over all clips."""
    chunks = [{**m, "key": digest_of([job["namespace"], m["frames"]])} for m in members]
    half = {"model": job["model"], "device": job["device"], "dtype": "bfloat16"}
    arguments = {
        "half": {**half, "offload": variant.batches > 0},
        "store": job["store"],
        "namespace": job["namespace"],
        "frames_namespace": FRAMES,
        "batches": [chunks[at : at + BATCH] for at in range(0, len(chunks), BATCH)],
        "block": variant.batches * BATCH,
    }
    call = StageCall(name="encode", job=made_job(**arguments), device=job["device"], log=log)
    outcome = DirectLauncher(lambda stage, event: None).start(call).wait()
    record_set = RecordSet(open_store(job["store"]), "features", job["namespace"])
    payloads = [digest_of(bytes(record_set.read(chunk["key"]).payload).hex()) for chunk in chunks]
    return Found(outcome.seconds, taken(outcome, job["device"]), digest_of(payloads))


def table(found: dict[Variant, list[Found]]) -> list[str]:
    """Markdown; `x` is to the tower held whole, of the same round."""
    lines = [heads("tower | s | x | MiB | features")]
    whole = found[VARIANTS[0]]
    for variant, runs in found.items():
        times = median(a.seconds / b.seconds for a, b in zip(runs, whole, strict=True))
        equal = {run.digest for run in runs} == {whole[0].digest}
        seconds, peak = (median(getattr(run, name) for run in runs) for name in ("seconds", "peak"))
        told = (f"{seconds:.1f}", f"{times:.2f}", f"{peak / MIB:,.0f}")
        lines.append(cells([variant.name, *told, "equal" if equal else "DIFFERENT"]))
    return lines


if __name__ == "__main__":
    main()
