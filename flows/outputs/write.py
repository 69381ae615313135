"""Writes the requested output files from stored captions. Runs no model."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from artifacts.disk.files import json_text
from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault
from artifacts.schema import values_of
from artifacts.texts.captions import Caption, Failure, json_lines, write_jsonl
from artifacts.texts.edits import ACCEPTED, REJECTED, Chunk, unused_note
from artifacts.texts.tables import TABLES
from artifacts.texts.trainers import TRAINERS
from artifacts.wording import counted
from flows.core.job.away import AWAY
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Medium
from flows.core.media.generated_files import GeneratedFiles, digest_at
from flows.core.media.media_file import MediaFile
from flows.core.options.formats import CAPTIONS, MEDIA
from flows.core.pipelines import STAGES
from flows.outputs.captions import (
    ALL_REASONING,
    UNKNOWN_END,
    captions_by_file,
    complete_captions,
    file_failure,
    kinds_of,
    properties_of,
    table_rows,
    unanswered,
)
from flows.outputs.marker import write_proved
from flows.outputs.text_files import TextFileCounts, write_texts
from stages.process.events import Failed


def failures_of(job: Job) -> list[Failure]:
    """Return everything that could not be captioned, in source order within each stage."""
    failures = list(job.failures)
    for job_file in job.files:
        file, medium = job_file.file, job_file.medium
        failure = job.ledger.failure(medium) or job.ledger.refusal(medium)
        if failure is not None and failure["kind"] != AWAY:  # its folder has failed
            stage = failure.get("stage", job.pipeline[0].name)
            failures.append(file_failure(file, stage, failure, failure.get("start", 0.0)))
        of_prompt = f" (prompt {file.name})" if file.name else ""
        why = {**ALL_REASONING, "message": ALL_REASONING["message"] + of_prompt}
        failures += [
            file_failure(file, job.pipeline[-1].name, why, task.chunk.start)
            for task in unanswered(job, job_file)
        ]
    return list(dict.fromkeys(failures))  # a medium with several prompts fails once


def warned_files(job: Job) -> int:
    """Return the number of files that were read with warnings, such as truncated ones."""
    indexes = (job.ledger.media_index(group[0].medium) for group in job.by_file)
    return sum(index is not None and bool(index.all_warnings) for index in indexes)


NAMED = 10
"""Most files that an error names."""


def missing_rows(job: Job, chunks: Mapping[MediaFile, int] | None) -> dict[str, int]:
    """Return each file of the sources that has fewer rows and failures than chunks, and how many it
    lacks; 1 if it was not read. `chunks` were written of each file, under any of its prompts; None:
    stored records count."""
    ledger, missing = job.ledger, Counter[str]()
    for group in job.by_file:
        index = ledger.media_index(group[0].medium)
        lacking = 1 if index is None else len(index.chunks) * len(group)
        lacking -= sum((chunks or {}).get(job_file.file, 0) for job_file in group)
        if lacking <= 0 or ledger.failure(group[0].medium) is not None:
            continue
        lacking -= sum(
            chunks is None if ledger.is_done(task) else ledger.has_failed(task)
            for task in ledger.tasks([job_file.medium for job_file in group])
        )
        if chunks is not None:
            lacking -= sum(1 for job_file in group for _ in unanswered(job, job_file))
        if lacking > 0:
            missing[group[0].file.media_path] += lacking
    return missing


def missing_error(out: Path, missing: Mapping[str, int]) -> EnvironmentFault:
    """Return the error of a run whose outputs lack items, however often it makes them."""
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return EnvironmentFault(
        f"neither a row nor a failure in {out} for {counted(sum(missing.values()), 'item')} of "
        f"{', '.join([*missing][:NAMED])}{more}, which were made twice",
        hint="Run `penstock cache verify`, then the same command; please report it if that fails",
    )


def media_paths_of(job: Job) -> dict[str, str]:
    """Return the digest of each medium → the path of the first file with that content."""
    return {job_file.medium.digest: job_file.file.media_path for job_file in reversed(job.files)}


def failure_of(job: Job, names: Mapping[str, str], stage: str, event: Failed) -> dict[str, str]:
    """Return the failure event of a medium, or of a chunk's features, with the file's path."""
    key, kind = event.media, STAGES[stage].writes
    if STAGES[stage] is not job.pipeline[0]:
        tasks = job.ledger.tasks(job.media)
        chunks = (
            task
            for task in chain(
                tasks, (other for own in tasks for other in job.ledger.equivalent_tasks(own))
            )
            if task.keys.get(kind) == key
        )
        key = next((task.medium.digest for task in chunks), key)
    return {
        "media_path": names.get(key, ""),
        "stage": stage,
        "message": event.message,
        "hint": event.hint,
    }


@dataclass(kw_only=True, slots=True)
class OutputCounts:
    """The counts of what the outputs contain now."""

    captions: int = 0
    cut: int = 0
    """Captions that reached the token limit, and that no user reviewed since."""
    unknown_ends: int = 0
    """Captions of a server that gave an unknown reason for their end."""
    corrected: int = 0
    """Captions that a user corrected."""
    accepted: int = 0
    """Captions that a user accepted."""
    rejected: int = 0
    """Captions that a user rejected."""
    failures: list[Failure] = field(default_factory=list)
    texts: list[TextFileCounts] = field(default_factory=list)
    user_texts: dict[str, int] = field(default_factory=dict)
    """Format → number of user-written or corrected texts in it. `corrected` counts those of
    captions.jsonl."""
    earlier: list[str] = field(default_factory=list)
    """Outputs that an earlier run wrote and this one did not update."""
    edited: dict[str, list[str]] = field(default_factory=dict)
    """Data set → its files that the user wrote or edited, which are kept."""
    chunks: Mapping[MediaFile, int] = field(default_factory=dict)
    """Captions of each file, under its first prompt."""
    shared_edits: dict[str, str] = field(default_factory=dict)
    """Medium whose edit also counts for another one of the same content → that one."""
    others: list[str] = field(default_factory=list)
    """Tables, and folders of data sets, that are up to date."""
    unused_edits: str = ""
    """Says which edits of the folder's journal the outputs do not have; empty: none."""

    def to_json(self) -> dict[str, Json]:
        """Return all counts but the failures, as `run.json` stores them."""
        return {
            "captions": self.captions,
            "cut": self.cut,
            "corrected": self.corrected,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "texts": [values_of(texts.record) for texts in self.texts],
            "earlier": list(self.earlier),
            "edited": dict(self.edited),
        }


def write_captions(
    job: Job, by_file: Iterable[list[Caption]] | None = None
) -> dict[MediaFile, int]:
    """Write these captions of each file, or those that are stored by now, and no other output.
    Return their numbers, each under the entry of the file's first prompt."""
    counts: list[int] = []

    def rows() -> Iterator[Caption]:
        for captions in captions_by_file(job) if by_file is None else by_file:
            counts.append(len(captions))
            yield from captions

    firsts = [group[0] for group in job.by_file]
    counted_files = zip(firsts, counts, strict=True)  # read once the captions are written
    media = (media_line(job_file.file, count, job_file.medium) for job_file, count in counted_files)
    write_proved(job.out, {CAPTIONS: json_lines(rows()), MEDIA: media}, job.store.url)
    return {job_file.file: count for job_file, count in zip(firsts, counts, strict=True)}


def write_outputs(job: Job, *, last: bool) -> OutputCounts:
    """Write the requested output files, and update those of an earlier run.

    Only the `last` call writes tables: they cannot be appended to, and no program reads them during
    the run.
    """
    counts = OutputCounts(failures=failures_of(job))
    edited: dict[tuple[object, ...], str] = {}

    def by_file() -> Iterator[list[Caption]]:
        # Rebuilt for each output: in memory, they would be most of what a large run takes.
        counts.captions = counts.cut = counts.unknown_ends = 0
        counts.corrected = counts.accepted = counts.rejected = 0
        for captions in captions_by_file(job):
            counts.captions += len(captions)
            counts.cut += sum(not c.review and (c.ended == "length") for c in captions)
            warnings = chain.from_iterable(c.warnings for c in captions)
            counts.unknown_ends += sum(text.startswith(UNKNOWN_END) for text in warnings)
            counts.corrected += sum(bool(c.original) for c in captions)
            counts.accepted += sum(c.review == ACCEPTED for c in captions)
            counts.rejected += sum(c.review == REJECTED for c in captions)
            for caption in (c for c in captions if c.original or c.review):
                of = (caption.features, caption.name, caption.prompt, caption.start)
                if (first := edited.setdefault(of, caption.media_path)) != caption.media_path:
                    counts.shared_edits[caption.media_path] = first
            yield captions

    counts.chunks = write_captions(job, by_file())
    write_jsonl(job.out / "failures.jsonl", counts.failures)
    own, kinds = GeneratedFiles(job.store, out=job.out), kinds_of(job)
    counts.texts = write_texts(job, own, complete_captions)
    for texts in counts.texts:
        counts.user_texts[texts.form] = counts.user_texts.get(texts.form, 0) + texts.user_texts
    for form, write in TABLES.items():
        path = job.out / f"captions.{form}"
        if (last and counts.captions) and (
            form in job.config.groups.outputs.format or own.has(path.name, digest_at(path))
        ):
            rows = table_rows(chain.from_iterable(by_file()), kinds, properties_of(job))
            own.renew(path, partial(write, rows=rows, kinds=kinds))
            counts.user_texts[form] = counts.corrected
            counts.others.append(path.name)
        elif path.exists():
            counts.earlier.append(form)
    for form, trainer in TRAINERS.items():
        if trainer.files_in(job.out / form):
            counts.earlier.append(form)
    if unused := job.edits.unused():
        paths = {path for path, _ in unused}
        captioned = {
            c.media_path for c in chain(*captions_by_file(job)) if c.review != REJECTED
        } & paths
        counts.unused_edits = unused_note(unused, captioned)
    else:
        counts.unused_edits = job.edits.rejected_elsewhere(_chunks_here(job))
    return counts


def _chunks_here(job: Job) -> Iterator[tuple[Chunk, bool]]:
    """Yield the content and start of each caption's chunk, and whether the caption is rejected."""
    for group, captions in zip(job.by_file, captions_by_file(job), strict=True):
        if (medium := group[0].medium) is not None:
            for caption in captions:
                yield (medium.digest, caption.start), caption.review == REJECTED


def media_line(file: MediaFile, captions: int, content: Medium | None = None) -> str:
    """Return the location of a file, its number of lines in `captions.jsonl`, and what it held.
    These lines have the order of those, which distinguishes two files with one name and source."""
    row: dict[str, Json] = {
        "media_path": file.media_path,
        "source": file.source,
        "kind": file.kind,
        "url": f"file://{quote(os.fsencode(file.path))}",  # a name need not be UTF-8
        "captions": captions,
        **({"address": file.place} if file.remote else {}),
    }
    if content is not None:
        row["content"] = content.digest
        if content.stamp is not None:
            row |= {"bytes": content.stamp.size, "modified": content.stamp.modified}
    return json_text(row) + "\n"
