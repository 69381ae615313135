"""The embed stage: frame chunks to records of vectors, a vector a frame, in one process for a whole
wave. It knows neither texts nor what the vectors are for."""

from typing import Any

import torch

from artifacts.packs import Record, RecordSet
from artifacts.vectors import vector_record
from stages.embed.job import EmbedJob
from stages.models.encoding.chunks import Refusal, read_chunk
from stages.models.encoding.run import Making, encode_all
from stages.models.halves.records import FeatureRecord
from stages.models.loading import ModelJob
from stages.models.loading import warm as warm
from stages.models.processors.pictures import prepare_pictures
from stages.models.processors.side_inputs import Prepared
from stages.process.job import job_of
from stages.process.report import Report


def run(told: dict[str, Any], report: Report) -> None:
    """Publish the vectors of each chunk of `batches` that has none, or why it cannot have any."""
    making = Making(kind="embeddings", read=read_pictures, record=record_of)
    encode_all(job_of(EmbedJob, told), ModelJob.of(told), making, report)


def read_pictures(
    record_set: RecordSet, processor: Any, member: dict[str, Any]
) -> Prepared | Refusal:
    """Read the frames of one chunk, each a picture of its own to the encoder."""
    return read_chunk(record_set, member, lambda clip: prepare_pictures(processor, clip))


def record_of(key: str, row: FeatureRecord) -> Record:
    """Return the record of a chunk's vectors, as the model gives them: they are not normalized."""
    vectors: torch.Tensor = row.features["image"]["pooler_output"]
    return vector_record(key, vectors.float().cpu().numpy())
