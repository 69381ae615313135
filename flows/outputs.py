"""From stored captions to the files people asked for; runs no model."""

from collections import Counter
from collections.abc import Sequence

from artifacts.captions import WRITERS, Caption, Failure, file_stems, write_jsonl, write_text
from flows.ledger import Medium
from flows.prepare import Job
from flows.sources import MediaFile


def failures_of(job: Job) -> list[Failure]:
    """Everything that could not be captioned, in source order within each stage."""
    found = list(job.failures)
    for file, medium in zip(job.files, job.contents, strict=True):
        stage, known = "frames", job.ledger.failure(medium)
        if known is None:
            stage, known = "encode", job.ledger.refusal(medium)
        if known is None:
            continue
        at = f" (at {known['start']:.1f} s)" if known.get("start") else ""
        found.append(
            Failure(
                media_path=file.media_path,
                source=file.source,
                stage=stage,
                error=known["kind"],
                message=known["message"] + at,
                hint=known["hint"],
            )
        )
    return found


def captions_of(job: Job, file: MediaFile, medium: Medium) -> list[Caption]:
    """The captions of one file that are there, a line a chunk, in time order."""
    index = job.ledger.index(medium)
    if index is None:
        return []
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
                precision=job.model.precision(),
                frames=task.chunk.times,
                features=task.features,
                tokens=stored["tokens"],
                warnings=index.warnings,
            )
        )
    return rows


def write_outputs(job: Job) -> tuple[int, list[Failure], list[str]]:
    """Write every output file; returns (captions written, failures, warnings)."""
    failures = failures_of(job)
    rows = [captions_of(job, f, m) for f, m in zip(job.files, job.contents, strict=True)]
    write_jsonl(job.out / "captions.jsonl", (row for group in rows for row in group))
    write_jsonl(job.out / "failures.jsonl", failures)
    warnings: list[str] = []
    for form in job.config.format:
        if form in WRITERS:
            warnings += _write_files(job, form, rows)
    return sum(map(len, rows)), failures, warnings


def _write_files(job: Job, form: str, rows: Sequence[Sequence[Caption]]) -> list[str]:
    """One file a medium; beside the media, files that are there already are kept unless told
    otherwise."""
    stems = file_stems([file.media_path for file in job.files])
    shared = Counter(file.path.with_suffix("") for file in job.files)
    kept = []
    for file, medium, stem, captions in zip(job.files, job.contents, stems, rows, strict=True):
        tasks = job.ledger.tasks([medium])
        if not captions or len(captions) < sum(t.features not in job.ledger.refused for t in tasks):
            continue  # half a text would look like a whole one
        text = "".join(WRITERS[form](captions)).encode()
        path = job.out / f"{stem}.{form}"
        if job.config.beside:
            name = file.path.stem if shared[file.path.with_suffix("")] == 1 else file.path.name
            path = file.path.with_name(f"{name}.{form}")
        there = path.read_bytes() if path.exists() else None
        if there == text:
            continue
        if there is not None and job.config.beside and not job.config.overwrite:
            kept.append(path.name)
            continue
        write_text(path, [text.decode()])
    if not kept:
        return []
    return [
        f"{len(kept)} .{form} files were there already ({kept[0]} …); --overwrite replaces them"
    ]
