"""Compares the seconds that a plan tells of each stage with those that it takes: prints ratios.

    python -m benchmarks.seconds [--clips 200] [--model MODEL | --large] [SOURCES…]

The plan is asked with the captions' true mean length, which nobody knows beforehand.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import penstock_demo
from benchmarks._models import LARGE, build
from flows.console.display import Display
from flows.console.lines import duration
from flows.job.prepare import prepare
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.planning.ladder import Rung
from flows.planning.machine import Machine, find_machine, measure
from flows.planning.plan import stage_seconds
from flows.planning.sizes import estimates
from flows.running.run import caption
from penstock_demo.clips import write_clips
from stages.process.device import device_name
from stages.process.memory import cores

TOKENS = 32
"""That a caption of the large model has."""


def compare(config: CaptionConfig, machine: Machine) -> list[float]:
    """Expected over measured seconds of each stage, printed and returned."""
    job = prepare(config, DirectLauncher(lambda *_: None))
    found = estimates(job)
    rungs = {s: Rung(stage=s, batch=config.batch_size) for s in ("encode", "decode")}
    rungs["frames"] = Rung(stage="frames", batch=cores())
    caption(config, Display(quiet=True))
    record = json.loads((Path(config.out) / "run.json").read_text(encoding="utf-8"))
    stages = {stage["name"]: stage for stage in record["stages"]}
    made = stages["decode"]
    new = round(made["tokens"] / max(1, made["items"])) + 1
    message = stage_seconds(job, rungs, found, machine, new)
    ratios = []
    for name, expected in message.items():
        took = stages[name]["seconds"]
        if expected is None or not stages[name]["items"]:
            print(f"  {name:8s} told {expected}, took {duration(took)}")
            continue
        ratios.append(expected / took)
        items = stages[name]["items"]
        print(
            f"  {name:8s}{items:6d} items  told {duration(expected):>9s}  took "
            f"{duration(took):>9s}  ratio {expected / took:.2f}"
        )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--large", action="store_true", help="a random model of 0.5 billion")
    parser.add_argument("--clips", type=int, default=200, help="drawn where no source is given")
    parser.add_argument("--precision", default="native")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--again", action="store_true", help="measure the machine anew")
    given = parser.parse_args()
    device = device_name()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        known, _ = find_machine(device)
        if known is None or given.again:
            known = measure(device, here / "store", DirectLauncher(lambda *_: None))
        sources = given.sources or [str(penstock_demo.CLIPS)]
        if not given.sources and given.clips:
            write_clips(here / "clips", given.clips, seed=5)
            sources.append(str(here / "clips"))
        config = CaptionConfig(
            sources=tuple(sources),
            model=given.model,
            out=str(here / "out"),
            store=str(here / "store"),
            precision=given.precision,
            batch_size=given.batch_size,
        )
        if given.large:
            built = build(here / "large", LARGE, TOKENS)
            config = replace(config, model=str(built), max_new_tokens=TOKENS)
        print(f"{config.model} in {given.precision}, batches of {given.batch_size}")
        ratios = compare(config, known)
        worst = max(max(ratio, 1 / ratio) for ratio in ratios)
        print(f"worst ratio {worst:.2f}")


if __name__ == "__main__":
    main()
