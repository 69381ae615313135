"""Reads the feature record that the encode stage stored for a chunk."""

from artifacts.pack_object import DamagedRecord
from artifacts.packs import RecordSet
from artifacts.record_union import RecordUnion
from artifacts.tensors import unpack_tree
from stages.models.halves.records import FeatureRecord


def read_features(record_set: RecordSet | RecordUnion, key: str) -> FeatureRecord:
    """Read the features of one chunk. Raises DamagedRecord if they are gone, and RecordGone if this
    version of transformers cannot load them."""
    try:
        record = record_set.read(key)
    except KeyError as error:
        raise DamagedRecord(
            f"the features {key[:12]}… are no longer in the store",
            hint="Run the same command again to encode them",
        ) from error
    return FeatureRecord.from_tree(unpack_tree(record.meta["tree"], record.payload))
