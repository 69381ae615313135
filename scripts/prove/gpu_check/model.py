"""A model of a usual size on the device, by default with random weights: how it is loaded, which
engine and how many rows it gets, and what its steps and prompts cost."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from flows.core.checkpoint.precision import no_bfloat16
from flows.outputs.record.run_read import load_record
from flows.outputs.run_status import stages_of
from scripts.prove.gpu_check.driver import stand_in
from scripts.prove.gpu_check.halves import Bench, copy_rate, timed
from scripts.prove.gpu_check.rows import (
    DEMO,
    TINY,
    Row,
    Setting,
    message_of,
    mib,
    one_line,
    row,
    skipped,
)
from scripts.prove.gpu_check.steps import SAME_BITS, STEP_ROWS, recorded_steps, steps_of, work_of
from scripts.prove.gpu_check.whole import PLAN_SHARE, Run, good_run, peaks, run
from stages.models import resolve_model
from stages.process.device import device_free_bytes
from stages.process.host_memory import host_free_bytes
from tests.support.builders import models as _models
from tests.support.builders.common import unheard
from tests.support.builders.models import Shape, build

if TYPE_CHECKING:
    from stages.decode.engines.inflight.prefill import PrefilledSequence


SHAPES = {
    "3b": Shape(layers=36, width=2048, tower_layers=32, tower_width=1280, vocabulary=151936),
    "0.5b": _models.LARGE,
    TINY: _models.TINY,
}
"""Sizes; the first that fits is checked unless one is named."""
TOKENS = {TINY: 8}
"""New tokens of each caption; NEW_TOKENS of the other sizes."""
NEW_TOKENS = 64
LONG, LONG_TINY = 1500, 150
"""Tokens of the longer prompt."""
GENERATED_TOKENS, LAYERED_TOKENS = (8, 24), (2, 6)
"""New tokens of two generations whose times are compared: with the half on the device, and with its
layers copied for each token."""
RATE = 1e-3
CAPTION = "A red circle moves to the left, and a blue square turns."
"""What adapters are trained on."""
ROOM = 1.6
"""Memory that has to be free, in parts of the bytes of all weights: also those of a step."""
PRECISIONS: dict[str, tuple[str, dict[str, str]]] = {
    "bf16": ("bfloat16", {}),
    "fp16": ("float16", {}),
    "nf4": ("bfloat16", {"precision": "nf4"}),
}
"""Precision → type of the numbers, and how the half is held."""

STORE = "model"
"""The runs share frames and features."""
CHUNK_SECONDS = "1"
"""So that the samples have more chunks than a step has rows."""
ENGINES = (
    ("inflight", "8"),
    ("transformers", "8"),
    ("transformers", "64"),
)
"""Engines, and their batch sizes."""
STEPS, EXAMPLES = "2", 4


class TooSmall(Exception):
    """No size of the random model fits this machine."""


def lacking(setting: Setting, shape: Shape) -> str:
    """Return what the machine has too little of for that shape; empty if it has enough."""
    layer = 14.5 * shape.width**2  # query and output whole, keys and values a quarter each
    tower = shape.tower_layers * 13 * shape.tower_width**2
    expected = 2 * ROOM * (shape.layers * layer + shape.vocabulary * shape.width + tower)
    free = {
        "GPU memory": device_free_bytes(setting.device)[0] or expected,  # or the driver tells none
        "RAM": host_free_bytes(),
        "disk space": shutil.disk_usage(setting.folder).free,
    }
    short = [f"{mib(left)} of {name}" for name, left in free.items() if left < expected]
    return f"the model needs {mib(expected)}, free are {' and '.join(short)}" if short else ""


def folder_of(setting: Setting) -> Path:
    """Return the checkpoint: of the model that the setting names, else of random weights, which is
    written if there is none yet. Raises TooSmall."""
    if setting.model != DEMO:
        return resolve_model(Path(setting.model), None)
    for size in [setting.size] if setting.size else ("3b", "0.5b"):
        folder = setting.folder / f"random-{size}"
        reason = "" if folder.exists() else lacking(setting, SHAPES[size])
        if not reason:
            return folder if folder.exists() else _built(setting, size, folder)
    raise TooSmall(reason)


def _built(setting: Setting, size: str, folder: Path) -> Path:
    """Write the checkpoint, whole or not at all. Its weights are made on the device: random
    numbers of a CPU would take a minute."""
    import torch

    begun = folder.with_name(f"{folder.name}.begun")
    shutil.rmtree(begun, ignore_errors=True)
    with torch.device(setting.device):
        build(begun, SHAPES[size], TOKENS.get(size, NEW_TOKENS))
    return begun.rename(folder)


Rows = Callable[[Setting, Path], Iterator[Row]]


def of_model(name: str) -> Callable[[Rows], Callable[[Setting], Iterator[Row]]]:
    """Make a check of a function that looks at the model; skipped where the random one does not
    fit."""

    def decorate(rows: Rows) -> Callable[[Setting], Iterator[Row]]:
        def check(setting: Setting) -> Iterator[Row]:
            try:
                folder = folder_of(setting)
            except TooSmall as error:
                yield skipped(name, str(error))
            else:
                yield from rows(setting, folder)

        return check

    return decorate


@of_model("model")
def found(setting: Setting, folder: Path) -> Iterator[Row]:
    """How large the model is."""
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    yield message_of("model", f"{folder.name}: {held / 1e9:.2f} GB", model=folder.name, bytes=held)


@of_model("load of halves")
def loads(setting: Setting, folder: Path) -> Iterator[Row]:
    """How fast halves are loaded from the page cache, and bytes copied to the card."""
    import torch

    bench = Bench(str(folder), setting.device, "bfloat16")
    for part in ("vision", "language"):
        taken, held = [], 0
        for _ in range(2):
            began = time.perf_counter()
            half = bench.half(part)
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
            held = sum(each.nbytes for each in half.parameters() if each.device.type != "meta")
            del half
        rate = held / taken[-1]
        found = f"{taken[0]:.2f} s, then {taken[1]:.2f} s: {rate / 1e9:.2f} GB/s of {mib(held)}"
        figures = {"seconds": taken, "bytes": held, "bytes_per_second": rate}
        yield message_of(f"load of the {part} half, bf16", found, **figures)
    yield _unpinned(bench)
    rates = {"pinned": copy_rate(setting, True), "loose": copy_rate(setting, False)}
    found = ", ".join(f"{rate / 1e9:.1f} GB/s {name}" for name, rate in rates.items())
    yield message_of("copies to the card", found, **rates)
    large = Bench(str(folder), setting.device, "bfloat16", large=True)
    half = large.half("vision")
    with torch.inference_mode():
        work = work_of(lambda: large.encode(half))
    yield message_of("a clip of noise through the vision half", work.words, **asdict(work))


def _unpinned(bench: Bench) -> Row:
    """Compare the weights of a half read through pinned memory with those read without, and the
    times."""
    import torch

    from stages.models.halves import load

    def loaded() -> float:
        began = time.perf_counter()
        halves.append(bench.half("vision"))
        torch.cuda.synchronize()
        return time.perf_counter() - began

    halves: list[Any] = []
    pinned = loaded()
    with mock.patch.object(load, "pinned_reads", lambda _: contextlib.nullcontext()):
        plain = loaded()
    one, other = (half.state_dict() for half in halves)
    same = one.keys() == other.keys() and all(torch.equal(one[at], other[at]) for at in one)
    found = f"{'same' if same else 'other'} bits; {pinned:.2f} s pinned, {plain:.2f} s without"
    return row("weights of the vision half through pinned memory", "same bits", found, same)


@of_model("streamed halves")
def streamed(setting: Setting, folder: Path) -> Iterator[Row]:
    """How fast the layers of streamed halves are copied, and what that costs."""
    import torch

    from stages.models.halves.generate import offloaded_bytes
    from stages.models.streaming.load import run_calls

    bench = Bench(str(folder), setting.device, "auto")
    half = bench.half("vision", offload=True)

    def call() -> None:
        run_calls(half, [lambda: bench.encode(half)])
        torch.cuda.synchronize()

    seconds, fetched = timed(call), offloaded_bytes(half)
    found = f"{fetched / seconds / 1e9:.2f} GB/s, {mib(fetched)} and {1000 * seconds:.0f} ms a pass"
    yield message_of("layers of a streamed encoder", found, seconds=seconds, bytes=fetched)
    del half
    half = bench.half("language", offload=True)
    fetched = offloaded_bytes(half)
    with torch.inference_mode():
        seconds = _seconds_per_token(bench, half, *LAYERED_TOKENS)
    found = f"{fetched / seconds / 1e9:.2f} GB/s, {mib(fetched)}, {1000 * seconds:.0f} ms a token"
    yield message_of("language half layer by layer, one row", found, seconds=seconds, bytes=fetched)


def _dtype(precision: str, setting: Setting) -> str:
    """Return the type of the numbers in a precision; empty if the card cannot compute it."""
    dtype, how = PRECISIONS[precision]
    if dtype == "bfloat16" and no_bfloat16(setting.device):
        return "float16" if how else ""
    return dtype


NO_BFLOAT16 = "no bf16 before Ampere"


def _reader(bench: Bench, half: Any) -> Callable[[str], "PrefilledSequence"]:
    """Return what prefills a prompt about the bench's clip."""
    from stages.decode.engines.inflight.prefill import prefill_row

    def read(prompt: str) -> "PrefilledSequence":
        inputs = bench.inputs(half, prompt)
        return prefill_row(half, inputs, bench.features, max_new_tokens=NEW_TOKENS)

    return read


def _recorded(precision: str, setting: Setting, folder: Path) -> Iterator[Row]:
    """Recorded steps beside plain ones, and the engine check's own comparison, in one precision."""
    import torch

    from stages.decode.engines.inflight.pool_shape import PoolLayout
    from stages.decode.engines.inflight.slot_check import (
        LONGER_SUFFIX,
        recorded_difference,
        reference_of,
    )

    if not (dtype := _dtype(precision, setting)):
        yield skipped(f"recorded steps, {precision}", NO_BFLOAT16)
        return
    bench, rows = Bench(str(folder), setting.device, dtype), max(STEP_ROWS)
    with torch.inference_mode():
        half = bench.half("language", **PRECISIONS[precision][1])
        read = _reader(bench, half)
        short = read("x")
        yield from recorded_steps(setting, short, precision)
        reference = reference_of(half, bench.inputs(half), bench.features)
        longer, layout = read(f"x{LONGER_SUFFIX}"), PoolLayout(rows=rows, fixed=True)
        reason = recorded_difference(layout, rows, short, longer, reference)
    name = f"engine check of recorded steps, {precision}"
    yield row(name, SAME_BITS, one_line(reason) or SAME_BITS, not reason)


def _decoding(precision: str, setting: Setting, folder: Path) -> Iterator[Row]:
    """The engine check, and what steps and prompts cost, in one precision."""
    import torch

    from stages.decode.engines.inflight.pool_shape import GPU_STEP_ROWS
    from stages.decode.engines.inflight.slot_check import LONGER_SUFFIX, choose_layout, reference_of

    if not (dtype := _dtype(precision, setting)):
        yield skipped(f"engine check, {precision}", NO_BFLOAT16)
        return
    bench = Bench(str(folder), setting.device, dtype)
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        half = bench.half("language", **PRECISIONS[precision][1])
        read = _reader(bench, half)
        reference = reference_of(half, bench.inputs(half), bench.features)
        short, longer = read("x"), read(f"x{LONGER_SUFFIX}")
        found = choose_layout(max(STEP_ROWS), short, longer, reference, GPU_STEP_ROWS)
        rows = 0 if found.reason else found.layout.rows
        words = f"transformers: {found.reason}" if found.reason else f"{rows} rows"
        words += f"; {found.rejected}" * bool(found.rejected)
        yield message_of(f"engine check, {precision}", one_line(words), rows=rows)
        tokens_each = len(bench.processor.tokenizer("word " * 100)["input_ids"]) / 100
        long = LONG_TINY if setting.size == TINY else LONG
        for prompt in ("x", "word " * round(long / tokens_each)):
            tokens, work = read(prompt).tokens, work_of(partial(read, prompt))
            name = f"a prompt of {tokens:,} tokens, {precision}"
            yield message_of(name, work.words, tokens=tokens, **asdict(work))
        yield _generated(bench, half, precision)
        yield from steps_of(short, precision)
    peak = torch.cuda.max_memory_allocated()
    yield message_of(f"most memory of these, {precision}", mib(peak), bytes=peak)


def _generated(bench: Bench, half: Any, precision: str) -> Row:
    """Milliseconds a token of `generate`, one row."""
    ms = 1000 * _seconds_per_token(bench, half, *GENERATED_TOKENS)
    return message_of(f"generate, one row, {precision}", f"{ms:.2f} ms a token", ms=ms)


def _seconds_per_token(bench: Bench, half: Any, few: int, many: int) -> float:
    """Return the seconds of a token of `generate`, one row, without those of the prompt."""
    import torch

    def seconds(tokens: int) -> float:
        def call() -> None:
            bench.tokens(half, max_new_tokens=tokens, min_new_tokens=tokens)
            torch.cuda.synchronize()

        return timed(call, repeats=2)

    return (seconds(many) - seconds(few)) / (many - few)


@of_model("steps of a LoRA, fp16")
def fp16_training(setting: Setting, folder: Path) -> Iterator[Row]:
    """Steps of a LoRA on a half in fp16, which the command trains on cards before Ampere only."""
    import math

    import torch

    from stages.models.encoding.batch import encode_batches
    from stages.tune import ADAMW
    from stages.tune.adapter import add_adapter
    from stages.tune.training import Trainer, make_example, optimizer_of

    bench = Bench(str(folder), setting.device, "float16")
    with torch.inference_mode():
        ((record,),) = encode_batches(bench.half("vision"), [[bench.prepared]])
    torch.cuda.reset_peak_memory_stats()
    half = bench.half("language")
    request = "What moves?", CAPTION
    example = make_example(half, bench.processor, lambda: record, *request, number=0)
    trained = add_adapter(half, 16, 0)
    half.train()
    optimizer = optimizer_of(ADAMW, trained, RATE)
    trainer = Trainer(half, bench.processor, trained, optimizer, unheard(), 2)
    losses, seconds = list[float](), 0.0
    for number in range(1, 4):
        began = time.perf_counter()
        losses.append(trainer.step([example] * 2, RATE, number))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated()
    found = f"losses {', '.join(f'{loss:.2f}' for loss in losses)}; {seconds:.2f} s, {mib(peak)}"
    good = all(map(math.isfinite, losses))
    figures = {"losses": losses, "seconds": seconds, "bytes": peak}
    yield row("steps of a LoRA, fp16", "finite losses", found, good, **figures)


@of_model("captions by engine")
def captions(setting: Setting, folder: Path) -> Iterator[Row]:
    for engine, batch in ENGINES:
        name = f"captions by {engine}" + f" in batches of {batch}" * (engine == "transformers")
        done = _run(setting, folder, engine, batch)
        if done.code:
            yield skipped(name, f"exit {done.code}: {one_line(done.exit_report)}", "reported")
            continue
        stage = done.stage("decode")
        rate = stage.tokens / stage.seconds
        of_slots: dict[str, Any] = {
            key: stage.notes[key] for key in ("rows", "slots") if key in stage.notes
        }
        figures = {
            "seconds": done.seconds,
            "decode_seconds": stage.seconds,
            "captions": len(done.captions),
            "tokens": stage.tokens,
            **of_slots,
        }
        words = [f"{key} {count}" for key, count in of_slots.items()]
        found = f"{len(done.captions)} captions, {stage.tokens:,} tokens in "
        found += f"{stage.seconds:.1f} s of decode with loading ({rate:,.0f} tokens/s), "
        found += ", ".join([f"{done.seconds:.0f} s in all", *words])
        yield message_of(name, found, **figures)
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
    record = load_record(done.out / "run")
    stage = next(each for each in stages_of(record, time.time()) if each.name == "tune")
    taken, plan = stage.taken_bytes, stage.planned_bytes
    off = plan / taken - 1 if taken else 0.0
    found = f"{mib(taken)}, the plan is {off:+.1%} off; {done.seconds:.0f} s in all, "
    found += f"losses {', '.join(f'{loss:.2f}' for loss in losses)}"
    figures = {"bytes": taken, "planned_bytes": plan, "seconds": done.seconds, "losses": losses}
    good = stand_in() or abs(off) <= PLAN_SHARE
    return row(name, f"{mib(plan)} within {PLAN_SHARE:.0%}", found, good, **figures)


decoding = {
    name: of_model(f"engine check, {name}")(partial(_decoding, name)) for name in PRECISIONS
}
recorded = {
    name: of_model(f"recorded steps, {name}")(partial(_recorded, name)) for name in PRECISIONS
}
training = {
    name: of_model(f"steps of a LoRA, {name}")(partial(_training, name))
    for name in ("native", "nf4")
}
