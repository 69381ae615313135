"""Writes the requested output files from stored captions. Runs no model."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from urllib.parse import quote

from artifacts.captions import Caption, Failure, write_jsonl
from artifacts.edits import REJECTED
from artifacts.files import write_text
from artifacts.keys import hash_file
from artifacts.shards import DATASET
from artifacts.subtitles import WRITERS
from artifacts.tables import TABLES
from artifacts.trainers import TRAINERS
from flows.job.prepare import Job
from flows.media.generated_files import GeneratedFiles, digest_at
from flows.media.media_files import MediaFile
from flows.options.text import OutputOptions, PromptOptions
from flows.pipelines import STAGES
from flows.results.captions import SHORTENED, captions_by_file, in_words
from flows.results.table_rows import kinds_of, properties_of, table_rows
from flows.results.text_files import TextFileCounts, write_texts
from stages.process.events import Failed


def failures_of(job: Job) -> list[Failure]:
    """Return everything that could not be captioned, in source order within each stage."""
    found = list(job.failures)
    for file, medium in zip(job.files, job.contents, strict=True):
        known = job.ledger.failure(medium) or job.ledger.refusal(medium)
        if known is None:
            continue
        at = f" (at {known['start']:.1f} s)" if known.get("start") else ""
        found.append(
            Failure(
                media_path=file.media_path,
                source=file.source,
                stage=known.get("stage", job.pipeline[0].name),
                error=known["kind"],
                message=known["message"] + at,
                hint=known["hint"],
            )
        )
    return list(dict.fromkeys(found))  # one that is asked several things fails once


def names_of(job: Job) -> dict[str, str]:
    """Return the digest of a medium → the name of the first file that holds it."""
    files = reversed(list(zip(job.files, job.contents, strict=True)))
    return {medium.digest: file.media_path for file, medium in files}


def failure_of(job: Job, names: Mapping[str, str], stage: str, event: Failed) -> dict[str, str]:
    """Return what a stage told of a medium, or of a chunk's features, with a file's name."""
    told, made = event.media, STAGES[stage].writes
    if STAGES[stage].reads:
        tasks = job.ledger.tasks(job.media)
        chunks = (
            task
            for task in chain(
                tasks, (other for each in tasks for other in job.ledger.equivalent_tasks(each))
            )
            if task[made] == told
        )
        told = next((task.medium.digest for task in chunks), told)
    return {
        "media_path": names.get(told, ""),
        "stage": stage,
        "message": event.message,
        "hint": event.hint,
    }


def places(job: Job) -> dict[str, str]:
    """Return where each kind of output lies, or is to be written."""
    outputs = OutputOptions.of(job.config)
    asked = outputs.format
    found = {"captions": str(job.out / "captions.jsonl")}
    beside = "beside the media" if outputs.beside else str(job.out)
    found |= dict.fromkeys((form for form in WRITERS if form in asked), beside)
    for form in (*TABLES, *FOLDERS):
        path = job.out / (form if form in FOLDERS else f"captions.{form}")
        if form in asked or path.exists():
            found[form] = str(path)
    if PromptOptions.of(job.config).summary:
        found["summaries"] = str(job.out / "summaries.jsonl")
    return {**found, "failures": str(job.out / "failures.jsonl"), "logs": str(job.out / "logs")}


FOLDERS = (DATASET, *TRAINERS)
"""Formats that are a folder of `OUT`, written when all is captioned."""


def there_before(job: Job) -> list[str]:
    """Return the outputs that lie there when a run begins: what they say is of an earlier one."""
    names = ("captions", *TABLES, *FOLDERS)
    return [name for name, path in places(job).items() if name in names and os.path.exists(path)]


@dataclass(kw_only=True, slots=True)
class OutputCounts:
    """The counts of what the outputs contain now."""

    captions: int = 0
    cut: int = 0
    """Captions that had as many tokens as they may have, and that nobody looked at since."""
    corrected: int = 0
    """Captions that a person corrected."""
    rejected: int = 0
    """Captions that a person rejected."""
    failures: list[Failure] = field(default_factory=list)
    texts: list[TextFileCounts] = field(default_factory=list)
    people: dict[str, int] = field(default_factory=dict)
    """Format → how many texts that people wrote or corrected went into it."""
    earlier: list[str] = field(default_factory=list)
    """Outputs that an earlier run wrote and this one did not: what they say may be another."""

    def to_json(self) -> dict[str, Any]:
        """Return all but the failures, as `run.json` keeps it."""
        return {
            "captions": self.captions,
            "cut": self.cut,
            "corrected": self.corrected,
            "rejected": self.rejected,
            "texts": [texts.to_json() for texts in self.texts],
            "earlier": list(self.earlier),
        }


def write_outputs(job: Job, *, last: bool) -> OutputCounts:
    """Write every output file that is asked for, and those that the folder has of an earlier run.

    Tables are written with the `last` call alone: they cannot be added to, and no program reads
    them while the run goes on.
    """
    found = OutputCounts(failures=failures_of(job))
    counts: list[int] = []

    def rows() -> Iterator[Caption]:
        # Made anew for each file: all of them together would be most of the memory of a large run.
        counts.clear()
        found.cut = found.corrected = found.rejected = 0
        for captions in captions_by_file(job):
            counts.append(len(captions))
            found.cut += sum(_is_cut(c) for c in captions)
            found.corrected += sum(bool(c.original) for c in captions)
            found.rejected += sum(c.review == REJECTED for c in captions)
            yield from captions

    write_jsonl(job.out / "captions.jsonl", rows())
    found.captions = sum(counts)
    write_jsonl(job.out / "failures.jsonl", found.failures)
    files = [group[0][0] for group in job.by_file]
    write_text(job.out / "media.jsonl", media_lines(files, counts))
    own, kinds = GeneratedFiles(job.store), kinds_of(job)
    found.texts = write_texts(job, own, in_words)
    found.people["jsonl"] = found.corrected
    for texts in found.texts:
        found.people[texts.form] = found.people.get(texts.form, 0) + texts.people
    for form, write in TABLES.items():
        path = job.out / f"captions.{form}"
        if last and (
            form in OutputOptions.of(job.config).format or own.has(form, "", digest_at(path))
        ):
            write(path, table_rows(rows(), kinds, properties_of(job)), kinds)
            own.add(form, "", hash_file(path))
            found.people[form] = found.corrected
        elif path.exists():
            found.earlier.append(form)
    found.earlier += [form for form in TRAINERS if (job.out / form).exists()]
    return found


def _is_cut(caption: Caption) -> bool:
    ended_early = caption.ended == "length" or SHORTENED in caption.warnings
    return ended_early and not caption.review


def media_lines(files: Sequence[MediaFile], captions: Sequence[int]) -> Iterator[str]:
    """Yield for each file where it lies and how many lines of `captions.jsonl` are its own. They
    come in the order of those lines: two files of one name and source could not be told apart
    otherwise."""
    for file, count in zip(files, captions, strict=True):
        row = {
            "media_path": file.media_path,
            "source": file.source,
            "kind": file.kind,
            "url": f"file://{quote(os.fsencode(file.path))}",  # a name need not be UTF-8
            "captions": count,
            **({"address": file.place} if file.far else {}),
        }
        yield json.dumps(row) + "\n"
