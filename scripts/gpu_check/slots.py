"""Decoding in slots on the device: whether the engine check passes, and whether a caption is the
same whatever is beside it."""

from collections.abc import Iterator

from scripts.gpu_check.rows import Row, one_line, row, skipped
from scripts.gpu_check.runs import Run, good_run
from scripts.gpu_check.setting import Setting
from scripts.gpu_check.whole import alike

PRECISIONS = ("fp32", "native")
FEW = "3"
"""Chunks of a run beside which there are fewer."""


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


def _run(setting: Setting, precision: str, *options: str) -> Run:
    if precision == "native" and not options:
        return good_run(setting, "gpu")  # which other checks share
    name = f"gpu-slots-{precision}" + "".join(options)
    return good_run(setting, name, "--precision", precision, *options)
