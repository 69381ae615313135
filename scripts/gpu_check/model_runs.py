"""Runs with the model of a usual size: captions by each engine, and training of adapters."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from flows.results.status import stages_of
from scripts.gpu_check.card import stand_in
from scripts.gpu_check.model import CAPTION, NEW_TOKENS, TOKENS, of_model
from scripts.gpu_check.rows import Row, mib, one_line, row, skipped, told
from scripts.gpu_check.runs import Run, good_run, run
from scripts.gpu_check.setting import DEMO, Setting
from scripts.gpu_check.whole import PLAN_SHARE, peaks

STORE = "model"
"""The runs share frames and features."""
CHUNK_SECONDS = "1"
"""So that the samples have more chunks than a step has rows."""
ENGINES = (
    ("inflight", "8"),
    ("inflight-compiled", "8"),
    ("transformers", "8"),
    ("transformers", "64"),
)
"""Engines, and their batch sizes."""
STEPS, EXAMPLES = "2", 4


def _captions(setting: Setting, folder: Path) -> Iterator[Row]:
    for engine, batch in ENGINES:
        name = f"captions by {engine}" + f" in batches of {batch}" * (engine == "transformers")
        if engine == "inflight-compiled" and stand_in():
            yield skipped(name, "torch records no CUDA graph of a stand-in", "told")
            continue
        done = _run(setting, folder, engine, batch)
        if done.code:
            yield skipped(name, f"exit {done.code}: {one_line(done.exit_report)}", "told")
            continue
        stage = done.stage("decode")
        notes, rate = stage["notes"], stage["tokens"] / stage["seconds"]
        figures = {
            "seconds": done.seconds,
            "decode_seconds": stage["seconds"],
            "captions": len(done.captions),
            "tokens": stage["tokens"],
            **{key: notes[key] for key in ("rows", "slots", "cuda_graphs") if key in notes},
        }
        words = [f"{key} {notes[key]}" for key in ("rows", "slots", "cuda_graphs") if key in notes]
        found = f"{len(done.captions)} captions, {stage['tokens']:,} tokens in "
        found += f"{stage['seconds']:.1f} s of decode with loading ({rate:,.0f} tokens/s), "
        found += ", ".join([f"{done.seconds:.0f} s in all", *words])
        yield told(name, found, **figures)
        if engine == "transformers" and not stand_in():
            yield from peaks(int(batch), done.record)


def _run(setting: Setting, folder: Path, engine: str, batch: str) -> Run:
    # Another prompt, or the captions of the engine before would answer.
    prompt = f"Describe this video in detail. By {engine}, {batch}."
    return run(
        setting,
        f"model-{engine}-{batch}",
        *(str(setting.media), "--model", str(folder)),
        *(("--chunk", CHUNK_SECONDS) if setting.model == DEMO else ()),
        *("--engine", engine, "--batch-size", batch, "--prompt", prompt),
        *("--max-new-tokens", str(TOKENS.get(setting.size, NEW_TOKENS))),
        store=STORE,
    )


def _training(precision: str, setting: Setting, folder: Path) -> Iterator[Row]:
    """Steps of a LoRA as the command trains it: their peak beside the plan."""
    media = [path for path in sorted(setting.samples.iterdir()) if path.suffix in (".mp4", ".png")]
    examples = [{"media_path": str(path), "caption": CAPTION} for path in media[:EXAMPLES]]
    data = setting.folder / "examples.jsonl"
    data.write_text("".join(f"{json.dumps(each)}\n" for each in examples))
    options = ("--precision", precision, "--steps", STEPS, "--batch-size", "2", "--validate", "0")
    name, model = f"model-tuned-{precision}", ("--model", str(folder))
    done = good_run(setting, name, str(data), *model, *options, store=STORE, verb="tune")
    yield _tuned(f"steps of a LoRA, {precision}", done)


def _tuned(name: str, done: Run) -> Row:
    losses = json.loads((done.out / "tune.json").read_text())["losses"]
    record = json.loads((done.out / "run" / "run.json").read_text())
    stage = next(each for each in stages_of(record, time.time()) if each.name == "tune")
    taken, plan = stage.taken_bytes, stage.planned_bytes
    off = plan / taken - 1 if taken else 0.0
    found = f"{mib(taken)}, the plan is {off:+.1%} off; {done.seconds:.0f} s in all, "
    found += f"losses {', '.join(f'{loss:.2f}' for loss in losses)}"
    figures = {"bytes": taken, "planned_bytes": plan, "seconds": done.seconds, "losses": losses}
    good = stand_in() or abs(off) <= PLAN_SHARE
    return row(name, f"{mib(plan)} within {PLAN_SHARE:.0%}", found, good, **figures)


captions = of_model("captions by engine", _captions)
training = {
    name: of_model(f"steps of a LoRA, {name}", partial(_training, name))
    for name in ("native", "nf4")
}
