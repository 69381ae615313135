"""The frames stage for clients: cuts each file that it is sent.

Each file is read completely and within limits, because uploads are untrusted. A fault in a file is
reported and not stored.
"""

from collections.abc import Callable
from pathlib import Path

from artifacts.disk.faults import is_full
from artifacts.errors import EnvironmentFault, MediaError
from artifacts.records.store import open_store
from artifacts.schema import MediaIndex
from stages.frames.frame_recorder import FrameRecorder, Watchdog, media_errors
from stages.frames.image import read_image
from stages.frames.job import FramesItem, FramesJob
from stages.frames.video import Video
from stages.memory.oom_retry import keep_freed_blocks
from stages.process.events import NO_ROOM, EventReporter
from stages.process.job import JobFields, parse_job
from stages.process.requests import Requests

TOO_LARGE = "too-large"
"""Kind of failure of a file that exceeds the limits."""
GONE = "gone"
"""Kind of failure of a file that cannot be read, or whose frames cannot be stored."""
NO_MEMORY = "no-memory"
"""Kind of failure of a file that needs more memory than one file may use."""


def run(fields: JobFields, report: EventReporter) -> None:
    """Store the frames of each requested medium, and report its index or its failure."""
    cut_requests(parse_job(FramesJob, fields), report)


def cut_requests(
    job: FramesJob,
    report: EventReporter,
    read_more: Callable[[FramesItem, MediaIndex], None] = lambda medium, index: None,
) -> None:
    """Do so for each request of the job's pipe; `read_more` is called before the answer."""
    keep_freed_blocks()
    watchdog = Watchdog()
    sets = FrameRecorder(open_store(job.store), job.namespace, report, watchdog)
    sent = Requests(job.requests, FramesItem, report, for_clients=True)
    report.note(ready=True)
    with watchdog, sent:
        for medium in (one.item for batches in sent for batch in batches for one in batch):
            try:
                with watchdog.over(), media_errors(medium):
                    index = _cut(job, sets, medium)
                    read_more(medium, index)
                report.answered(medium.key, media=medium.digest, index=index)
            except (MediaError, EnvironmentFault) as error:
                message = error.message.replace(medium.path, "the file")
                kind = error.kind if isinstance(error, MediaError) else GONE
                kind = NO_ROOM if is_full(error) else kind
                report.failure(medium.key, kind, message, error.hint)
            except MemoryError:
                report.failure(
                    medium.key,
                    NO_MEMORY,
                    "decoding the file takes more memory than one file may use",
                    "Scale it down first",
                )


def _cut(job: FramesJob, sets: FrameRecorder, medium: FramesItem) -> MediaIndex:
    """Store the frames of one file and return its index. Raises MediaError."""
    if medium.kind == "video":
        index = _cut_video(job, sets, medium)
    else:
        index, chunk = read_image(Path(medium.path), job.fit_image, job.max_pixels)
        sets.store([(medium, chunk)])
    sets.frames.forget(sets.frames.keys())  # the reader looks them up again
    return index


def _cut_video(job: FramesJob, sets: FrameRecorder, medium: FramesItem) -> MediaIndex:
    with Video(Path(medium.path), threads=1, deinterlace=job.sampling.deinterlace) as video:
        plans = video.plan(job.sampling)
        limit = job.max_chunks
        if limit and len(plans) > limit:
            seconds = limit * job.sampling.chunk_seconds
            raise MediaError(
                f"the file is {video.duration:.0f} s long; the limit is {seconds:.0f} s per "
                "request",
                kind=TOO_LARGE,
                hint="Send a part of it, or use a command without this limit: "
                "penstock caption FILE",
            )
        indexes = []
        for chunk in video.chunks(plans, job.fit_video):
            sets.store([(medium, chunk)])
            indexes.append(chunk.index)
            del chunk
        return video.media_index(indexes)
