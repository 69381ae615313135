"""`penstock plan` and `--dry-run`: weights of each half, frames and features on disk, what is there
already."""

import argparse
import json
from typing import Any

from flows.cli.options import config_of
from flows.display import Display, duration, size
from flows.launch import DirectLauncher
from flows.ledger import cut_waves
from flows.prepare import Job, prepare
from flows.run import halves, notes
from flows.sizes import SHOT_SECONDS, estimates, wave_limit
from flows.weights import bytes_to_fetch, halves_wanted


def plan_command(given: argparse.Namespace) -> int:
    """Print what a run would take. Raises PenstockError."""
    display = Display()
    job = prepare(config_of(given), DirectLauncher(display.listen), display.say)
    print(json.dumps(plan(job), indent=1) if given.json else "\n".join(plan_lines(job)))
    return 0


def plan(job: Job) -> dict[str, Any]:
    """The figures of a plan: bytes, counts, and what is done."""
    found = estimates(job)
    known = job.ledger.tasks(job.media)
    sizes = [e.bytes for e in found]
    lengths = cut_waves(sizes, wave_limit(job))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    waves = [found[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    return {
        "model": job.model.name,
        "device": job.device,
        "precision": job.model.precision(),
        "commit": job.model.checkpoint.commit,
        "halves": halves(job),
        "route": job.model.card.route,
        "notes": notes(job),
        "fetch_bytes": bytes_to_fetch(job.model, halves_wanted(job.ledger, job.media)),
        "sampling": {n: getattr(job.sampling, n) for n in job.sampling.__slots__},
        "files": len(job.files),
        "failed": len(job.failures),
        "seconds_of_media": sum(e.seconds for e in found),
        "chunks": sum(e.chunks for e in found),
        "frames": sum(e.frames for e in found),
        "frame_bytes_at_once": max((sum(e.frame_bytes for e in w) for w in waves), default=0),
        "feature_bytes": sum(e.feature_bytes for e in found),
        "waves": len(lengths),
        "free_bytes": job.store.free_bytes(),
        "done": {
            "features": sum(t.features in job.ledger.features for t in known),
            "captions": sum(t.caption in job.ledger.captions for t in known),
        },
    }


def plan_lines(job: Job) -> list[str]:
    """The plan for people."""
    p = plan(job)
    halves = p["halves"]
    lines = [
        f"model       {p['model']} on {p['device']}",
        *(
            f"  {name:10s}{size(half['bytes'])} of weights in {half['precision']}, "
            f"{half['parameters'] / 1e6:.1f} M parameters, {half['attention']} attention"
            for name, half in halves.items()
        ),
        *([f"download    {size(p['fetch_bytes'])} of weights"] if p["fetch_bytes"] else []),
        f"media       {p['files']} files, {duration(p['seconds_of_media'])}, "
        f"about {p['chunks']} chunks and {p['frames']} frames"
        + (f", if shots take {SHOT_SECONDS:.0f} s" if p["sampling"]["shots"] else ""),
        f"disk        {size(p['frame_bytes_at_once'])} of frames at once, "
        f"{size(p['feature_bytes'])} of features kept, {size(p['free_bytes'])} free, "
        f"{p['waves']} wave(s)",
        f"done        {p['done']['features']} features, {p['done']['captions']} captions",
    ]
    lines += [f"note        {note}" for note in p["notes"]]
    if p["failed"]:
        lines.append(f"missing     {p['failed']} sources: {job.failures[0].media_path} …")
    return lines
