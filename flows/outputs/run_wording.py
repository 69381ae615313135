"""The words for what a run made, which its last line, `status` and the report share."""

from collections.abc import Iterator

from artifacts.texts.edits import DECISIONS
from artifacts.wording import counted
from flows.core.console.lines import duration, size
from flows.core.job.plan_record import RungRecord
from flows.core.pipelines import LABELS, STAGES, product_of
from flows.outputs.record.run_record import RunEntry, RunRecord, TextsRecord, sum_of

LISTED_WARNINGS = {kind: f" (`warnings` in {kind}.jsonl)" for kind in ("captions", LABELS)}
"""Where the warnings of a run's files are, by the kind of its products."""


def description_lines(record: RunRecord) -> Iterator[str]:
    """Yield lines that describe a run: model, device, rungs, flow run and results so far."""
    plan, media = record.plan, record.media
    if plan.model:
        precision = ", ".join(f"{half} {kind}" for half, kind in plan.precision.items())
        how = f"{plan.device}, {precision}, batches of {plan.batch_size}"
        yield f"{plan.model} on {how if precision else 'a server'}"
    for name, half in plan.halves.items():
        yield f"{name} half: {size(half.bytes)} of weights, {half.computed_by}"
    if plan.in_waves:
        yield plan.in_waves
    of_all = [taken for taken in record.rungs if taken.reason != "item alone"]
    yield from map(rung_line, {taken.stage: taken for taken in of_all}.values())
    if many := record.partitions:
        failed = f", {many.failed} failed" if many.failed else ""
        yield f"{many.done} of {counted(many.total, 'partition')} done{failed}"
    if record.prefect:
        yield f"flow run {record.prefect.name} ({record.prefect.id})"
    still = f", {media.open} not read yet" if media.open else ""
    if media.warned:
        still += f", {media.warned} with warnings{LISTED_WARNINGS.get(kind_of(record), '')}"
    decided = {name: getattr(record, name) for name in DECISIONS}
    edits = "".join(f", {count:,} {name}" for name, count in decided.items() if count)
    cut = f", {record.cut} cut at the token limit" if record.cut else ""
    texts = "".join(f", {texts_line(texts)}" for texts in record.texts)
    count, kind = written(record)
    noun = " or ".join(plural.removesuffix("s") for plural in kind.split(" or "))
    captions = f"{counted(count, noun)} written{edits}{cut}{texts}"
    if record.summaries:
        captions += f", {counted(record.summaries, 'summary')}"
    yield f"{counted(media.total, 'file')}, {media.failed} failed{still}; {captions}"
    if runs := runs_line(record):
        yield runs


def made_text(entry: RunEntry) -> str:
    """Return how many items the stages of a run made, such as `frames 12, encode 12`."""
    return ", ".join(f"{name} {count:,}" for name, count in entry.items.items() if count)


def runs_line(record: RunRecord) -> str:
    """Return what all runs into the folder took and made, such as `all 3 runs: 2 min 05 s, made
    frames 12`; empty if the last run alone made something."""
    total = sum_of(record.current_runs())
    if total is None or (total.runs == 1 and total.started == record.started):
        return ""
    name = f"all {total.runs} runs" if total.runs > 1 else "an earlier run"
    peaks = {"host": total.peak_host_bytes, "GPU": total.peak_device_bytes}
    texts = [f"{size(peak)} {where}" for where, peak in peaks.items() if peak]
    parts = [duration(total.seconds), f"made {made_text(total)}"]
    parts += [f"at most {', '.join(texts)}"] if texts else []
    return f"{name}: {', '.join(parts)}; the table is of the last run"


def kind_of(record: RunRecord) -> str:
    """Return the kind of product of a run."""
    return product_of(STAGES[stage.name] for stage in record.stages)


def written(record: RunRecord) -> tuple[int, str]:
    """Return the number of products that a run wrote, and their name."""
    kind = kind_of(record)
    named = "labelled images or frames" if kind == LABELS else kind
    return record.captions if kind == "captions" else record.rows, named


def texts_line(texts: TextsRecord) -> str:
    """Return a line such as `.txt: 35 written, 3 edited by users kept`."""
    counts = {
        "written": texts.written,
        "edited by users kept": texts.kept,
        "from an earlier run": texts.earlier,
        "not from this run": texts.others,
    }
    parts = [f"{count} {label}" for label, count in counts.items() if count]
    where = " beside the media" if texts.beside else ""
    return f".{texts.format}{where}: {', '.join(parts) or 'none'}"


def rung_line(taken: RungRecord) -> str:
    """Return a line such as `decode runs with batch 2, bf16 (out of memory: CUDA out of memory
    …)`."""
    why = ": ".join(filter(None, (taken.reason, taken.error)))
    return f"{taken.stage} runs with {taken.name} ({why})"
