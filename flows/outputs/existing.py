"""Tells which output files are there before a run, and what the run replaces."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from artifacts.errors import PenstockError
from artifacts.texts.captions import WRITERS
from artifacts.texts.shards import DATASET
from artifacts.texts.tables import TABLES
from artifacts.texts.trainers import TRAINERS
from artifacts.timecodes import START
from flows.core.job.plan_record import FixedWords
from flows.core.job.prepare import Job
from flows.core.options.formats import CAPTIONS
from flows.outputs.record.run_read import load_record


def output_paths(job: Job) -> dict[str, str]:
    """Return the path of each kind of output that exists or will be written."""
    outputs = job.config.groups.outputs
    formats = outputs.format
    paths = {"captions": str(job.out / "captions.jsonl")}
    text_folder = "beside the media" if outputs.beside else str(job.out)
    paths |= dict.fromkeys((form for form in WRITERS if form in formats), text_folder)
    for form in (*TABLES, *FOLDERS):
        path = job.out / (form if form in FOLDERS else f"captions.{form}")
        if form in formats or path.exists():
            paths[form] = str(path)
    if job.config.groups.prompts.summary:
        paths["summaries"] = str(job.out / "summaries.jsonl")
    return {**paths, "failures": str(job.out / "failures.jsonl"), "logs": str(job.out / "logs")}


FOLDERS = (DATASET, *TRAINERS)
"""Formats written as a folder in `OUT` after all captions."""


def replaced_line(out: Path, outputs: Mapping[str, str]) -> str:
    """Return which of these outputs are there before a run that writes them; empty for none. Texts
    of media are counted when the run ends."""
    not_named = (*WRITERS, "failures", "logs")
    paths = [p for name, p in outputs.items() if name not in not_named and _holds(p)]
    names = [os.path.relpath(path, out) + "/" * os.path.isdir(path) for path in paths]
    return f"replaces in {out}: {', '.join(names)}" if names else ""


def lost_notes(job: Job) -> Iterator[str]:
    """Yield a note on what the outputs of an earlier run have and those of this run, which replaces
    them, will not: a trigger or prefix, and a clock of cues."""
    if job.pipeline[-1].writes != "captions":
        return
    with suppress(PenstockError):
        record = load_record(job.out)
        yield from filter(None, [_lost_words(job, record.plan.words)])
        if (clock := record.plan.clock) != START and job.config.groups.outputs.clock == START:
            times = f"vtt and srt of {job.out} had times by --clock {clock}"
            yield f"{times}, and this run counts from the start of each file: give it to keep them"


def _lost_words(job: Job, before: FixedWords) -> str:
    """Return a note on the trigger or prefix of earlier captions; empty if none is lost."""
    now = job.config.groups.text
    if now.trigger or now.prefix:
        return ""
    lost, text = ("trigger", before.trigger) if before.trigger else ("prefix", before.prefix)
    if not text:
        return ""
    place = next((n for n in FOLDERS if (job.out / n).is_dir()), CAPTIONS)
    words = f"the {lost} {text}, and this run has none: give --{lost} {shlex.quote(text)}"
    return f"{job.out / place} had {words} to keep it"


def existing_outputs(job: Job) -> list[str]:
    """Return the outputs of an earlier run that exist when a run begins."""
    paths, names = output_paths(job), ("captions", *TABLES, *FOLDERS)
    return [name for name in names if name in paths and _holds(paths[name])]


def _holds(path: str) -> bool:
    """Return whether an output is there, and not an empty file."""
    return os.path.isdir(path) or (os.path.exists(path) and os.path.getsize(path) > 0)
