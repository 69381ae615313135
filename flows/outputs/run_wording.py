"""The words for what a run made, which its last line, `status` and the report share."""

from collections.abc import Iterator, Mapping
from typing import Any

from artifacts.texts.edits import DECISIONS
from artifacts.wording import counted
from flows.core.console.lines import duration, size
from flows.core.job.summary import computed_by
from flows.core.pipelines import LABELS, STAGES, product_of
from flows.outputs.record.run_record import current_runs, sum_of
from flows.outputs.record.stage_record import stages_in

LISTED_WARNINGS = {kind: f" (`warnings` in {kind}.jsonl)" for kind in ("captions", LABELS)}
"""Where the warnings of a run's files are, by the kind of its products."""


def description_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines that describe a run: model, device, rungs, flow run and results so far."""
    plan, media = record["plan"], record["media"]
    if plan:
        precision = ", ".join(f"{half} {kind}" for half, kind in plan["precision"].items())
        how = f"{plan['device']}, {precision}, batches of {plan['batch_size']}"
        yield f"{plan['model']} on {how if precision else 'a server'}"
    for name, half in plan.get("halves", {}).items():
        yield f"{name} half: {size(half['bytes'])} of weights, {computed_by(half)}"
    if plan.get("in_waves"):
        yield plan["in_waves"]
    of_all = [taken for taken in record["rungs"] if taken["reason"] != "item alone"]
    yield from map(rung_line, {taken["stage"]: taken for taken in of_all}.values())
    if many := record.get("partitions"):
        failed = f", {many['failed']} failed" if many["failed"] else ""
        yield f"{many['done']} of {counted(many['total'], 'partition')} done{failed}"
    if record["prefect"]:
        yield f"flow run {record['prefect']['name']} ({record['prefect']['id']})"
    still = f", {media['open']} not read yet" if media["open"] else ""
    if warned := media.get("warned"):
        listed = LISTED_WARNINGS.get(kind_of(record), "")
        still += f", {warned} with warnings{listed}"
    edits = "".join(f", {record[n]:,} {n}" for n in DECISIONS if record.get(n))
    cut = f", {record['cut']} cut at the token limit" if record["cut"] else ""
    texts = "".join(f", {texts_line(texts)}" for texts in record["texts"])
    count, kind = written(record)
    noun = " or ".join(plural.removesuffix("s") for plural in kind.split(" or "))
    captions = f"{counted(count, noun)} written{edits}{cut}{texts}"
    if record["summaries"]:
        captions += f", {counted(record['summaries'], 'summary')}"
    yield f"{counted(media['total'], 'file')}, {media['failed']} failed{still}; {captions}"
    if runs := runs_line(record):
        yield runs


def made_text(entry: Mapping[str, Any]) -> str:
    """Return how many items the stages of a run made, such as `frames 12, encode 12`."""
    return ", ".join(f"{name} {count:,}" for name, count in entry["items"].items() if count)


def runs_line(record: Mapping[str, Any]) -> str:
    """Return what all runs into the folder took and made, such as `all 3 runs: 2 min 05 s, made
    frames 12`; empty if the last run alone made something."""
    total = sum_of(current_runs(record))
    if total is None or (total["runs"] == 1 and total["started"] == record["started"]):
        return ""
    name = f"all {total['runs']} runs" if total["runs"] > 1 else "an earlier run"
    peaks = {"host": total["peak_host_bytes"], "GPU": total["peak_device_bytes"]}
    texts = [f"{size(peak)} {where}" for where, peak in peaks.items() if peak]
    parts = [duration(total["seconds"]), f"made {made_text(total)}"]
    parts += [f"at most {', '.join(texts)}"] if texts else []
    return f"{name}: {', '.join(parts)}; the table is of the last run"


def kind_of(record: Mapping[str, Any]) -> str:
    """Return the kind of product of a run."""
    return product_of(STAGES[stage.name] for stage in stages_in(record))


def written(record: Mapping[str, Any]) -> tuple[int, str]:
    """Return the number of products that a run wrote, and their name."""
    kind = kind_of(record)
    named = "labelled images or frames" if kind == LABELS else kind
    return record["captions" if kind == "captions" else "rows"], named


def texts_line(texts: Mapping[str, Any]) -> str:
    """Return a line such as `.txt: 35 written, 3 edited by users kept`."""
    labels = {
        "written": "written",
        "kept": "edited by users kept",
        "earlier": "from an earlier run",
        "others": "not from this run",
    }
    parts = [f"{texts[name]} {label}" for name, label in labels.items() if texts[name]]
    where = " beside the media" if texts["beside"] else ""
    return f".{texts['format']}{where}: {', '.join(parts) or 'none'}"


def rung_line(taken: Mapping[str, Any]) -> str:
    """Return a line such as `decode runs with batch 2, bf16 (out of memory: CUDA out of memory
    …)`."""
    why = ": ".join(filter(None, (taken["reason"], taken["error"])))
    return f"{taken['stage']} runs with {taken['name']} ({why})"
