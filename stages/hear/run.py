"""The hear stage: turns the sound of chunks into feature records, in one process for a whole wave.

Each sound passes the processor and the audio half alone, so its bytes depend on nothing else.
"""

from functools import partial

import numpy as np

from artifacts.errors import UsageError
from artifacts.records.eight_bits import form_of
from artifacts.records.packs import RecordSet, read_made
from stages.models.encoding import EncodeItem, EncodingJob
from stages.models.encoding.batch import encode_batches
from stages.models.encoding.run import EncodeSpec, Refusal, encode_all, feature_record, or_refusal
from stages.models.loading import warm as warm
from stages.models.processors.side_inputs import Prepared, prepare_sound
from stages.models.processors.sound import sound_rate
from stages.models.protocols import Processor
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

FULL_SCALE = np.float32(32768)
"""Sample of 16 bits that stands for 1."""


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Publish the missing feature records or failures of all sounds."""
    job = parse_job(EncodingJob, job_fields)
    spec = EncodeSpec(
        stage="hear",
        kind="heard",
        part="audio",
        inputs="sound",
        read=read_sound,
        record=partial(feature_record, form=form_of(job.namespace)),
        publish_each=True,
        encode=partial(encode_batches, part="audio"),
    )
    encode_all(job, spec, report)


def read_sound(record_set: RecordSet, processor: Processor, item: EncodeItem) -> Prepared | Refusal:
    """Read one sound as the encoder's input, or return why the processor rejects it. Raises
    DamagedRecord if it is missing, and UsageError if it has another rate than the processor's."""
    missing = "the sound {} is no longer in the store"
    hint = "Run the same command again: it reads it from the file again"
    record = read_made(record_set, item.frames, missing, hint)
    if (rate := int(record.meta["rate"])) != sound_rate(processor):
        raise UsageError(
            f"the sound has {rate} samples per second, and the model takes {sound_rate(processor)}",
            hint="Run the same command again: it reads the sound at the model's rate",
        )
    samples = np.frombuffer(record.payload, "<i2").astype(np.float32) / FULL_SCALE
    return or_refusal(lambda: prepare_sound(processor, samples), "this sound")
