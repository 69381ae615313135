"""Decoding in llama.cpp against bitsandbytes' 4 bit: tokens a CPU second, prompts, and export.

The large model is exported to each kind, without judging. Then `caption` runs with long and with
short captions from stored features, one thread each. Short ones give the time for prompts; the
difference is the time for tokens. Prints the figures of each kind, and their ratio to nf4. Needs
`make gguf`.

    python -m benchmarks.gguf [--clips 16] [--tokens 65] [--kinds q4_0 q4_k_m q8_0] [--quick]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._common import MIB, cells, heads, met, run_penstock, unheard
from flows.results.run_status import stages_of

FASTER, READING = 2.0, 1.2
"""Tokens a CPU second of four bits, at least, and CPU seconds for prompts, at most, for each of
nf4."""
SLOTS = 8


class Figures(NamedTuple):
    """What one kind takes."""

    prompts: float
    """CPU seconds for all prompts, with the start of the process."""
    rate: float
    """Tokens a CPU second in decode steps."""
    planned: float
    peak: float
    """MiB of the decode stage above what its imports take."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=16)
    options.add_argument("--tokens", type=int, default=65)
    options.add_argument("--kinds", nargs="+", default=["q4_0", "q4_k_m", "q8_0"])
    options.add_argument("--slots", type=int, default=SLOTS)
    options.add_argument("--quick", action="store_true", help="tiny model: does it run at all?")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        print("\n".join(table(Path(made), given)))


def table(folder: Path, given: argparse.Namespace) -> Iterator[str]:
    """Export, run, and yield Markdown."""
    from benchmarks._models import LARGE, TINY, build
    from penstock_demo.clips import write_clips

    model = build(folder / "model", TINY if given.quick else LARGE, given.tokens)
    write_clips(folder / "clips", given.clips, 3)
    yield f"{given.clips} clips, {given.slots} slots, 1 thread, load {os.getloadavg()[0]:.1f}"
    reference = figures(folder, given, "nf4", model, "--language-precision", "nf4")
    yield heads("kind | export, s | prompts, CPU s | to nf4 | tokens a CPU s | to nf4 | plan, MiB | peak, MiB")  # fmt: skip  # noqa: E501
    yield row("nf4", 0.0, reference, reference)
    for kind in given.kinds:
        since = time.perf_counter()
        made = exported(model, f"gguf-{kind}")
        seconds = time.perf_counter() - since
        yield row(kind, seconds, figures(folder, given, kind, made), reference)


def row(kind: str, seconds: float, found: Figures, reference: Figures) -> str:
    """Return one line of the table."""
    four, faster = kind.startswith("q4"), found.rate / reference.rate
    reading = found.prompts / reference.prompts
    return cells(
        [
            kind,
            f"{seconds:.1f}",
            f"{found.prompts:.2f}",
            f"{reading:.2f}" + f" {met(reading <= READING)}" * four,
            f"{found.rate:.1f}",
            f"{faster:.2f}" + f" {met(faster >= FASTER)}" * four,
            f"{found.planned:.0f}",
            f"{found.peak:.0f}",
        ]
    )


def figures(folder: Path, given: argparse.Namespace, name: str, model: Path, *more: str) -> Figures:
    """Run long and short captions of a model, and return what they take."""
    short, long = (
        _decode(folder, f"{name}-{tokens}", model, tokens, given.slots, *more)
        for tokens in (1, given.tokens)
    )
    steps = given.clips * (given.tokens - 1)
    stage = stages_of(long, time.time())[-1]
    few, many = (each["stages"][-1]["cpu_seconds"] for each in (short, long))
    rate, plan = steps / (many - few), stage.planned_bytes / MIB
    return Figures(few, rate, plan, stage.taken_bytes / MIB)


def _decode(
    folder: Path, name: str, model: Path, tokens: int, slots: int, *more: str
) -> dict[str, Any]:
    """Caption the clips in a store of this model's own, and return the run's record."""
    out, store = folder / f"out-{name}", folder / f"store-{name.rpartition('-')[0]}"
    options = ("--max-new-tokens", str(tokens), "--batch-size", str(slots), *more)
    clips = folder / "clips"
    return run_penstock("caption", clips, model, out, store, *options, OMP_NUM_THREADS="1")


def exported(model: Path, kind: str) -> Path:
    """Return the folder of a model's export of a kind, which is made unless it is there."""
    from stages.export import ExportJob
    from stages.export.run import run
    from stages.process.job import job_fields

    folder = model.with_name(f"{model.name}-{kind}")
    if not (folder / "config.json").exists():
        recipe = {"of": kind}
        job = ExportJob(
            model=str(model), recipe=recipe, folder=str(folder), kind=kind, parts=("language",)
        )
        run(job_fields(job), unheard())
    return folder


if __name__ == "__main__":
    main()
