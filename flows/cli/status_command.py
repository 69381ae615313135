"""`penstock status`: how a run stands, from its record, while it works and after."""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.display import duration, printable, size
from flows.run_record import load_record
from flows.standing import StageStanding, advice, standing

COLUMNS = "{:8s}{:>9s}{:>8s}{:>10s}{:>13s}{:>11s}{:>13s}{:>13s}  {}"


def status_command(given: argparse.Namespace) -> int:
    """Returns 0 unless there is no run. Raises UsageError, EnvironmentFault."""
    record = load_record(Path(given.out))
    stages = standing(record, time.time())
    if given.json:
        stood = {stage.name: asdict(stage) for stage in stages}
        record["stages"] = [{**entry, **stood[entry["name"]]} for entry in record["stages"]]
        print(json.dumps({**record, "advice": advice(record)}, indent=1))
        return 0
    for line in lines(record, stages):
        print(printable(line))
    return 0


def lines(record: Mapping[str, Any], stages: list[StageStanding]) -> Iterator[str]:
    """The record for people."""
    yield headline(record)
    if advice(record):
        yield advice(record)
    yield from what(record)
    yield COLUMNS.format(
        "stage", "done", "failed", "pending", "last minute", "overall", "time left", "worked",
        "peak memory",
    )  # fmt: skip
    yield from map(row, stages)
    for place, path in {**record["outputs"], "store": record["plan"].get("store", "")}.items():
        if path:
            yield f"{place:10s}{path}"
    for failure in record["failures"]:
        yield f"failed: {failure['media_path']}: {failure['message']}. {failure['hint']}"
    rest = record["media"]["failed"] - len(record["failures"])
    if rest > 0:
        yield f"… and {rest} more in {record['outputs'].get('failures', 'failures.jsonl')}"


def headline(record: Mapping[str, Any]) -> str:
    """State, since when, and whose it is."""
    state, ago = record["state"], duration(max(0.0, time.time() - seconds_of(record["updated"])))
    if state == "running":
        since = duration(max(0.0, time.time() - seconds_of(record["started"])))
        who = f"process {record['pid']} on {record['host']}"
        return f"running for {since}, {who}; its record is {ago} old"
    error = f": {record['error']}" if record["error"] else ""
    if state == "died":
        return f"died: process {record['pid']} is gone; its last word is {ago} old"
    return f"{state} {ago} ago{error}"


def what(record: Mapping[str, Any]) -> Iterator[str]:
    """What is run, by whom, and what came of it so far."""
    plan, media = record["plan"], record["media"]
    if plan:
        precision = ", ".join(f"{half} {kind}" for half, kind in plan["precision"].items())
        yield f"{plan['model']} on {plan['device']}, {precision}, batches of {plan['batch_size']}"
    if record["rungs"]:
        yield f"rung: {json.dumps(record['rungs'][-1])}"
    if record["prefect"]:
        yield f"flow run {record['prefect']['name']} ({record['prefect']['id']})"
    still = f", {media['open']} not looked into yet" if media.get("open") else ""
    failed = media["failed"]
    yield f"{media['total']} files, {failed} failed{still}; {record['captions']} captions written"


def row(stage: StageStanding) -> str:
    """One stage."""
    lately = "-" if stage.rate_last_minute is None else f"{stage.rate_last_minute:.2f}/s"
    left = "-"
    if stage.pending:
        left = "unknown" if stage.seconds_left is None else duration(stage.seconds_left)
    peak = f"{size(stage.peak_host_bytes)} host" if stage.peak_host_bytes else "-"
    if stage.peak_device_bytes:
        peak += f", {size(stage.peak_device_bytes)} GPU"
    return COLUMNS.format(
        stage.name,
        str(stage.done),
        str(stage.failed),
        ("~" if stage.about and stage.pending else "") + str(stage.pending),
        lately,
        "-" if stage.rate is None else f"{stage.rate:.2f}/s",
        left,
        duration(stage.seconds) if stage.seconds else "-",
        peak,
    )


def seconds_of(stamp: str) -> float:
    """A time of the record in seconds since the epoch."""
    return datetime.fromisoformat(stamp).timestamp()
