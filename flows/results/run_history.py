"""Keeps in `run.json` a short entry of each run into a folder that made something.

An entry has up to KEYS keys of the items that its run needed. It is current while one of them is
among the keys of the latest run: a run with another prompt, model or media neither counts the work
of the others nor loses it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

RUNS = 50
"""Maximum entries: beyond it, one that is not current goes, or else the two oldest are merged."""
POINTS = 200
"""Maximum points of an entry's timeline, all stages together."""
RUNGS = 20
"""Maximum rungs of an entry; the first ones go."""
KEYS = 8
"""Maximum keys of an entry."""
ENDED = ("done", "failed", "interrupted")
"""States of a record whose run has written its own entry."""
PEAKS = ("peak_host_bytes", "peak_device_bytes")

Entry = dict[str, Any]


def seconds_of(stamp: str) -> float:
    """Return a time of the record in seconds since the epoch."""
    return datetime.fromisoformat(stamp).timestamp()


def entry_of(record: Mapping[str, Any]) -> Entry | None:
    """Return the entry of a record's own run; None if it has made nothing."""
    stages = record["stages"]
    items = {stage["name"]: stage["items"] + stage["running"] for stage in stages}
    if not any(items.values()):
        return None
    last = max((span[1] for stage in stages for span in stage["spans"]), default=0.0)
    return {
        "started": record["started"],
        "runs": 1,
        "seconds": max(seconds_of(record["updated"]) - seconds_of(record["started"]), last),
        "items": items,
        "tokens": sum(stage["tokens"] for stage in stages),
        **{name: max(stage[name] for stage in stages) for name in PEAKS},
        "rungs": record["rungs"][-RUNGS:],
        "timeline": _timeline(stages),
        "keys": record["keys"],
        "current": True,
    }


def _timeline(stages: Iterable[Mapping[str, Any]]) -> dict[str, list[list[Any]]]:
    """Return the memory points of each stage by the time of the run, at most POINTS in all."""
    found = {
        stage["name"]: [point for curve in curves_of(stage) for point in curve] for stage in stages
    }
    while sum(map(len, found.values())) > POINTS:
        found = {name: coarser(points) for name, points in found.items()}
    return {name: points for name, points in found.items() if points}


def curves_of(stage: Mapping[str, Any]) -> list[list[list[Any]]]:
    """Return the memory points of each ended process of a stage, by the time of the run.

    The record has them by the working time of the stage. They are aligned with the end of a
    process, not its start, because it may have waited for the GPU before its first sample.
    """
    points, worked = stage["timeline"], stage["seconds"]
    spans = stage["spans"] or [[0.0, worked, 0.0]]
    ends = [
        *(span[2] for span in spans[1:]),
        max(worked, *(point[0] for point in points[-1:]), 0.0),
    ]
    found: list[list[list[Any]]] = [[] for _ in spans]
    at = 0
    for seconds, host, device in points:
        while at + 1 < len(spans) and seconds >= spans[at + 1][2]:
            at += 1
        start, end, _ = spans[at]
        moment = min(max(end - (ends[at] - seconds), start), end)
        found[at].append([round(moment, 2), host, device])
    return [curve for curve in found if curve]


def coarser(timeline: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return half as many points, each with the maximum of two."""
    pairs = [timeline[at : at + 2] for at in range(0, len(timeline), 2)]
    return [[pair[0][0], max(p[1] for p in pair), max(p[2] for p in pair)] for pair in pairs]


def history_of(record: Mapping[str, Any]) -> list[Entry]:
    """Return the history of a record, with its own run. A record that goes on, or whose run was
    killed, has no entry of it yet, or one of before it went on."""
    entries: list[Entry] = record["history"]
    has_own = bool(entries) and entries[-1]["started"] == record["started"]
    if has_own and record["state"] in ENDED:
        return entries
    return with_run(entries[:-1] if has_own else entries, record)


def with_run(earlier: Iterable[Entry], record: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of earlier runs and that of a record's run, if it made something."""
    own = entry_of(record)
    entries = [*earlier, *([own] if own is not None else [])]
    while len(entries) > RUNS:
        other = next((at for at, entry in enumerate(entries) if not entry["current"]), None)
        if other is not None:
            del entries[other]
        else:
            entries[:2] = [_merged(*entries[:2])]
    return entries


def bound(entries: Iterable[Entry], keys: Collection[str]) -> list[Entry]:
    """Return the entries, and mark those with one of these keys as current. An entry without keys,
    such as that of a cluster's driver, gets them."""
    known, own = frozenset(keys), sorted(keys)[:KEYS]
    return [
        {
            **entry,
            "keys": entry["keys"] or own,
            "current": not known.isdisjoint(entry["keys"] or own),
        }
        for entry in entries
    ]


def _merged(older: Entry, newer: Entry) -> Entry:
    """Return one entry for two runs, with the rungs of both and the timeline of the newer."""
    items = dict(older["items"])
    for name, count in newer["items"].items():
        items[name] = items.get(name, 0) + count
    sums = {name: older[name] + newer[name] for name in ("runs", "seconds", "tokens")}
    peaks = {name: max(older[name], newer[name]) for name in PEAKS}
    rungs = [*older["rungs"], *newer["rungs"]][-RUNGS:]
    return {**newer, **sums, **peaks, "started": older["started"], "items": items, "rungs": rungs}


def current_runs(record: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of the runs that made what the last run into the folder needed, that one
    included while it works."""
    return [entry for entry in history_of(record) if entry["current"]]


def sum_of(entries: Sequence[Entry]) -> Entry | None:
    """Return one entry for these runs; None without any."""
    total = next(iter(entries), None)
    for entry in entries[1:]:
        total = _merged(total or entry, entry)
    return total
