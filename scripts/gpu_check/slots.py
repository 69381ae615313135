"""Decoding in slots on the device: whether the trial seats the half, whether a caption is the same
whatever is beside it, and how fast both engines are; a step as it is, and compiled."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scripts.gpu_check.halves import Bench, timed
from scripts.gpu_check.rows import Row, one_line, row, skipped
from scripts.gpu_check.runs import Run, good_run
from scripts.gpu_check.setting import DEMO, Setting
from scripts.gpu_check.whole import alike

if TYPE_CHECKING:
    from stages.decode.engines.inflight.compiled import CompiledStep

PRECISIONS = ("fp32", "bf16")
FEW = "3"
"""Chunks of a run beside which there are fewer."""
FEWEST, MOST = 8, 64
"""Rows of a step."""
TOKENS, STEPS = 64, 16
"""Columns that are added to a prompt's, and steps that are made."""


def trial(setting: Setting) -> Iterator[Row]:
    """Which engine serves the demo's language half, and why; either may be right."""
    for precision in PRECISIONS:
        notes = _run(setting, precision).stage("decode")["notes"]
        why = notes.get("engine_reason") or "a row's logits are the same whatever is beside it"
        found = f"{notes['engine']}: {one_line(why)}"
        if rows := notes.get("rows"):
            found += f"; {rows} rows a step, {one_line(notes.get('rows_reason', 'the most'))}"
        yield row(f"engine of decode in {precision}", "told", found, bool(notes["engine"]))


def bits(setting: Setting) -> Iterator[Row]:
    """A few captions beside the same ones among all, where slots serve."""
    for precision in PRECISIONS:
        name = f"captions in {precision}, a few beside all"
        every = _run(setting, precision)
        if every.stage("decode")["notes"]["engine"] != "inflight":
            yield skipped(name, "batches serve here, which decide bytes", "all equal")
            continue
        few = _run(setting, precision, "--limit", FEW)
        both = every.captions.keys() & few.captions.keys()
        yield alike(name, {key: every.captions[key] for key in both}, few.captions)


def engines(setting: Setting) -> Iterator[Row]:
    """Captions a second of both engines; figures, of which no rule says what they should be."""
    for engine in ("transformers", "inflight"):
        run = _asked(setting, f"gpu-{engine}", "--engine", engine)
        stage = run.stage("decode")
        rate = len(run.captions) / stage["seconds"]
        found = f"{rate:.2f} captions/s, {stage['tokens']:,} tokens, loading included"
        yield row(f"decode by {engine}", "told", found, rate > 0)


def steps(setting: Setting) -> Iterator[Row]:
    """A step of the slots as it is, and compiled; whether both say the same."""
    import torch

    from stages.decode.engines.inflight.compiled import CompiledStep, graph_note

    bench = Bench(setting.model, setting.device, "bfloat16")
    with torch.inference_mode():
        few, less = _stepped(bench, None, FEWEST)
        plain, seconds = _stepped(bench, None, MOST)
        yield row(f"a step of {FEWEST} slots", "told", f"{less * 1000:.1f} ms", less > 0)
        found = f"{seconds * 1000:.1f} ms, x {MOST / FEWEST * less / seconds:.1f} tokens per second"
        yield row(f"a step of {MOST} slots", "told", found, seconds > 0)
        apart = float((few - plain).abs().max())
        yield row(f"logits of {FEWEST} and {MOST} rows", "told", f"{apart:.1e} apart", True)
        name = f"a step of {MOST} slots, compiled"
        began = time.perf_counter()
        try:
            made, faster = _stepped(bench, CompiledStep(setting.device), MOST)
        except Exception as error:  # whatever a compiler, or a machine without one, says
            yield skipped(name, f"{type(error).__name__}: {one_line(str(error))}", "told")
            return
        took = time.perf_counter() - began
    found = f"{faster * 1000:.1f} ms, x {seconds / faster:.2f}, {took:.0f} s with compiling"
    found += "".join(f"; CUDA graphs {note}" for note in graph_note(setting.device).values())
    yield row(name, "told", found, faster > 0)
    apart = float((made - plain).abs().max())
    yield row("logits of a compiled step", "told", f"{apart:.1e} from those as it is", True)


def _stepped(bench: Bench, compiled: "CompiledStep | None", rows: int) -> tuple[Any, float]:
    """The logits of a row after some steps beside others, and the seconds of one step."""
    import torch

    from stages.decode.engines.inflight.pool import SlotPool
    from stages.decode.engines.inflight.pool_shape import PoolShape, columns_for
    from stages.decode.engines.inflight.prefill import prefill_row

    half = bench.half("language")
    read = prefill_row(half, bench.inputs(half), bench.features, max_new_tokens=TOKENS)
    columns = columns_for(read.tokens + TOKENS)
    read = replace(read, step=compiled.of(read.model) if compiled else None)
    pool = SlotPool(read, PoolShape(rows=rows, slots=rows, columns=columns))
    for slot in range(rows):
        pool.put(slot, read, read.logits.argmax(-1, keepdim=True))

    def step() -> Any:
        logits = pool.step()
        pool.set_tokens(logits.argmax(-1))
        if logits.device.type == "cuda":
            torch.cuda.synchronize()
        return logits

    said = [step()[0].cpu() for _ in range(STEPS)]
    return torch.stack(said), timed(step)


def _run(setting: Setting, precision: str, *options: str) -> Run:
    name = f"gpu-slots-{precision}" + "".join(options)
    return good_run(setting, name, "--precision", precision, *options)


def _asked(setting: Setting, name: str, *options: str) -> Run:
    asked = [] if setting.model == DEMO else [str(setting.source), "--model", setting.model]
    return good_run(setting, f"{name}-asked", *asked, *options)
