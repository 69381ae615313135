"""Lists the samples of captioned media, with their sources. Runs no model and cuts no video."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.captions import Caption
from artifacts.samples import Sample, sample_key
from artifacts.stamps import Stamp
from flows.job.media_digests import JobFile
from flows.job.prepare import Job
from flows.options.formats import MADE
from flows.results.captions import captions_of
from flows.results.marker import media_mode
from flows.results.user_texts import UserTexts

SAME_SECONDS = 0.001
"""A chunk that ends this close to the end of a medium, in seconds, reaches its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSource:
    """One sample, and the source of its media."""

    sample: Sample
    file: Path
    kind: str
    """`image` or `video`."""
    whole: bool
    """Whether the sample uses the whole file."""
    damaged: bool
    """Whether the file was read with warnings."""
    stamp: Stamp | None
    """Stamp of the file when it was captioned."""


def sample_sources(job: Job, user_texts: UserTexts | None = None) -> Iterator[list[SampleSource]]:
    """Yield the samples of each file, in source order, grouped by prompt. User-written texts
    replace captions."""
    copies: Counter[tuple[str, str, str]] = Counter()
    user_texts = user_texts or UserTexts(job)
    made = MADE[media_mode(job.out, job.config)][not job.sampling.deinterlace]
    for group in job.by_file:
        items: list[SampleSource] = []
        for each in group:
            captions = user_texts.apply(each, captions_of(job, each), first=not items)
            if captions:
                alike = (each.file.media_path, each.medium.digest, each.medium.prompt)
                copies[alike] += 1
                items += _items_of(job, each, captions, copies[alike], made)
        yield items


def _items_of(
    job: Job, of: JobFile, captions: Sequence[Caption], copy: int, made: str
) -> list[SampleSource]:
    medium = of.medium
    index = job.ledger.media_index(medium)
    assert index is not None
    numbers = {chunk.start: chunk.index for chunk in index.chunks}
    whole = captions[0].start == index.start and captions[0].end > index.end - SAME_SECONDS
    return [
        SampleSource(
            sample=Sample(
                key=sample_key(row.media_path, medium.digest, row.prompt, copy, numbers[row.start]),
                row=row,
                content=medium.digest,
                made=made,
                chunk=numbers[row.start],
            ),
            file=of.file.path,
            kind=medium.kind,
            whole=whole,
            damaged=bool(index.warnings),
            stamp=medium.stamp,
        )
        for row in captions
    ]


def by_chunk(items: Sequence[SampleSource]) -> list[list[SampleSource]]:
    """Return the samples of a file grouped by chunk, the first prompt's sample first."""
    found: dict[int, list[SampleSource]] = {}
    for item in items:
        found.setdefault(item.sample.chunk, []).append(item)
    return [found[number] for number in sorted(found)]


def one_per_chunk(items: Sequence[SampleSource]) -> list[SampleSource]:
    """Return one sample per chunk: that of the first prompt, with the other captions added."""
    return [
        replace(first, sample=replace(first.sample, others=tuple(o.sample.row for o in others)))
        for first, *others in by_chunk(items)
    ]
