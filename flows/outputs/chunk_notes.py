"""Says what the captions of a run do not cover: spans in no clip, and videos without sound."""

from artifacts.wording import counted, first_of
from flows.core.job.prepare import Job
from flows.core.options.media import ON


def short_spans_note(job: Job) -> list[str]:
    """Return a note on what is in no clip, because it is shorter than what a trainer takes."""
    if not (sampling := job.sampling).clip_frames:
        return []
    indexes = [
        (group[0].file.media_path, index)
        for group in job.by_file
        if (index := job.ledger.media_index(group[0].medium)) is not None and index.kind == "video"
    ]
    gaps = [(path, *gap) for path, index in indexes for gap in index.gaps]
    short = [path for path, index in indexes if not index.chunks]
    if not gaps:
        return []
    path, start, end = gaps[0]
    lengths = f"{sampling.clip_frames} frames at {sampling.clip_fps:g} per second"
    without = f"; videos without any clip: {len(short):,} ({first_of(short)})" if short else ""
    more = "; --clip-rest overlap makes clips of the last frames of the others"
    return [
        f"left out, shorter than {lengths}: {counted(len(gaps), 'span')} of "
        f"{counted(len({path for path, *_ in gaps}), 'video')}, "
        f"{sum(e - s for _, s, e in gaps):,.1f} s, such as {start:.2f} to {end:.2f} s of {path}"
        f"{without}{more * (len(gaps) > len(short) and not sampling.clip_overlap)}"
    ]


def unheard_note(job: Job) -> list[str]:
    """Return a note on how many videos have no sound, under `--sound on`."""
    if job.config.groups.sound.sound != ON or not job.model.hears:
        return []
    videos = {medium.digest: medium for medium in job.media if medium.kind == "video"}.values()
    tasks = [job.ledger.tasks([medium]) for medium in videos]
    silent = sum(bool(of) and not any(task.variant.hears for task in of) for of in tasks)
    text = f"without sound: {silent} of {counted(len(tasks), 'video')}, captioned by what is seen"
    return [text] if silent else []
