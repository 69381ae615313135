"""Writes WebDataset shards: selects the samples and their media. Runs no model."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from artifacts.errors import MediaError
from artifacts.files import HALF
from artifacts.remote.media_cache import open_local
from artifacts.samples import Media, Sample, media_suffix
from artifacts.shards import DATASET, clips_in, kept_shards, read_index, write_shards
from flows.job.prepare import Job
from flows.machine.launch import Launcher
from flows.results.clips import Clips
from flows.results.cutting import Cutter, OnProgress, batches
from flows.results.marker import keep_media
from flows.results.sample_sources import SampleSource, one_per_chunk, sample_sources
from flows.results.user_texts import UserTexts, has_user_text


def write_dataset(
    job: Job, launcher: Launcher, on_progress: OnProgress, user_texts: dict[str, int]
) -> list[str]:
    """Update `OUT/webdataset` to the stored captions and return warnings. Adds the number of
    samples with user-written text to `user_texts`. Raises PenstockError."""
    folder = job.out / DATASET
    texts = UserTexts(job)
    items = [item for group in sample_sources(job, texts) for item in one_per_chunk(group)]
    before = read_index(folder)
    shards = kept_shards(folder, [item.sample.digest() for item in items])
    rest = items[sum(shard.samples for shard in shards) :]
    cutter = Cutter(job, launcher, on_progress, folder / f"{HALF}cut")
    notes: list[str] = []
    if rest or shards != before:
        on_progress("webdataset", len(items), len(items) - len(rest))
        exact = cutter.exact
        stored = clips_in(folder) if exact or not all(i.whole for i in rest) else {}
        clips = Clips(job, launcher, on_progress)
        plain = {i.sample.clip: not exact or clips.stands(i) for i in rest if i.whole}
        cut = {key: clips.find(key) or stored.get(key) for key in {i.sample.clip for i in rest}}
        copies: dict[str, tuple[str, int]] = {}
        shards = write_shards(folder, shards, _samples(rest, cutter, cut, plain, copies))
        fresh = (i for i in rest if exact and i.whole and i.sample.clip not in stored)
        notes += clips.note_on_files(fresh, copies)
        cutter.clear()
    keep_media(job.out, DATASET)
    user_texts[DATASET] = sum(has_user_text(item.sample.rows) for item in items)
    bare = sum(shard.without_media for shard in shards)
    if not bare:
        return [*notes, *texts.notes()]
    why = f" ({cutter.refused[0]})" if cutter.refused else ""
    return [
        f"{bare} webdataset samples have no media: they could not be cut, or their files "
        f"changed{why}",
        *notes,
        *texts.notes(),
    ]


def is_stale(job: Job) -> bool:
    """Return whether a dataset exists that differs from the stored captions."""
    folder = job.out / DATASET
    before = read_index(folder)
    digests = (
        [item.sample.digest() for group in sample_sources(job) for item in one_per_chunk(group)]
        if before
        else []
    )
    return kept_shards(folder, digests) != before or sum(s.samples for s in before) != len(digests)


def _samples(
    items: Sequence[SampleSource],
    cutter: Cutter,
    known: Mapping[str, Media | None],
    plain: Mapping[str, bool],
    copies: dict[str, tuple[str, int]],
) -> Iterator[tuple[Sample, Media | None]]:
    """Yield each sample with its media, by the clip's key: clips that are `known`, files that are
    samples as they are (`plain`), and clips that are cut for it. These are deleted after their
    batch; `copies` gets the reason and the bytes of those of whole files."""
    for batch in batches(items):
        keys = {i.sample.clip: i for i in batch}
        cut = cutter([i for key, i in keys.items() if not (known.get(key) or plain.get(key))])
        for item in batch:
            key = item.sample.clip
            if stored := known.get(key):
                yield item.sample, stored
            elif plain.get(key) or cutter.differs.get(key) == "":
                with contextlib.ExitStack() as stack:
                    try:
                        path = stack.enter_context(open_local(item.file))
                    except MediaError as error:
                        cutter.refused.append(f"{item.file.name}: {error.message}")
                        yield item.sample, None
                    else:
                        whole = Media(
                            path=path,
                            suffix=media_suffix(item.file.name),
                            start=item.sample.row.start,
                            stamp=item.stamp,
                            clip=key,
                        )
                        yield item.sample, whole
            else:
                yield item.sample, cut.get(key)
        for key, media in cut.items():
            if why := cutter.differs.get(key):
                copies[key] = why, media.path.stat().st_size
            media.path.unlink(missing_ok=True)
