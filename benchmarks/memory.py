"""Whether a plan is right, a budget is kept to and what does not fit is survived, on a model with
the tensors of LLaVA-1.5-7B and random weights, through the real command line; prints tables, and
ends with 1 where something does not hold.

Under each budget clips are captioned with `--precision auto`, then again with another prompt, which
has to start where the first run ended, then with `--precision native`, which has to be complete or
to end with 3 and to say what would fit. It starts the command line and reads its records.

    python -m benchmarks.memory [--device cpu|cuda] [--shape 7b|small] [--clips 50]
                                [--budgets 4GiB,8GiB,16GiB] [--folder DIR] [--skip plan,nf4]
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks._common import MIB, heads
from benchmarks._llava import SEVEN_B, SMALL, TINY, Llava, build
from benchmarks._plan_cases import Case, table
from benchmarks._trial import (
    HEADS,
    Bed,
    Check,
    judge_auto,
    judge_native,
    judge_nf4,
    judge_plan,
)
from benchmarks.plan import Desk
from flows.checkpoint.precision import resolve_settings
from flows.console.units import parse_size
from flows.options.commands import CaptionConfig
from stages.models.inspection import describe
from stages.process.device import device_name

PROMPTS = ("What is to be seen?", "What is going on??", "What is happening?")
"""As long as each other, so that what a run takes is the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A model and what is tried on it."""

    llava: Llava
    frames: int
    """A clip."""
    tokens: int
    """A caption."""
    budgets: str
    """As given; `1.3x` is times the language half's weights as they are loaded."""
    nf4: str
    """The budget that nf4 has to live in."""
    planned: tuple[tuple[Literal["encode", "decode"], str, int], ...]
    """Stage, precision and batch for which the plan is held against a real process."""


SETTINGS = {
    "7b": Setting(
        llava=SEVEN_B,
        frames=2,
        tokens=16,
        budgets="4GiB,8GiB,16GiB",
        nf4="6GiB",
        planned=(
            ("encode", "bf16", 1),
            ("encode", "bf16", 8),
            ("decode", "bf16", 1),
            ("decode", "bf16", 8),
            ("decode", "int8", 4),
            ("decode", "nf4", 1),
            ("decode", "nf4", 4),
        ),
    ),
    "small": Setting(
        llava=SMALL,
        frames=2,
        tokens=8,
        budgets="0.8x,1.3x,2x",
        nf4="0.9x",
        planned=(
            ("encode", "bf16", 8),
            ("decode", "fp32", 2),
            ("decode", "bf16", 4),
            ("decode", "nf4", 4),
        ),
    ),
    "tiny": Setting(
        llava=TINY,
        frames=2,
        tokens=2,
        budgets="1.7x,3.5x",
        nf4="3.5x",
        planned=(("decode", "bf16", 1),),
    ),
}


def budgets_of(told: str, weights: int) -> list[int]:
    """Bytes of `8GiB,1.3x`; the latter are times `weights`."""
    return [
        round(float(each.removesuffix("x")) * weights)
        if each.endswith("x")
        else parse_size(each, "--memory")
        for each in told.split(",")
    ]


def try_budgets(bed: Bed, budgets: Sequence[int], clips: int) -> list[Check]:
    """All runs under each budget; prints a line of each."""
    found: list[Check] = []
    shrunk = False
    for budget in budgets:
        runs = [("first", "auto"), ("another prompt", "auto"), ("a third prompt", "native")]
        trials = []
        for prompt, (name, precision) in zip(PROMPTS, runs, strict=True):
            trials.append(bed.run(name, precision, budget, prompt, "store"))
            print(trials[-1].row(), flush=True)
        first, again, native = trials
        found += [*judge_auto(first, again, clips), judge_native(native, clips)]
        shrunk = shrunk or any(rung["stage"] != "frames" for rung in first.rungs)
    text = "the default batch exceeds a budget, and `run.json` shows the rungs"
    return [*found, Check(text=text, holds=shrunk)]


def try_plan(desk: Desk, shape: str, setting: Setting, device: str) -> Check:
    """Hold the plan against real processes; prints the table."""
    rows = []
    for stage, precision, batch in setting.planned:
        case = Case(
            shape=shape, stage=stage, precision=precision, batch=batch, frames=setting.frames
        )
        rows.append(desk.measure(case))
    print("\n".join(["", *table(rows), ""]), flush=True)
    return judge_plan(rows, device)


def measure(given: argparse.Namespace, folder: Path) -> list[Check]:
    """Everything that was not skipped; prints what is found."""
    from penstock_demo.clips import write_clips

    setting, device = SETTINGS[given.shape], "cuda:0" if given.device == "cuda" else "cpu"
    model = folder / "models" / given.shape
    if not (model / "config.json").exists():
        build(model, setting.llava, setting.tokens)
    profile = describe(model)
    halves = resolve_settings(CaptionConfig(sources=()), profile, device)
    weights = {half: settings[0].weight_bytes for half, settings in halves.items()}
    told = ", ".join(f"{half} {size / MIB:,.0f} MiB" for half, size in weights.items())
    print(f"LLaVA-shaped, {given.shape}: {told}; {given.clips} clips of {setting.frames} frames")
    found: list[Check] = []
    if "plan" not in given.skip:
        found.append(try_plan(Desk(folder, device), given.shape, setting, given.device))
    with tempfile.TemporaryDirectory(dir=folder) as made:
        clips = Path(made, "clips")
        write_clips(clips, given.clips, 7)
        (clips / "truth.jsonl").unlink()  # not a list of sources
        options = ("--frames", str(setting.frames), "--max-new-tokens", str(setting.tokens))
        bed = Bed(folder=Path(made), clips=clips, model=model, device=given.device, options=options)
        print(heads(HEADS), flush=True)
        if "nf4" not in given.skip:
            budget = budgets_of(setting.nf4, weights["language"])[0]
            trial = bed.run("first", "nf4", budget, PROMPTS[0], "nf4")
            print(trial.row(), flush=True)
            found.append(judge_nf4(trial, given.clips))
        budgets = budgets_of(given.budgets or setting.budgets, weights["language"])
        found += try_budgets(bed, budgets, given.clips)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", choices=("cpu", "cuda"), default=device_name().split(":")[0])
    options.add_argument("--shape", choices=SETTINGS, help="7b on a GPU, small elsewhere")
    options.add_argument("--clips", type=int, default=50)
    options.add_argument("--budgets", help="such as 8GiB, or 1.3x the language half's weights")
    options.add_argument("--folder", type=Path, help="where the model is kept for the next time")
    options.add_argument("--skip", default="", help="plan, nf4")
    given = options.parse_args(arguments)
    given.shape = given.shape or ("7b" if given.device == "cuda" else "small")
    with tempfile.TemporaryDirectory() as made:
        checks = measure(given, given.folder or Path(made))
    print("\n".join(["", heads("what | holds"), *(check.row() for check in checks)]))
    return 0 if all(check.holds for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
