"""The encode stage: turns frame chunks into feature records, in one process for a whole wave."""

from dataclasses import replace
from functools import partial

from artifacts.records.eight_bits import form_of
from artifacts.records.packs import RecordSet
from stages.encode import EncodeJob, shown_frames
from stages.memory.oom_retry import item_fault
from stages.models.encoding import EncodeItem
from stages.models.encoding.run import EncodeSpec, Refusal, encode_all, feature_record, read_chunk
from stages.models.loading import warm as warm
from stages.models.processors.blank_clips import Clip
from stages.models.processors.prepare import prepare
from stages.models.processors.side_inputs import Prepared
from stages.models.protocols import Processor
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Publish the missing feature records or failures of all chunks."""
    job = parse_job(EncodeJob, job_fields)
    spec = EncodeSpec(
        stage="encode",
        kind="features",
        read=partial(read_item, count=job.frames_per_video),
        record=partial(feature_record, form=form_of(job.namespace)),
        publish_each=True,
    )
    encode_all(job, spec, report)


def read_item(
    record_set: RecordSet, processor: Processor, item: EncodeItem, count: int = 0
) -> Prepared | Refusal:
    """Read one chunk as the encoder's input, or return why the processor rejects its frames. The
    number of frames is `count`; with 0 it is that of the item, or all."""
    count = count or item.shown

    def prepared(clip: Clip) -> Prepared:
        if count and len(clip.frames) != count:
            clip = with_frame_count(clip, count)
        try:
            return prepare(processor, clip, item.prompt)
        except Exception as error:
            if clip.kind != "video" or len(clip.frames) != 1 or item_fault(error) is None:
                raise
            try:
                return prepare(processor, with_frame_count(clip, 2), item.prompt)
            except Exception as other:
                raise (error if item_fault(other) else other) from None

    return read_chunk(record_set, item, prepared)


def with_frame_count(clip: Clip, count: int) -> Clip:
    """Return the clip with `count` frames, for models with a fixed number of frames. Frames are
    dropped or repeated evenly."""
    taken, times = shown_frames(clip.times, clip.seconds, count)
    return replace(clip, frames=clip.frames[taken], times=times)
