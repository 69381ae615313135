"""From stored captions to the files people asked for; runs no model."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from artifacts.captions import Caption, Failure, write_jsonl
from artifacts.files import write_text
from artifacts.names import file_stems
from artifacts.subtitles import WRITERS
from artifacts.tables import TABLES
from flows.ledger import Medium
from flows.prepare import Job
from flows.sources import MediaFile


def failures_of(job: Job) -> list[Failure]:
    """Everything that could not be captioned, in source order within each stage."""
    found = list(job.failures)
    for file, medium in zip(job.files, job.contents, strict=True):
        known = job.ledger.failure(medium)
        if known is None:
            known = job.ledger.refusal(medium)
        if known is None:
            continue
        at = f" (at {known['start']:.1f} s)" if known.get("start") else ""
        found.append(
            Failure(
                media_path=file.media_path,
                source=file.source,
                stage=known.get("stage", "frames"),
                error=known["kind"],
                message=known["message"] + at,
                hint=known["hint"],
            )
        )
    return found


def failure_of(job: Job, stage: str, event: Mapping[str, Any]) -> dict[str, str]:
    """What a stage told of a medium, or of a chunk's features, with the name of a file."""
    told = event["media"]
    name = next(
        (
            file.media_path
            for file, medium in zip(job.files, job.contents, strict=True)
            if told == medium.digest
            or (stage == "encode" and any(t.features == told for t in job.ledger.tasks([medium])))
        ),
        "",
    )
    return {"media_path": name, "stage": stage, "message": event["message"], "hint": event["hint"]}


def places(job: Job) -> dict[str, str]:
    """Where each kind of output is written."""
    found = {"captions": str(job.out / "captions.jsonl")}
    for form in job.config.format:
        if form in TABLES:
            found[form] = str(job.out / f"captions.{form}")
        elif form in WRITERS:
            found[form] = "beside the media" if job.config.beside else str(job.out)
        elif form != "jsonl":
            found[form] = str(job.out / form)
    return {**found, "failures": str(job.out / "failures.jsonl"), "logs": str(job.out / "logs")}


MIDDLE = ("only the chunk's middle frame was seen: the model takes one picture a prompt",)


def captions_of(job: Job, file: MediaFile, medium: Medium) -> list[Caption]:
    """The captions of one file that are there, a line a chunk, in time order."""
    index = job.ledger.index(medium)
    if index is None:
        return []
    one_frame = medium.kind == "video" and job.model.one_frame
    rows = []
    for task in job.ledger.tasks([medium]):
        if task.caption not in job.ledger.captions:
            continue
        stored = job.ledger.captions.meta(task.caption)
        text = f"{job.config.prefix}{stored['caption']}{job.config.suffix}"
        rows.append(
            Caption(
                media_path=file.media_path,
                source=file.source,
                start=task.chunk.start,
                end=task.chunk.end,
                caption=text,
                model=job.model.name,
                prompt=medium.prompt,
                precision=task.scopes.precision,
                frames=task.chunk.times,
                features=task.features,
                tokens=stored["tokens"],
                warnings=(*index.warnings, *(MIDDLE if one_frame else ())),
            )
        )
    return rows


def write_outputs(job: Job, *, last: bool) -> tuple[int, list[Failure], list[str]]:
    """Write every output file; returns (captions written, failures, warnings).

    Tables are written with the `last` call alone: they cannot be added to, and no program reads
    them while the run goes on.
    """
    failures = failures_of(job)
    counts: list[int] = []

    def rows() -> Iterator[Caption]:
        # Made anew for each file: all of them together would be most of the memory of a large run.
        counts.clear()
        for captions in captions_by_file(job):
            counts.append(len(captions))
            yield from captions

    write_jsonl(job.out / "captions.jsonl", rows())
    write_jsonl(job.out / "failures.jsonl", failures)
    write_text(job.out / "media.jsonl", media_lines(job.files, counts))
    warnings: list[str] = []
    for form in job.config.format:
        if form in WRITERS:
            warnings += _write_files(job, form)
        elif form in TABLES and last:
            TABLES[form](job.out / f"captions.{form}", rows())
    return sum(counts), failures, warnings


def media_lines(files: Sequence[MediaFile], captions: Sequence[int]) -> Iterator[str]:
    """Of each file where it lies and how many lines of `captions.jsonl` are of it, in the order of
    those lines: two files of one name and source could not be told apart otherwise."""
    for file, count in zip(files, captions, strict=True):
        row = {"media_path": file.media_path, "source": file.source, "kind": file.kind}
        place = quote(os.fsencode(file.path))  # a name need not be UTF-8
        yield json.dumps({**row, "url": f"file://{place}", "captions": count}) + "\n"


def captions_by_file(job: Job) -> Iterator[list[Caption]]:
    """The captions of each file that are there, in source order."""
    for file, medium in zip(job.files, job.contents, strict=True):
        yield captions_of(job, file, medium)


def _write_files(job: Job, form: str) -> list[str]:
    """One file a medium; beside the media, files that are there already are kept unless told
    otherwise."""
    kept = []
    for medium, stem, captions in zip(
        job.contents, _stems(job), captions_by_file(job), strict=True
    ):
        tasks = job.ledger.tasks([medium])
        if not captions or len(captions) < sum(not job.ledger.lost(t) for t in tasks):
            continue  # half a text would look like a whole one
        text = "".join(WRITERS[form](captions))
        path = Path(f"{stem}.{form}")
        there = path.read_bytes() if path.is_file() else None
        if there == text.encode("utf-8", errors="replace"):
            continue
        keeps = job.config.beside and not job.config.overwrite and os.path.lexists(path)
        if keeps or path.is_dir():
            kept.append(path.name)
            continue
        write_text(path, [text])
    if not kept:
        return []
    return [
        f"{len(kept)} .{form} files were there already ({kept[0]} …); --overwrite replaces them"
    ]


def _stems(job: Job) -> list[str]:
    """The path without suffix of each file's text, absolute."""
    if not job.config.beside:
        return [f"{job.out}/{stem}" for stem in file_stems([f.media_path for f in job.files])]
    # A file that two sources name is one file, but with two prompts it has two texts.
    both = [(str(file.path), m.prompt) for file, m in zip(job.files, job.contents, strict=True)]
    each = list(dict.fromkeys(both))
    stems = dict(zip(each, file_stems([path for path, _ in each]), strict=True))
    return [stems[one] for one in both]
