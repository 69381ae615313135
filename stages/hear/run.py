"""The hear stage: turns the sound of chunks into feature records, in one process for a whole wave.

Each sound passes the processor and the audio half alone, so its bytes depend on nothing else. A
track without a sample gives a record without features, which decoding takes for no sound.
"""

from functools import partial
from typing import Any

import numpy as np

from artifacts.errors import UsageError
from artifacts.packs import DamagedRecord, Record, RecordSet
from artifacts.tensors import pack_tree
from stages.hear.job import HearJob
from stages.memory.oom_retry import item_fault
from stages.models.encoding.batch import encode_batches
from stages.models.encoding.job import EncodeItem
from stages.models.encoding.run import EncodeSpec, Refusal, encode_all
from stages.models.halves.records import FeatureRecord
from stages.models.loading import warm as warm
from stages.models.processors.hearing import prepare_sound, silence
from stages.models.processors.side_inputs import Prepared
from stages.models.processors.sound import sound_rate
from stages.process.events import EventReporter
from stages.process.job import parse_job

FULL_SCALE = np.float32(32768)
"""Sample of 16 bits that stands for 1."""


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Publish the missing feature records or failures of all sounds."""
    job = parse_job(HearJob, job_fields)
    spec = EncodeSpec(
        stage="hear",
        kind="heard",
        part="audio",
        inputs="sound",
        read=read_sound,
        record=_record,
        publish_each=True,
        encode=partial(encode_batches, part="audio"),
    )
    encode_all(job, spec, report)


def read_sound(record_set: RecordSet, processor: Any, item: EncodeItem) -> Prepared | Refusal:
    """Read one sound as the encoder's input, or return why the processor rejects it. Raises
    DamagedRecord if it is missing, and UsageError if it has another rate than the processor's."""
    try:
        record = record_set.read(item.frames)
    except KeyError as error:
        raise DamagedRecord(
            f"the sound {item.frames[:12]}… is no longer in the store",
            hint="Run the same command again: it reads it from the file again",
        ) from error
    if (rate := int(record.meta["rate"])) != sound_rate(processor):
        raise UsageError(
            f"the sound has {rate} samples per second, and the model takes {sound_rate(processor)}",
            hint="Run the same command again: it reads the sound at the model's rate",
        )
    if not record.meta["samples"]:
        return silence()
    samples = np.frombuffer(record.payload, "<i2").astype(np.float32) / FULL_SCALE
    try:
        return prepare_sound(processor, samples)
    except Exception as error:
        if (fault := item_fault(error)) is None:
            raise
        text = fault.message or fault.type
        return Refusal(message=f"the model's processor refuses this sound: {text}")


def _record(key: str, row: FeatureRecord) -> Record:
    meta, payload = pack_tree(row.to_tree())
    return Record(key=key, meta={"tree": meta, "tokens": row.count.tokens}, payload=payload)
