"""Reads the feature record that the encode stage stored for a chunk."""

from artifacts.pack_object import DamagedRecord
from artifacts.packs import RecordSet
from artifacts.record_union import RecordUnion
from artifacts.tensors import unpack_tree
from stages.models.halves.records import FeatureRecord


def read_features(record_set: RecordSet | RecordUnion, key: str) -> FeatureRecord:
    """Read what was stored of one chunk. Raises DamagedRecord when it is gone, RecordGone when this
    version of transformers cannot take it."""
    try:
        record = record_set.read(key)
    except KeyError as error:
        raise DamagedRecord(
            f"the features {key[:12]}… are no longer in the store",
            hint="Run the same command again: it encodes them anew",
        ) from error
    return FeatureRecord.from_tree(unpack_tree(record.meta["tree"], record.payload))
